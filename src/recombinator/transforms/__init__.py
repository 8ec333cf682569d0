"""Batched tensors in, batched tensors out: affines, jitter, occlusion, local contrast normalisation."""
