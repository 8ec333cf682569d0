"""Lanczos equals Pillow's to the bit; the square equals the tensors' warp."""

import numpy as np
import pytest
import torch
from PIL import Image

from recombinator.data.resample import resized, square
from recombinator.transforms.affine import box_affine, warp

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("shape", [(37, 37), (160, 160), (163, 163), (401, 401), (90, 211), (5, 5), (1000, 1000)])
@pytest.mark.parametrize("channels", [0, 3])
def test_lanczos_is_pillows(shape, channels):
    image = RNG.integers(0, 256, (*shape, channels) if channels else shape, dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((160, 160), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resized(image, 160), wanted)


def test_lanczos_of_black_and_white():
    image = np.where(np.indices((333, 333)).sum(0) % 20 < 10, 255, 0).astype(np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((160, 160), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(resized(image, 160), wanted)


@pytest.mark.parametrize("box", [(13.0, 13.0, 133.0), (-20.5, 4.25, 150.0), (0, 0, 160), (60.3, 70.1, 31.7)])
def test_square_is_the_warp_without_a_turn(box):
    image = RNG.integers(0, 256, (160, 160, 3), dtype=np.uint8)
    tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
    wanted = warp(tensor, box_affine(torch.tensor([box], dtype=torch.float32), 80), 80)[0].numpy()
    np.testing.assert_allclose(square(image, np.array(box), 80), wanted, atol=0.02)
    np.testing.assert_allclose(square(image[..., 0], np.array(box), 80)[0], wanted[0], atol=0.02)
