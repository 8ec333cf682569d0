"""Errors, calibration and robustness of a network."""
