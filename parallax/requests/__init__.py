"""What each command was asked for, as one frozen value whose fields carry their own description.

Flags, `--help`, the flag tables of docs/api.md and the JSON of a request derive from the fields.
"""
