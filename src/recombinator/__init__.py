"""Recombinator: keypoints found precisely by Recombinator Networks (Honari et al., CVPR 2016)."""

__version__ = "0.1.0"
