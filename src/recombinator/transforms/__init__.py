"""Geometry, augmentation, batches for a network."""
