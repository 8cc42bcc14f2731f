"""Command-line tools; nothing imports them."""
