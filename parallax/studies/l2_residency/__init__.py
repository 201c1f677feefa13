"""What stays in a GPU's L2 cache between two steps: measured, and its page."""
