"""Resizing equals Lanczos filtering with Pillow's fixed-point weights; the square equals the tensors' warp."""

import math

import numpy as np
import pytest
import torch

from recombinator.data.resample import resized
from recombinator.transforms.affine import box_affine, warp

RNG = np.random.default_rng(0)
ONE = 1 << 22  # Pillow's unit of weights


def lanczos_rows(image, new):
    """Resize the first axis: three lobes, widened where the image shrinks, whole-number weights, one rounding."""
    old = len(image)
    scale = old / new
    stretch = max(scale, 1.0)
    out = np.zeros((new, *image.shape[1:]), np.int64)
    for i in range(new):
        center = (i + 0.5) * scale
        rows = range(max(int(center - 3 * stretch + 0.5), 0), min(int(center + 3 * stretch + 0.5), old))
        distances = [(row - center + 0.5) / stretch for row in rows]
        weights = [np.sinc(d) * np.sinc(d / 3) if -3 <= d < 3 else 0.0 for d in distances]
        for row, weight in zip(rows, weights, strict=True):
            exact = weight / sum(weights) * ONE
            out[i] += image[row].astype(np.int64) * int(exact + math.copysign(0.5, exact))
    return ((out + ONE // 2) // ONE).clip(0, 255).astype(np.uint8)


def lanczos(image, size):
    columns = np.swapaxes(lanczos_rows(np.swapaxes(image, 0, 1), size), 0, 1) if image.shape[1] != size else image
    return lanczos_rows(columns, size) if len(image) != size else columns


def square(image: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """Sample a square of an image bilinearly at the centers of size x size cells, without antialiasing.

    This equals `transforms.affine.warp` for a box without rotation.

    Args:
        image: (H, W) or (H, W, C). Pixels outside it are black.
        box: (x, y, side) in image pixels; a pixel's center is at its integer + 0.5.
        size: Number of cells per side.

    Returns:
        (C, size, size) float64.
    """

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


# crops are square; for tall images Pillow's result depends on the order of its two passes
@pytest.mark.parametrize("shape", [(37, 37), (160, 160), (163, 163), (401, 401), (90, 211), (5, 5), (1000, 1000)])
@pytest.mark.parametrize("channels", [0, 3])
def test_resized_is_lanczos(shape, channels):
    image = RNG.integers(0, 256, (*shape, channels) if channels else shape, dtype=np.uint8)
    np.testing.assert_array_equal(resized(image, 160), lanczos(image, 160))


def test_resized_black_and_white():
    image = np.where(np.indices((333, 333)).sum(0) % 20 < 10, 255, 0).astype(np.uint8)
    out = resized(image, 160)
    np.testing.assert_array_equal(out, lanczos(image, 160))
    out[:] = 0  # the result can be written to


@pytest.mark.parametrize("box", [(13.0, 13.0, 133.0), (-20.5, 4.25, 150.0), (0, 0, 160), (60.3, 70.1, 31.7)])
def test_square_is_the_warp_without_rotation(box):
    image = RNG.integers(0, 256, (160, 160, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    wanted = warp(tensor, box_affine(torch.tensor([box], dtype=torch.float32), 80), 80)[0].numpy()
    np.testing.assert_allclose(square(image, np.array(box), 80), wanted, atol=0.02)
    np.testing.assert_allclose(square(image[..., 0], np.array(box), 80)[0], wanted[0], atol=0.02)
