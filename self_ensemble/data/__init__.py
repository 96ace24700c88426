"""Questions in several wordings: records, prompts, datasets, and the tables they are read from."""
