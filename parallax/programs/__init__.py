"""A model under a strategy, as functions of whole arrays: parameters, cache and steps."""
