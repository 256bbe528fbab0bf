"""What rewiring costs, in training steps."""
