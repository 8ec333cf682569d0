import pytest
import torch
import torch.nn.functional as F

from recombinator.errors import InputError
from recombinator.evaluation import evaluate
from recombinator.keypoints import FACE_5
from recombinator.models import Joint, create_model
from recombinator.models.decode import maximum
from recombinator.models.denoiser import BLANK, MapDenoiser, SpectralConv, fast_size
from recombinator.weights import Weights, join, load_weights, save_weights


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
    assert sum(p.numel() for p in MapDenoiser().parameters()) == 25_406_212
    assert sum(p.numel() for p in MapDenoiser(depthwise=True).parameters()) < 1_000_000
    assert fast_size(102) == 108 and fast_size(97) == 100


@pytest.mark.parametrize("depthwise", [False, True])
def test_training_and_inference_agree_and_learn(depthwise):
    net = MapDenoiser(5, size=20, kernel=9, width=6, depthwise=depthwise)
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


def small_joint(weight=1.0, iterations=1):
    image = create_model("rcn-4", 5, size=24, width=0.25)
    denoiser = create_model("denoiser-depthwise", 5, size=24, kernel=9, width=6)
    return Joint(image, denoiser, weight, iterations).eval()


def test_joint_is_the_sum_of_scores():
    net, x = small_joint(0.7, 2), torch.rand(2, 1, 24, 24) * 255
    a = net.image(x)
    once = a + 0.7 * net.denoiser((maximum(a) - 0.5).long())
    torch.testing.assert_close(net(x), a + 0.7 * net.denoiser((maximum(once) - 0.5).long()))
    net.weight = 0.0
    assert torch.equal(net(x), a)


def test_joint_saves_loads_and_evaluates(faces5, tmp_path):
    for name, net in zip(("image", "denoiser"), (small_joint().image, small_joint().denoiser), strict=True):
        save_weights(tmp_path / f"{name}.safetensors", Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    joined = join(tmp_path / "image.safetensors", tmp_path / "denoiser.safetensors", 0.5, 2)
    save_weights(tmp_path / "joint.safetensors", joined)
    loaded = load_weights(tmp_path / "joint.safetensors")
    x = torch.rand(1, 1, 24, 24) * 255
    assert torch.equal(loaded.net(x), joined.net(x)) and (loaded.net.weight, loaded.net.iterations) == (0.5, 2)
    assert evaluate(tmp_path / "joint.safetensors", faces5 / "test.parquet")[1]["images"] == 6
    with pytest.raises(InputError, match="then a denoiser's"):
        join(tmp_path / "denoiser.safetensors", tmp_path / "image.safetensors")


def test_networks_that_cannot_be_joined():
    with pytest.raises(InputError, match="cannot be joined"):
        Joint(create_model("rcn-4", 5), create_model("denoiser-depthwise", 5, size=24, kernel=9, width=6))


def test_cells_that_cannot_be():
    net = MapDenoiser(5, size=20, kernel=9, width=6)
    for cells in (torch.zeros(1, 4, 2).long(), torch.full((1, 5, 2), 20), torch.full((1, 5, 2), -2)):
        with pytest.raises(InputError, match="expected"):
            net(cells)
    with pytest.raises(InputError, match="must be odd"):
        MapDenoiser(kernel=44)
