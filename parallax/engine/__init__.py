"""Running what was verified: generate, train, checkpoints."""
