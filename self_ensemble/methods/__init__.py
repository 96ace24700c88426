"""The ways to fuse paraphrases: in the attention, at the logits, by votes."""
