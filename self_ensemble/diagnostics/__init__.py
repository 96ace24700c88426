"""Proofs and views of what the method does on one model and one question."""
