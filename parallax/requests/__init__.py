"""The requests: each command's arguments as one frozen value with self-describing fields.

Flags, `--help`, the flag tables of docs/api.md and the JSON of a request derive from the fields.
"""
