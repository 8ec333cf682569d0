"""Errors, probabilities and robustness of a network."""
