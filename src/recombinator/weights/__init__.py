"""Weights files: read, written, shipped, derived."""
