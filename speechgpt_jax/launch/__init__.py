"""What starts training on clusters."""
