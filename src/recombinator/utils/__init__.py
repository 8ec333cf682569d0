"""Errors, atomic file writes, progress, provenance."""
