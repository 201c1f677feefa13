"""Running verified programs: generation, training, checkpoints, compression, deployment."""
