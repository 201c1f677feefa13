"""The search for a strategy: enumerate candidates, rank them by model, compile the best."""
