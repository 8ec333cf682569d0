"""Photograph to keypoints: detection, crop, network, points in the photograph."""
