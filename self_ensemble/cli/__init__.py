"""Command lines: flags, their types, and how mistakes are told."""
