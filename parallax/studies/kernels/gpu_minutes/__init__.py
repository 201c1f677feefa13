"""What to do with a quarter of an hour on a GPU: the plan, and what runs it."""
