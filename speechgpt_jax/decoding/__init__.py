"""From prompts to tokens, text and sound."""
