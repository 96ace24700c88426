"""Finding a model, saying which one it is, and loading it."""
