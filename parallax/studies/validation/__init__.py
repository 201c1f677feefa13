"""Validation: predictions held against other people's measurements, and against a user's own."""
