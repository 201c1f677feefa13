"""Papers' figures derived: plain functions from what is given to a number, by topic."""
