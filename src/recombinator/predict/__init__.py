"""Photograph -> faces -> crops -> network -> keypoints in the photograph."""
