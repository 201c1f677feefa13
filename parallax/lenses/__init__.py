"""Four ways to look at one program: verify, compile, predict, measure."""
