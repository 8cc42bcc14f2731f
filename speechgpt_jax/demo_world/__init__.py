"""The small world of everyday talk that the embedded corpus speaks about."""
