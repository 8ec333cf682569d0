"""The authors' file format: protocol-0 pickles of float32 arrays, with kernels as Theano holds them."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recombinator.models import create_model
from recombinator.models.layers import LearnedUpsampling, only_maxima
from recombinator.utils.errors import InputError
from recombinator.weights.convert import convert, read_arrays
from recombinator.weights.files import load_weights, save_weights

RELEASED = {"upsampling": "learned", "keep_maxima": True}


def write(path, arrays):
    path.write_bytes(b"".join(pickle.dumps(a, protocol=0) for a in arrays))


@pytest.fixture(scope="module")
def released():
    """A network of the released variant, and the arrays its file would hold, in the authors' order."""
    torch.manual_seed(0)
    net = create_model("rcn-68", width=0.125, **RELEASED).eval()
    rows = [*net.trunk]
    for level in ("0", "1", "2", "3", "4"):  # F, M, C, D, S
        rows += list(net.branch[level])
    arrays = []
    for conv in rows:
        torch.nn.init.normal_(conv.bias)
        arrays += [conv.weight.detach().numpy()[:, :, ::-1, ::-1].copy(), conv.bias.detach().numpy()]
    arrays += [net.up[k].weight.detach().numpy()[:, :, ::-1, ::-1].copy() for k in ("4", "3", "2", "1")]  # S D C M
    return net, arrays


def test_released_variant_has_the_released_counts():
    net = create_model("rcn-68", **RELEASED)
    assert sum(p.numel() for p in net.parameters()) == 1_095_528
    order = [
        tuple(p.shape) for conv in [*net.trunk, *(c for _, b in net.branches() for c in b)] for p in conv.parameters()
    ]
    assert (
        len(order) == 32
        and order[10] == (64, 128, 5, 5)
        and order[16] == (68, 64, 1, 1)
        and order[28] == (64, 64, 5, 5)
    )


def test_conversion_gives_the_same_network(released, tmp_path):
    net, arrays = released
    write(tmp_path / "p.pickle", arrays)
    weights = convert(tmp_path / "p.pickle", width=0.125, **RELEASED)
    x = torch.rand(1, 1, 80, 80) * 255
    assert torch.equal(weights.net(x), net(x))
    save_weights(tmp_path / "w.safetensors", weights)
    assert torch.equal(load_weights(tmp_path / "w.safetensors").net(x), net(x))
    assert weights.crop_rule == "300w" and np.shape(weights.template) == (68, 2)


def test_a_file_that_does_not_fit(released, tmp_path):
    _, arrays = released
    write(tmp_path / "p.pickle", arrays[:-1])
    with pytest.raises(InputError, match="expected 36 arrays for rcn-68 with these options, got 35"):
        convert(tmp_path / "p.pickle", width=0.125, **RELEASED)
    write(tmp_path / "p.pickle", [arrays[0].T, *arrays[1:]])
    with pytest.raises(InputError, match="array 1: expected"):
        convert(tmp_path / "p.pickle", width=0.125, **RELEASED)


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


@pytest.mark.parametrize("content", [Evil(), {"a": 1}, [1, 2], np.zeros(3), np.array([Evil()], object), "text"])
def test_nothing_but_float32_arrays_is_read(content, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4):
        (tmp_path / "p.pickle").write_bytes(pickle.dumps(content, protocol=protocol))
        with pytest.raises(InputError, match="object 1 is not a float32 array"):
            read_arrays(tmp_path / "p.pickle")
    assert not (tmp_path / "pwned").exists()


def test_every_protocol_and_order_is_read(tmp_path):
    a = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    for protocol in (0, 2):
        for array in (a, np.asfortranarray(a)):
            (tmp_path / "p").write_bytes(pickle.dumps(array, protocol=protocol))
            assert np.array_equal(read_arrays(tmp_path / "p")[0], a)


def test_learned_upsampling_is_the_gradient_of_a_strided_convolution():
    up = LearnedUpsampling()
    x = torch.randn(2, 3, 5, 5)
    big = torch.zeros(2, 3, 10, 10, requires_grad=True)
    small = F.conv2d(big, up.weight.expand(3, 1, 3, 3), stride=2, padding=1, groups=3)
    (gradient,) = torch.autograd.grad(small, big, x)
    torch.testing.assert_close(up(x), gradient)


def test_only_maxima():
    x = torch.tensor([[1.0, 2, 0, 0], [3, 0, 0, 0], [5, 5, 1, 2], [0, 0, 2, 1]])[None, None]
    expected = torch.tensor([[0.0, 0, 0, 0], [3, 0, 0, 0], [5, 5, 0, 2], [0, 0, 2, 0]])[None, None]
    assert torch.equal(only_maxima(x), expected)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("rcn-6", RELEASED, "five branches"),
        ("rcn-5-skip", RELEASED, "needs skip=False"),
        ("sumnet-4", {"upsampling": "learned"}, "need an RCN"),
    ],
)
def test_networks_without_learned_upsampling(name, options, words):
    with pytest.raises(InputError, match=words):
        create_model(name, **options)
