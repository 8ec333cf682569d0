"""Readers: one module per dataset, and one per format of points files."""
