"""Pictures on another grid, in plain numpy: Pillow's Lanczos to the bit, and bilinear samples of a square.

A photograph has to be cut in prediction exactly as in preparation, and prediction is to need neither Pillow nor torch.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

_BITS = 22  # of Pillow's fixed-point weights


@lru_cache(maxsize=64)
def _lanczos(old: int, new: int) -> np.ndarray:
    """(new, old) float64 holding whole numbers: weights of a Lanczos filter of three lobes, widened where it shrinks,
    in units of 2**-22, rounded as Pillow does."""
    scale = old / new
    stretch = max(scale, 1.0)
    support = 3.0 * stretch
    out = np.zeros((new, old))
    for i in range(new):
        center = (i + 0.5) * scale
        low, high = max(int(center - support + 0.5), 0), min(int(center + support + 0.5), old)
        x = (np.arange(low, high) - center + 0.5) / stretch
        weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)
        scaled = weights / weights.sum() * (1 << _BITS)
        out[i, low:high] = np.trunc(scaled + np.copysign(0.5, scaled))
    return out


def _rounded(total: np.ndarray) -> np.ndarray:
    return np.clip(np.floor((total + (1 << (_BITS - 1))) / (1 << _BITS)), 0, 255)


def resized(image: np.ndarray, size: int) -> np.ndarray:
    """(H, W[, C]) uint8 -> (size, size[, C]) uint8: Lanczos with antialiasing, as Pillow's (and the authors') resize.

    Sums of whole numbers below 2**53 are exact in float64, so this equals Pillow's integer arithmetic.
    """
    height, width = image.shape[:2]
    planes = np.moveaxis(np.atleast_3d(image).astype(np.float64), 2, 0)
    if width != size:
        planes = _rounded(planes @ _lanczos(width, size).T)
    if height != size:
        planes = _rounded(_lanczos(height, size) @ planes)
    out = np.ascontiguousarray(np.moveaxis(planes, 0, 2).astype(np.uint8))
    return out if image.ndim == 3 else out[..., 0]


def square(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """(H, W[, C]) image and (x, y, side) in it -> (C, size, size) float64: bilinear samples at the cells' centers,
    black outside, without antialiasing: what `transforms.affine.warp` takes for a box that is not turned."""

    def weights(start: float, side: float, count: int) -> np.ndarray:
        at = start + (np.arange(size) + 0.5) * side / size - 0.5
        low = np.floor(at).astype(int)
        out = np.zeros((size, count))
        for offset, share in ((0, 1 - (at - low)), (1, at - low)):
            inside = (low + offset >= 0) & (low + offset < count)
            out[np.flatnonzero(inside), (low + offset)[inside]] = share[inside]
        return out

    x, y, side = (float(v) for v in box)
    planes = np.moveaxis(np.atleast_3d(image).astype(np.float64), 2, 0)
    return weights(y, side, image.shape[0]) @ planes @ weights(x, side, image.shape[1]).T
