"""Measurement of what stays in a GPU's L2 cache between two steps, and its page."""
