import pytest
import torch
import torch.nn.functional as F
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.evaluation.tables import choose_joint, compare, evaluate
from recombinator.keypoints import FACE_5, FACE_68
from recombinator.models import Joint, create_model
from recombinator.models.decode import maximum
from recombinator.models.denoiser import MapDenoiser
from recombinator.models.spectral import SpectralConv
from recombinator.training.start import copy_matching
from recombinator.transforms.samples import BLANK
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, join, load_weights, save_weights


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


@pytest.mark.parametrize(("kernel", "size"), [(45, 80), (7, 20), (5, 6), (3, 31)])
def test_spectra_equal_the_dense_convolution(kernel, size):
    conv = SpectralConv(6, 6, kernel, size).double()
    torch.nn.init.normal_(conv.bias)
    maps = torch.randn(2, 6, size, size, dtype=torch.float64)
    dense = F.conv2d(maps, conv.weight, conv.bias, padding=kernel // 2)
    for mode in (True, False):
        conv.train(mode)
        torch.testing.assert_close(conv(maps.permute(3, 2, 1, 0)).permute(3, 2, 1, 0), dense, atol=1e-9, rtol=1e-9)
    cells = some_cells(2, 6, size)
    dense = F.conv2d(one_hot(cells, size), conv.weight, conv.bias, padding=kernel // 2)
    for mode in (True, False):
        conv.train(mode)
        torch.testing.assert_close(conv.from_cells(cells).permute(3, 2, 1, 0), dense, atol=1e-9, rtol=0)


def test_the_papers_size():
    assert sum(p.numel() for p in MapDenoiser().parameters()) == 25_406_212


def test_training_and_inference_agree_and_learn():
    net = MapDenoiser(5, size=20, kernel=9, width=6)
    cells = some_cells(3, 5, 20)
    trained = net.train()(cells)
    assert trained.shape == (3, 5, 20, 20)
    torch.testing.assert_close(trained, net.eval()(cells), atol=1e-4, rtol=1e-4)
    trained.logsumexp((2, 3)).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in net.parameters())
    with torch.no_grad():
        net.large[1].weight += 1  # cached spectra must not survive a training step
    changed = net.train().eval()(cells)
    assert not torch.allclose(changed, trained)


def test_loading_weights_drops_the_cached_spectra():
    net, other = (MapDenoiser(5, size=20, kernel=9, width=6).eval() for _ in range(2))
    cells = some_cells(3, 5, 20)
    net(cells), other(cells)
    net.load_state_dict(other.state_dict())
    torch.testing.assert_close(net(cells), other(cells))


def test_a_coarse_denoiser_starts_a_fine_one():
    torch.manual_seed(0)
    coarse, fine = (
        MapDenoiser(5, size=40, kernel=23, width=6).eval(),
        MapDenoiser(5, size=80, kernel=45, width=6).eval(),
    )
    x = torch.linspace(-1, 1, 23)
    bell = torch.exp(-4 * (x[:, None] ** 2 + x**2))  # smooth kernels, as trained ones are
    for conv in coarse.large:
        conv.weight.data = conv.weight.data.mean((2, 3), keepdim=True) * 20 * bell
    assert set(copy_matching(coarse.state_dict(), fine)) == set(fine.state_dict())
    cells = torch.tensor([[[40, 40], [30, 44], [50, 50], [20, 60], [61, 33]]])
    wide, small = fine(cells), coarse(cells // 2)
    shrunk = F.avg_pool2d(wide, 2)
    assert (shrunk - small).abs().max() < 0.05 * small.abs().max()


def small_joint(weight=1.0, iterations=1):
    image = create_model("rcn-4", 5, size=24, width=0.25)
    denoiser = create_model("denoiser", 5, size=24, kernel=9, width=6)
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


def test_different_sizes_cannot_be_joined():
    with pytest.raises(InputError, match="cannot be joined"):
        Joint(create_model("rcn-4", 5), create_model("denoiser", 5, size=24, kernel=9, width=6))


def test_invalid_cells_and_kernels():
    net = MapDenoiser(5, size=20, kernel=9, width=6)
    for cells in (torch.zeros(1, 4, 2).long(), torch.full((1, 5, 2), 20), torch.full((1, 5, 2), -2)):
        with pytest.raises(InputError, match="expected"):
            net(cells)
    with pytest.raises(InputError, match="must be odd"):
        MapDenoiser(kernel=44)


def test_a_pair_file_is_the_joint_of_its_parts_and_follows_them(tmp_path):
    net = small_joint()
    for name, part in (("image", net.image), ("denoiser", net.denoiser)):
        save_weights(tmp_path / f"{name}.safetensors", Weights(part, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    parts = [str(tmp_path / f"{n}.safetensors") for n in ("image", "denoiser")]
    run = CliRunner().invoke(app, ["join", *parts, "--weight", "0.7", "--out", str(tmp_path / "pair.json")])
    assert run.exit_code == 0, run.output
    loaded, x = load_weights(tmp_path / "pair.json"), 255 * torch.rand(2, 1, 24, 24)
    torch.testing.assert_close(loaded.net(x), join(*parts, 0.7).net(x))
    (tmp_path / "pair.json").write_text('{"image": "image.safetensors"}')
    with pytest.raises(InputError, match="pair.json: expected a JSON object"):
        load_weights(tmp_path / "pair.json")


def test_choosing_the_denoisers_weight(tmp_path, faces68):
    image = create_model("rcn-68", width=0.2)
    parts = [tmp_path / f"{n}.safetensors" for n in ("image", "denoiser")]
    for path, part in zip(parts, (image, create_model("denoiser-lite", width=8, layers=1, heads=1)), strict=True):
        save_weights(path, Weights(part, FACE_68, "300w", [[0.5, 0.5]] * 68, {}))
    tried = choose_joint(join(*parts), faces68 / "valid.parquet")
    alone = evaluate(parts[0], faces68 / "valid.parquet")[1]["nme_paper"]
    assert tried[0]["weight"] == 0 and tried[0]["plain"] == pytest.approx(alone, rel=0.05)  # no clamping in `plain`
    assert tried[0]["occluded"] != tried[0]["plain"] and len({(r["weight"], r["iterations"]) for r in tried}) == 13
    command = ["join", *map(str, parts), "--choose", str(faces68 / "valid.parquet"), "--out", str(tmp_path / "j.json")]
    assert CliRunner().invoke(app, command).exit_code == 0
    best = min(tried, key=lambda r: r["plain"] + r["occluded"])
    assert load_weights(tmp_path / "j.json").net.weight == best["weight"]


def test_comparison_is_paired_and_of_the_same_images(tmp_path, faces5):
    for seed in (0, 1):
        torch.manual_seed(seed)
        net = create_model("rcn-4", width=0.2)
        save_weights(tmp_path / f"{seed}.safetensors", Weights(net, FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    names, data = [str(tmp_path / f"{i}.safetensors") for i in (0, 1, 0)], faces5 / "test.parquet"
    rows = compare(names, data)["rows"]
    report = evaluate(names[1], data)[1]
    assert rows[1]["nme_paper_all"] == pytest.approx(report["nme_paper"])
    assert rows[1]["nme_all_difference"] == pytest.approx(report["nme"] - evaluate(names[0], data)[1]["nme"])
    assert all(v == 0 for k in ("nme_all", "nme_worst_tenth") for v in rows[2][f"{k}_difference_ci95"])
    worst = evaluate(names[0], data)[0].image_errors("continuous").max()  # 6 images: a tenth is one
    assert rows[0]["nme_worst_tenth"] == pytest.approx(100 * worst)
    covered = compare(names[:2], data, occlude=True)
    assert covered["occluded"] and covered["rows"][0]["nme_all"] != rows[0]["nme_all"]
    assert evaluate(names[0], data, occlude=True)[1]["nme"] == pytest.approx(covered["rows"][0]["nme_all"])
    with pytest.raises(InputError, match="two or more"):
        compare(names[:1], data)
    run = CliRunner().invoke(app, ["compare", *names, "--data", str(data), "--json", str(tmp_path / "c.json")])
    assert run.exit_code == 0 and "worst" in run.output and (tmp_path / "c.json").is_file()
