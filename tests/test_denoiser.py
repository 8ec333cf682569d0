import pytest
import torch
import torch.nn.functional as F

from recombinator.errors import InputError
from recombinator.models.denoiser import BLANK, Denoiser, SpectralConv, fast_size


def one_hot(cells, size):
    maps = torch.zeros(*cells.shape[:2], size, size, dtype=torch.float64)
    for b, points in enumerate(cells.tolist()):
        for k, (x, y) in enumerate(points):
            if x != BLANK:
                maps[b, k, y, x] = 1
    return maps


def some_cells(b, k, size, seed=0):
    cells = torch.randint(0, size, (b, k, 2), generator=torch.Generator().manual_seed(seed))
    cells[0, 0], cells[0, 1], cells[-1, 2] = 0, size - 1, BLANK
    return cells


@pytest.mark.parametrize("depthwise", [False, True])
@pytest.mark.parametrize(("kernel", "size"), [(45, 80), (7, 20), (5, 6), (3, 31)])
def test_fft_equals_the_dense_convolution(kernel, size, depthwise):
    conv = SpectralConv(6, 6, kernel, size, depthwise).double()
    torch.nn.init.normal_(conv.bias)
    maps = torch.randn(2, 6, size, size, dtype=torch.float64)
    groups = 6 if depthwise else 1
    dense = F.conv2d(maps, conv.weight, conv.bias, padding=kernel // 2, groups=groups)
    for mode in (True, False):
        conv.train(mode)
        torch.testing.assert_close(conv(maps), dense, atol=1e-9, rtol=1e-9)
    cells = some_cells(2, 6, size)
    dense = F.conv2d(one_hot(cells, size), conv.weight, conv.bias, padding=kernel // 2, groups=groups)
    for mode in (True, False):
        conv.train(mode)
        torch.testing.assert_close(conv.from_cells(cells), dense, atol=1e-5, rtol=0)


def test_the_papers_size():
    assert sum(p.numel() for p in Denoiser().parameters()) == 25_406_212
    assert sum(p.numel() for p in Denoiser(depthwise=True).parameters()) < 1_000_000
    assert fast_size(102) == 108 and fast_size(97) == 100


@pytest.mark.parametrize("depthwise", [False, True])
def test_training_and_inference_agree_and_learn(depthwise):
    net = Denoiser(5, size=20, kernel=9, width=6, depthwise=depthwise)
    cells = some_cells(3, 5, 20)
    trained = net.train()(cells)
    assert trained.shape == (3, 5, 20, 20)
    torch.testing.assert_close(trained, net.eval()(cells), atol=1e-4, rtol=1e-4)
    trained.logsumexp((2, 3)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    with torch.no_grad():
        net.large[1].weight += 1  # what was kept for inference must not outlive a training step
    changed = net.train().eval()(cells)
    assert not torch.allclose(changed, trained)


def test_cells_that_cannot_be():
    net = Denoiser(5, size=20, kernel=9, width=6)
    for cells in (torch.zeros(1, 4, 2).long(), torch.full((1, 5, 2), 20), torch.full((1, 5, 2), -2)):
        with pytest.raises(InputError, match="expected"):
            net(cells)
    with pytest.raises(InputError, match="must be odd"):
        Denoiser(kernel=44)
