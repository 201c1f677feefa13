"""Comparison of two strategies' speed on the local devices, by paired runs."""
