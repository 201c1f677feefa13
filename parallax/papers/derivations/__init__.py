"""The derivations of papers' figures, by topic: plain functions from `Given` to a number."""
