"""The paper's numbers for the networks, and one suite of tests that runs on every architecture."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from recombinator.keypoints import FACE_5, FACE_68, KeypointSet
from recombinator.models import MODELS, create_model, model_names
from recombinator.models.layers import Conv, conv_over_concat, upsample
from recombinator.transforms.samples import BLANK
from recombinator.utils.errors import InputError
from recombinator.weights.derive import average, mirrored, shifted, smoothed
from recombinator.weights.files import Weights, load_weights, save_weights

PARAMETERS = {
    "sumnet-4": 99_112, "sumnet-5": 142_850, "sumnet-6": 186_588,
    "rcn-4": 164_837, "rcn-5": 227_141, "rcn-6": 310_229, "rcn-7": 338_021,
    "rcn-5-skip": 293_957, "rcn-6-skip": 439_253, "rcn-7-skip": 549_989,
    "sumnet-68": 603_368, "rcn-68": 1_095_492, "rcn-68-skip": 1_709_892,
    "rcn-6-fast": 302_420,  # not in the paper
}  # fmt: skip
MILLION_MULTIPLY_ADDS = {
    "sumnet-4": 63.88, "sumnet-5": 65.00, "sumnet-6": 65.21,
    "rcn-4": 113.13, "rcn-5": 114.68, "rcn-6": 115.45, "rcn-7": 115.54,
    "rcn-5-skip": 285.18, "rcn-6-skip": 362.67, "rcn-7-skip": 440.00,
    "sumnet-68": 1204.23, "rcn-68": 1913.96, "rcn-68-skip": 4248.68,
    "rcn-6-fast": 76.74,
}  # fmt: skip
# rcn-6 of the authors' code: (size, in, out, parameters), trunk first, then branches from the finest
RCN_6 = [
    (80, 1, 16, 160), (40, 16, 32, 4_640), (20, 32, 48, 13_872), (10, 48, 48, 20_784), (5, 48, 48, 20_784),
    (2, 48, 48, 20_784),
    (80, 32, 16, 4_624), (80, 16, 5, 725), (40, 64, 32, 18_464), (40, 32, 16, 4_624), (20, 96, 48, 41_520),
    (20, 48, 32, 13_856), (10, 96, 48, 41_520), (5, 96, 48, 41_520), (5, 48, 48, 20_784), (2, 48, 48, 20_784),
    (2, 48, 48, 20_784),
]  # fmt: skip


def count(net):
    return sum(p.numel() for p in net.parameters())


def images(n=2, channels=1, size=80, seed=0):
    return torch.rand(n, channels, size, size, generator=torch.Generator().manual_seed(seed)) * 255


def test_registered_models():
    assert set(model_names()) == {
        *PARAMETERS,
        "denoiser",
        "denoiser-lite",
        "tcdcn",
        "tcdcn-alone",
        "finder",
    }


SCORE_MAPS = list(PARAMETERS)
SMALL = {"denoiser": {"size": 20, "kernel": 9, "width": 6}}  # at full size its tests take minutes


def family(name, **options):
    return create_model(name, **(SMALL.get(name, {}) | options))


def inputs_of(net, n=2, seed=0):
    """Random inputs of a network: images, or cells of keypoints."""
    if net.takes_images:
        return images(n, net.channels, net.size, seed)
    cells = torch.randint(0, net.size, (n, net.keypoints, 2), generator=torch.Generator().manual_seed(seed))
    cells[0, 0] = BLANK
    return cells


@pytest.mark.parametrize("name", MODELS)
class TestFamily:
    """Tests of every architecture."""

    @pytest.mark.parametrize("keypoints", [3, 68])
    def test_any_number_of_keypoints(self, name, keypoints):
        net = family(name, keypoints=keypoints).eval()
        points, maps = (2, keypoints, 2), (2, keypoints, net.size, net.size)
        shape = {"regression": points, "finding": (2, 6, net.size // 4, net.size // 4)}.get(net.task, maps)
        assert net(inputs_of(net)).shape == shape and net.multiply_adds() > 0

    def test_every_parameter_gets_a_gradient(self, name):
        torch.manual_seed(0)
        net = family(name)
        scores = net(inputs_of(net))
        # a plain sum of scores has no gradient for parameters that only move probability between cells
        target = scores.sum() if scores.ndim == 3 else -scores.flatten(2).log_softmax(2)[..., 7].sum()
        target.backward()
        without = [n for n, p in net.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
        # attribute heads do not affect the points; a 1x1 map under ReLU can be dead at random initialization
        allowed = ("branch.6", "trunk.6", "branch.gender", "branch.smile", "branch.glasses", "branch.pose")
        assert not [n for n in without if not n.startswith(allowed)]

    def test_batch_does_not_change_a_prediction(self, name):
        net = family(name).eval()
        x = inputs_of(net, 3)
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]), rtol=1e-4, atol=1e-4)

    def test_save_and_load(self, name, tmp_path):
        net = family(name).eval()
        keypoint_set = FACE_5 if net.keypoints == 5 else FACE_68
        template = [[0.5, 0.5]] * net.keypoints
        save_weights(tmp_path / "w.safetensors", Weights(net, keypoint_set, "mtfl", template, {"seed": 1}))
        loaded = load_weights(tmp_path / "w.safetensors")
        assert loaded.keypoints == keypoint_set and loaded.crop_rule == "mtfl" and loaded.training == {"seed": 1}
        assert loaded.net.config == net.config and loaded.template == template
        assert torch.equal(loaded.net(inputs_of(net)), net(inputs_of(net)))

    def test_wrong_input_and_unknown_option(self, name):
        net = family(name)
        wrong = torch.zeros(1, net.keypoints + 1, 2).long() if not net.takes_images else images(1, net.channels, 48)
        with pytest.raises(InputError, match="expected"):
            net(wrong)
        with pytest.raises(InputError, match=f"model {name}.*speed"):
            family(name, speed=1)


@pytest.mark.parametrize("name", SCORE_MAPS)
class TestScoreMaps:
    """What SumNet and RCN share."""

    def test_parameters_and_multiply_adds(self, name):
        net = create_model(name)
        assert count(net) == PARAMETERS[name]
        assert round(net.multiply_adds() / 1e6, 2) == MILLION_MULTIPLY_ADDS[name]
        convolutions = sum(row.parameters for row in net.layers())
        assert count(net) - convolutions == (net.alpha.numel() if hasattr(net, "alpha") else 0)

    @pytest.mark.parametrize(("keypoints", "channels", "size"), [(1, 1, 80), (68, 3, 80), (5, 1, 96), (3, 1, 67)])
    def test_any_keypoints_channels_and_size(self, name, keypoints, channels, size):
        size -= size % create_model(name).fold
        net = create_model(name, keypoints, channels=channels, size=size)
        assert net(images(1, channels, size)).shape == (1, keypoints, size, size)

    def test_fused_equals_plain(self, name):
        net = create_model(name).double().eval()
        x = images().double()
        fused = net.scores(net.features(x))
        net.fused = False
        torch.testing.assert_close(fused, net.scores(net.features(x)), rtol=1e-9, atol=1e-9)

    def test_bilinear_and_other_normalizations(self, name):
        for options in ({"upsampling": "bilinear"}, {"norm": "batch"}, {"norm": "global"}, {"width": 0.5}):
            assert torch.isfinite(create_model(name, **options)(images())).all()


def test_rcn_6_layer_by_layer():
    rows = [(r.size, r.inputs, r.outputs, r.parameters) for r in create_model("rcn-6").layers()]
    assert rows == RCN_6


def test_skip_widths():
    firsts = {r.size: r.inputs for r in create_model("rcn-6-skip").layers() if r.name.endswith(".1")}
    assert firsts == {80: 208, 40: 208, 20: 192, 10: 144, 5: 96, 2: 48}


def test_options_that_change_the_count():
    assert [count(create_model(f"sumnet-{n}", alpha="pixel")) for n in (4, 5, 6)] == [227_092, 302_825, 378_558]
    assert count(create_model("rcn-6", form="twice")) == 331_013
    assert count(create_model("rcn-6-skip", form="twice")) == 460_037
    assert count(create_model("rcn-7", form="twice")) == 358_805
    text = create_model("rcn-68", form="text")
    assert count(text) == 640_900 and round(text.multiply_adds() / 1e6, 2) == 868.25


def test_fold_moves_squares_of_pixels_to_channels():
    net = create_model("rcn-4", size=16, fold=2).eval()
    first, last = net.trunk[0], next(iter(net.branches()))[1][-1]
    assert (first.in_channels, last.out_channels, net.sizes) == (4, 20, [8, 4, 2, 1])
    x = images(1, size=16)
    # by hand: pixel (2i + a, 2j + b) is channel 2a + b of cell (i, j), in input and output
    folded = net.norm(x).reshape(8, 2, 8, 2).permute(1, 3, 0, 2).reshape(1, 4, 8, 8)
    torch.testing.assert_close(net.features(net.norm(x))[0], torch.relu(first(folded)))
    plain = create_model("rcn-4", 20, size=8, channels=4).eval()
    plain.load_state_dict(net.state_dict())
    unfolded = plain.scores(plain.features(folded)).reshape(5, 2, 2, 8, 8).permute(0, 3, 1, 4, 2).reshape(1, 5, 16, 16)
    torch.testing.assert_close(net(x), unfolded)
    with pytest.raises(InputError, match="fold=3"):
        create_model("rcn-4", fold=3)
    with pytest.raises(InputError, match="fold"):
        create_model("sumnet-4", fold=2)
    assert create_model("rcn-4", size=16, fold=2, mask=(1, 1, 1, 0)).tile == 2


def test_mirror_doubles_the_cost():
    for name in ("rcn-5", "sumnet-5"):
        assert create_model(name, mirror=FACE_5.mirrored).multiply_adds() == 2 * create_model(name).multiply_adds()


def test_mirror_averages_with_the_mirror_image(tmp_path):
    net = create_model("rcn-5").eval()
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    both = mirrored(path)
    x = images(2)
    reflected = net(x.flip(-1)).flip(-1)[:, FACE_5.mirrored]
    torch.testing.assert_close(both.net(x), (net(x) + reflected) / 2, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both.net(x.flip(-1)).flip(-1)[:, FACE_5.mirrored], both.net(x), rtol=1e-4, atol=1e-4)
    assert both.net.multiply_adds() == 2 * net.multiply_adds()
    save_weights(path, both)
    with pytest.raises(InputError, match="already"):
        mirrored(path)
    torch.testing.assert_close(load_weights(path).net(x), both.net(x))
    alone = KeypointSet("one", tuple("abcde"))
    save_weights(path, Weights(net, alone, "mtfl", [[0.5, 0.5]] * 5, {}))
    with pytest.raises(InputError, match="no left and right"):
        mirrored(path)
    with pytest.raises(InputError, match="mirror"):
        create_model("rcn-5", mirror=[0, 0, 1, 2, 3])


def test_smoothing_is_a_gaussian_over_the_probabilities(tmp_path):
    net = create_model("rcn-4", size=16).eval()
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    smooth = smoothed(path, 1.5)
    x = images(2, size=16)
    probability = net(x).detach().flatten(2).softmax(dim=2).view(2, 5, 16, 16).numpy()
    at = np.arange(16)
    distance = np.hypot(at[:, None] - at[None], 0)
    kernel = np.where(distance <= 5, np.exp(-0.5 * (distance / 1.5) ** 2), 0)  # cut at three sigma, rounded up
    kernel /= np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2).sum()
    expected = np.einsum("ij,bkjl,lm->bkim", kernel, probability, kernel)
    np.testing.assert_allclose(smooth.net(x).detach().exp().numpy(), expected, atol=1e-6)
    torch.testing.assert_close(smooth.net.train()(x), net(x))  # training sees the scores themselves
    assert smooth.net.multiply_adds() == net.multiply_adds() and smooth.net.tile == 1
    save_weights(path, smooth)
    assert load_weights(path).net.smooth == 1.5
    with pytest.raises(InputError, match="already"):
        smoothed(path, 1.0)
    with pytest.raises(InputError, match="smooth=2.5 must be from 0 to 2 cells"):
        create_model("rcn-4", size=16, smooth=2.5)


def test_shift_averages_over_five_positions(tmp_path):
    net = create_model("rcn-4", size=16).eval()
    path = tmp_path / "w.safetensors"
    save_weights(path, Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    five = shifted(path, 3)
    x = images(2, size=16)
    normalized, total = net.norm(x), 0
    for right, down in ((0, 0), (3, 3), (3, -3), (-3, 3), (-3, -3)):
        # by hand: each cell is copied from its source, or from the nearest cell if that is outside
        rows, columns = ((torch.arange(16) - by).clamp(0, 15) for by in (down, right))
        scores = net.scores(net.features(normalized[:, :, rows][..., columns]))
        rows, columns = ((torch.arange(16) + by).clamp(0, 15) for by in (down, right))
        total = total + scores[:, :, rows][..., columns] / 5
    torch.testing.assert_close(five.net(x), total, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(five.net.train()(x), net(x))  # training sees each image once
    assert five.net.multiply_adds() == 5 * net.multiply_adds()
    save_weights(path, five)
    assert load_weights(path).net.shift == 3
    with pytest.raises(InputError, match="already"):
        shifted(path)
    save_weights(path, mirrored(path))
    assert load_weights(path).net.multiply_adds() == 10 * net.multiply_adds()
    with pytest.raises(InputError, match="shift=5"):
        create_model("rcn-4", size=16, shift=5)
    assert create_model("rcn-4", mask=(1, 1, 1, 0)).tile == 2
    assert create_model("rcn-4", mask=(1, 1, 1, 0), shift=1).tile == 1  # scores are no longer constant over squares


def test_initialization_is_the_authors():
    torch.manual_seed(0)
    net = create_model("rcn-6")
    for weight, bound in ((net.trunk[0].weight, 0.36515), (net.branch["0"][0].weight, 0.13608),
                          (net.branch["0"][1].weight, 0.19675)):  # fmt: skip
        assert 0.9 * bound < weight.abs().max() <= bound + 1e-5
    assert all(not p.any() for n, p in net.named_parameters() if n.endswith("bias"))
    alpha = create_model("sumnet-4").alpha
    assert alpha.shape == (4, 5, 1, 1) and (alpha >= 0).all() and (alpha < 1).all()


def test_upsampling_is_tiling():
    x = torch.arange(4.0).reshape(1, 1, 2, 2)
    by_hand = x.repeat_interleave(3, 2).repeat_interleave(3, 3)[:, :, :5, :5]  # by three, last row and column dropped
    assert torch.equal(upsample(x, 5), by_hand)
    assert torch.equal(upsample(x, 80), x.repeat_interleave(40, 2).repeat_interleave(40, 3))


@pytest.mark.parametrize(("kernel", "coarse"), list(itertools.product((1, 3, 5), (5, 2, 10))))
def test_convolution_over_a_tiled_map(kernel, coarse):
    conv = Conv(7, 6, kernel).double()
    torch.nn.init.normal_(conv.bias)
    fine, low = torch.randn(2, 3, 10, 10).double(), torch.randn(2, 4, coarse, coarse).double()
    plain = conv(torch.cat([fine, F.interpolate(low, size=(10, 10))], dim=1))
    torch.testing.assert_close(conv_over_concat(conv, fine, low), plain)


def test_sumnet_is_equation_1():
    net = create_model("sumnet-4", alpha="pixel").double()
    maps = net.features(images().double())
    total = 0
    for level in range(4):
        first, last = net.branch[str(level)]
        m = last(F.relu(first(maps[level])))
        factor = 2**level
        total = total + net.alpha[level] * m.repeat_interleave(factor, 2).repeat_interleave(factor, 3)
    torch.testing.assert_close(net.scores(maps), total)


def test_rcn_is_equation_3():
    net = create_model("rcn-4").double()
    maps = net.features(images().double())
    m = None
    for level in (3, 2, 1, 0):
        x = maps[level] if m is None else torch.cat([maps[level], F.interpolate(m, scale_factor=2)], 1)
        for i, conv in enumerate(net.branch[str(level)]):
            x = conv(x)
            x = x if (level, i) == (0, 1) else F.relu(x)
        m = x
    torch.testing.assert_close(net.scores(maps), m)


@pytest.mark.parametrize("mask", [m for m in itertools.product((0, 1), repeat=4) if any(m)])
def test_masks_keep_the_named_branches(mask):
    """Table 1: coarsest first. A masked-out branch has no parameters, nor have trunk levels that only it needs."""
    included = [i for i, on in enumerate(reversed(mask)) if on]
    for family in ("rcn-4", "sumnet-4"):
        net = create_model(family, mask=mask)
        assert sorted(net.branch) == [str(i) for i in included]
        assert len(net.trunk) == included[-1] + 1
        assert net(images()).shape == (2, 5, 80, 80)
        assert (list(net.branch[str(included[0])])[-1]).out_channels == 5


def test_a_masked_out_rcn_branch_is_replaced_by_tiling():
    net = create_model("rcn-4", mask=(1, 0, 0, 1)).double()
    maps = net.features(images().double())
    low = maps[3]
    for conv in net.branch["3"]:
        low = F.relu(conv(low))
    first, last = net.branch["0"]
    x = torch.cat([maps[0], low.repeat_interleave(8, 2).repeat_interleave(8, 3)], 1)
    torch.testing.assert_close(net.scores(maps), last(F.relu(first(x))))


def test_one_branch_networks_of_both_families_are_equal():
    for mask in ((1, 0, 0, 0), (0, 0, 0, 1)):
        a, b = (create_model(f, mask=mask).layers() for f in ("rcn-4", "sumnet-4"))
        assert [(r.inputs, r.outputs, r.size) for r in a] == [(r.inputs, r.outputs, r.size) for r in b]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: create_model("rcn6"), "did you mean 'rcn-6'"),
        (lambda: create_model("rcn-7", size=20), "too small for 7 branches"),
        (lambda: create_model("rcn-4", mask=(1, 1, 1)), "must have 4 entries"),
        (lambda: create_model("rcn-4", mask=(0, 0, 0, 0)), "at least one"),
        (lambda: create_model("rcn-4", mask=(1, 2, 0, 1)), "0 or 1"),
        (lambda: create_model("rcn-4", mask="1011"), "mask: expected array, got str"),
        (lambda: create_model("rcn-4", width=float("nan")), "width: expected float > 0.0, got nan"),
        (
            lambda: create_model("rcn-4", upsampling="cubic"),
            "unknown upsampling 'cubic'; expected one of tile, bilinear",
        ),
        (lambda: create_model("rcn-4", alpha="map"), "alpha"),
        (lambda: create_model("rcn-4", form="new"), "unknown form 'new'; expected one of twice, code"),
        (lambda: create_model("sumnet-4", alpha="row"), "unknown alpha 'row'; expected one of map, pixel"),
        (lambda: create_model("rcn-4", keypoints=0), "keypoints: expected int >= 1, got 0"),
        (lambda: create_model("rcn-4", size="80"), "size: expected int, got str"),
        (lambda: create_model("denoiser-lite", layers=10**9), "layers: expected int <= 64"),
        (lambda: create_model("joint", image={}, denoiser={}, weight=1, iterations=0), "iterations: expected int >= 1"),
        (lambda: create_model("rcn-4")(torch.zeros(1, 1, 64, 64)), "expected images of shape"),
    ],
)
def test_errors_say_what_to_do(call, words):
    with pytest.raises(InputError, match=words):
        call()


def test_weights_are_averaged_tensor_by_tensor(tmp_path):
    paths = []
    for i, name in enumerate(("rcn-4", "rcn-4", "rcn-5")):
        torch.manual_seed(i)
        net = create_model(name, width=0.2)
        paths.append(tmp_path / f"{i}.safetensors")
        fitted = {"temperature": 2.0, "covered_below": [0.1] * 5}
        save_weights(paths[-1], Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {"epoch": i}, fitted))
    mean = average(paths[:2])
    assert load_weights(paths[0]).net.temperature == 2 and mean.net.temperature == 1 and not mean.calibration
    for key, value in mean.net.state_dict().items():
        a, b = (load_weights(p).net.state_dict()[key] for p in paths[:2])
        torch.testing.assert_close(value, (a + b) / 2)
    assert [t["epoch"] for t in mean.training["averaged"]] == [0, 1]
    for wrong, message in ((paths, "cannot be averaged with .* they differ in"), (paths[:1], "two or more")):
        with pytest.raises(InputError, match=message):
            average(wrong)


@pytest.mark.parametrize(("name", "mask", "tile"), [
    ("rcn-4", (1, 0, 0, 0), 8), ("rcn-4", (1, 1, 0, 0), 4), ("rcn-4", (1, 0, 0, 1), 1), ("sumnet-4", (0, 0, 1, 0), 2),
    ("rcn-6", (1, 0, 0, 0, 0, 0), 40), ("sumnet-6", (0, 1, 0, 0, 0, 0), 16),
])  # fmt: skip
def test_a_tile_of_equal_scores_is_decoded_to_its_center(name, mask, tile):
    torch.manual_seed(0)
    net = create_model(name, mask=mask, width=0.3).eval()
    x = torch.rand(4, 1, 80, 80) * 255
    assert net.tile == tile
    with torch.no_grad():
        scores, decoded = net(x), net.decode(net(x))
    side = 80 // tile
    coarse = scores[..., ::tile, ::tile]
    torch.testing.assert_close(scores, coarse.repeat_interleave(tile, 2).repeat_interleave(tile, 3))
    best = coarse.flatten(2).argmax(2)
    center = torch.stack([best % side, best // side], 2) * tile + tile / 2
    torch.testing.assert_close(decoded.highest, center)
    assert (decoded.points >= 0).all() and (decoded.points <= 80).all()
