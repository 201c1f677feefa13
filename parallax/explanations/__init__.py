"""Explanations of compiled programs: what the compiler did, at which line, and what would help."""
