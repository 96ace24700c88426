"""Sampling paraphrases from a model, and telling good ones from bad."""
