"""Fits of the constants that Parallax ships, a file per term."""
