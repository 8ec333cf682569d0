import json

import numpy as np
import pytest
import torch
from conftest import SHARED

from recombinator.models.lcn import SIGMA, LocalContrastNorm


def slow_lcn(x):
    """The formulas of LocalContrastNorm by loops over the 81 taps."""
    t = np.exp(-(np.arange(-4, 5) ** 2) / (2 * SIGMA**2))
    g = np.outer(t, t) / t.sum() ** 2

    def blur(a):
        padded = np.pad(a, 4)
        out = np.zeros_like(a)
        for i in range(9):
            for j in range(9):
                out += g[i, j] * padded[i : i + a.shape[0], j : j + a.shape[1]]
        return out

    v = x - blur(x)
    s = np.sqrt(blur(v**2))
    return (v / np.maximum(s, s.mean()) + 2.5) / 5


def test_equals_the_slow_version():
    x = np.random.default_rng(0).uniform(0, 255, (31, 44))
    out = LocalContrastNorm().double()(torch.from_numpy(x)[None, None])[0, 0].numpy()
    np.testing.assert_allclose(out, slow_lcn(x), atol=1e-6)


def test_constant_image_has_the_published_values():
    out = LocalContrastNorm()(torch.full((1, 1, 80, 80), 128.0))[0, 0]
    assert out[0, 0].item() == pytest.approx(0.967, abs=1e-3)
    assert out[40, 40].item() == pytest.approx(0.5, abs=1e-6)


def test_black_image_is_not_nan():
    for floor in ("image", "batch"):
        assert torch.equal(LocalContrastNorm(floor)(torch.zeros(2, 1, 20, 20)), torch.full((2, 1, 20, 20), 0.5))


def test_floor_per_image_ignores_the_neighbors_and_per_batch_does_not():
    x = torch.rand(2, 1, 40, 40) * torch.tensor([255.0, 5.0]).view(2, 1, 1, 1)
    image, batch = LocalContrastNorm("image"), LocalContrastNorm("batch")
    torch.testing.assert_close(image(x)[1:], image(x[1:]))
    assert not torch.allclose(batch(x)[1:], batch(x[1:]), atol=1e-3)
    torch.testing.assert_close(batch(x[1:]), image(x[1:]))


def test_independent_vector():
    if not (SHARED / "vectors.json").is_file():
        pytest.skip("skipped: no ../shared/vectors.json")
    vector = json.loads((SHARED / "vectors.json").read_text())["lcn"]
    out = LocalContrastNorm()(torch.tensor(vector["input"])[None, None])[0, 0]
    torch.testing.assert_close(out, torch.tensor(vector["output"]), atol=2e-5, rtol=0)
