"""A run that lasts: identity, names, lock, journal, resume, manifest."""
