"""Parallax: know which way of splitting a model is right before renting the GPUs."""
