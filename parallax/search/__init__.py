"""Which way of splitting a model is right: enumerate, rank by closed form, compile the best."""
