"""Coordinates and affines, augmentation, shapes, batches for a network."""
