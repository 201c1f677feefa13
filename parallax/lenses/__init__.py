"""The four lenses, each a way to look at one program: verify, compile, predict, measure."""
