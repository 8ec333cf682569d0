"""Weights: files, shipped networks, weights made from other weights."""
