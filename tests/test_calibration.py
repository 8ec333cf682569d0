"""Calibration: the temperature, the thresholds of occluded keypoints, reports and their command line."""

import json

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.table import load_table
from recombinator.evaluation import calibration, metrics
from recombinator.evaluation.plots import plot_reliability
from recombinator.keypoints import FACE_5, RADII, SURE
from recombinator.models import KeypointNet, create_model
from recombinator.predict.predictor import load
from recombinator.predict.result import Face
from recombinator.transforms.samples import fixed_samples
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights, save_weights


class Overconfident(KeypointNet):
    """Returns Gaussian maps, `spread` wide, around the points it is given plus errors of that spread; the maps are too
    confident by a factor."""

    size, channels, keypoints = 80, 1, 5
    spread = 2.0

    def __init__(self, factor):
        super().__init__()
        self.factor, self.anchor = factor, torch.nn.Parameter(torch.zeros(1))
        self.points = []

    def forward(self, pixels):
        points = self.points.pop(0)
        noise = self.spread * torch.randn(points.shape, generator=torch.Generator().manual_seed(len(self.points)))
        centers = torch.arange(80) + 0.5
        d = (centers - (points + noise)[..., None]) ** 2 / (2 * self.spread**2)
        return -self.factor * (d[:, :, 1, :, None] + d[:, :, 0, None, :])


@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_is_the_factor_of_overconfidence(factor, faces5, monkeypatch):
    net, table = Overconfident(factor), load_table(faces5 / "train.parquet")
    sample = calibration.fixed_samples

    def samples_that_the_network_knows(*arguments, **options):
        for pixels, points in sample(*arguments, **options):
            net.points.append(points)
            yield pixels, points

    monkeypatch.setattr(calibration, "fixed_samples", samples_that_the_network_knows)
    fitted = calibration.fit(net, table)
    assert fitted["temperature"] == pytest.approx(factor, rel=0.2)
    assert len(fitted["covered_below"]) == 5 and all(0 < v < 1 for v in fitted["covered_below"])


def test_a_masked_network_is_calibrated_by_its_own_decoding(faces5):
    """Cells that share a score are one cell, whose center is the prediction."""
    torch.manual_seed(0)
    net, table = create_model("rcn-4", width=0.2, mask=(1, 0, 0, 0)).eval(), load_table(faces5 / "valid.parquet")
    with torch.no_grad():
        points_of = calibration.collect(net, table, False, (1.0,))
        inputs, points = next(fixed_samples(table, 80, calibration.JITTER, torch.device("cpu")))
        decoded = net.decode(net(inputs))
    inside = ((points >= 0) & (points < 80)).all(dim=2)
    n = int(inside.sum())
    gap = (decoded.highest - points).abs().amax(dim=2)[inside]
    np.testing.assert_allclose(points_of["gap"][:n], gap.numpy(), atol=1e-4)
    np.testing.assert_allclose(points_of["within"][:n, 0], decoded.within[inside].numpy(), atol=1e-5)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("w") / "w.safetensors"
    net = create_model("rcn-4", width=0.2)
    save_weights(path, Weights(net, FACE_5, "mtfl", [[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.3, 0.7], [0.7, 0.7]], {}))
    return path


def test_from_the_command_line(weights, faces5, tmp_path):
    valid, out = faces5 / "train.parquet", tmp_path / "c.safetensors"
    run = CliRunner().invoke(app, ["calibrate", str(weights), "--data", str(valid), "--out", str(out)])
    assert run.exit_code == 0 and "temperature" in run.output, run.output
    loaded, before = load_weights(out), load_weights(weights)
    assert loaded.net.temperature == loaded.calibration["temperature"] and before.net.temperature == 1.0
    for a, b in zip(loaded.net.parameters(), before.net.parameters(), strict=True):
        assert torch.equal(a, b)
    picture, json_out = tmp_path / "r.png", tmp_path / "r.json"
    command = ["reliability", str(out), "--data", str(valid), "--json", str(json_out), "--plot", str(picture)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0 and picture.is_file(), run.output
    report = json.loads(json_out.read_text())
    assert [row["radius"] for row in report["plain"]] == list(RADII)
    shares = [row["right"] for row in report["plain"]]
    assert shares == sorted(shares) and 0 <= report["covered_auroc"] <= 1
    # one visible point in twenty, on the images that chose the threshold, with and without occlusion
    points = calibration.collect_both(loaded.net, load_table(valid))
    at = int(np.argmin(np.abs(np.log(np.array(calibration.TEMPERATURES) / loaded.net.temperature))))
    confidence, visible = points["within"][:, at, SURE], ~points["occluded"]
    flagged = confidence < np.array(loaded.calibration["covered_below"])[points["keypoint"]]
    assert flagged[visible].mean() == pytest.approx(0.05, abs=0.015)


def test_what_cannot_be_calibrated(faces5, tmp_path):
    save_weights(tmp_path / "t.safetensors", Weights(create_model("tcdcn"), FACE_5, "mtfl", [[0.5, 0.5]] * 5, {}))
    with pytest.raises(InputError, match="nothing to calibrate"):
        calibration.calibrate(tmp_path / "t.safetensors", faces5 / "valid.parquet")
    with pytest.raises(InputError, match="for rcn-68-300w: expected 68 keypoints"):
        calibration.calibrate("rcn-68-300w", faces5 / "valid.parquet")


def test_a_face_has_confidences_and_flags(weights, tmp_path):
    image = np.random.default_rng(0).integers(0, 255, (300, 300), np.uint8)
    box = [(60, 60, 150, 150)]
    (plain,) = load(weights).predict(image, boxes=box)
    assert plain.occluded is None and "covered" not in plain.to_dict()["keypoints"][0]
    with pytest.raises(InputError, match="not calibrated"):
        plain.ellipses()
    loaded = load_weights(weights)
    loaded.calibration = {"temperature": 1.0, "covered_below": [1.1, 0, 0, 0, 0]}
    save_weights(tmp_path / "c.safetensors", loaded)
    (face,) = load(tmp_path / "c.safetensors").predict(image, boxes=box)
    np.testing.assert_allclose(face.points, plain.points)
    assert face.occluded.tolist() == [True, False, False, False, False]
    steps = [face.probability_within(r) for r in (0.0, *face.reach, 1e9)]
    assert (np.diff(steps, axis=0) >= 0).all() and (steps[0] == 0).all()
    np.testing.assert_allclose(steps[3], face.confidence, rtol=1e-6)
    doubled = np.kron(image, np.ones((2, 2), np.uint8))
    (larger,) = load(tmp_path / "c.safetensors").predict(doubled, boxes=[(120, 120, 300, 300)], passes=1)
    (once,) = load(tmp_path / "c.safetensors").predict(image, boxes=box, passes=1)
    np.testing.assert_allclose(larger.reach, 2 * once.reach, rtol=0.03)  # whole-pixel crops


def test_ellipses():
    face = Face(
        np.zeros((3, 2)), np.ones(3), np.array([0.0, 0.0, 80.0]), FACE_5, within=np.ones((3, 5)), reach=np.arange(5.0),
        covariance=np.array([[4.0, 0, 1], [1, 0, 9], [2, 1, 2]]), occluded=np.zeros(3, bool),
    )  # fmt: skip
    ellipses = face.ellipses(deviations=1)
    np.testing.assert_allclose(ellipses[:, 0], [2, 3, 3**0.5])
    np.testing.assert_allclose(ellipses[:, 1], [1, 1, 1])
    np.testing.assert_allclose(np.abs(ellipses[:, 2]), [0, 90, 45])


def test_reliability_and_auroc():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 20000)
    correct = rng.uniform(0, 1, 20000) < confidence
    rows, error = metrics.reliability(confidence, correct)
    assert sum(r["points"] for r in rows) == 20000 and error < 0.02
    assert metrics.reliability(confidence**3, correct)[1] == pytest.approx(0.25, abs=0.02)  # mean of p - p^3
    score, positive = rng.normal(size=300).round(1), rng.uniform(size=300) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in score[positive] for b in score[~positive]]
    assert metrics.auroc(score, positive) == pytest.approx(np.mean(pairs))
    assert np.isnan(metrics.auroc(score, np.ones(300, bool)))


def test_nothing_of_the_reliability_plot_is_cut_off(tmp_path):
    rows = [
        {"radius": r, "error": 0.1, "curve": [{"confidence": c, "right": c} for c in (0.0, 0.5, 1.0)]} for r in RADII
    ]
    plot_reliability(tmp_path / "r.png", {"weights": "runs/a", "plain": rows, "covered": rows})
    picture = cv2.imread(str(tmp_path / "r.png"))
    for edge in (picture[:2], picture[-2:], picture[:, :2], picture[:, -2:]):
        assert (edge == 255).all()


def test_calibration_without_usable_points(weights, faces5):
    """A keypoint without a visible point is never flagged; a table without any point in its crops is an error."""
    net, table = load_weights(weights).net, load_table(faces5 / "test.parquet")
    table.mask[:, 2] = False
    fitted = calibration.fit(net, table)
    assert fitted["covered_below"][2] == 0 and fitted["covered_below"][0] > 0
    table.mask[:] = False
    with pytest.raises(InputError, match="no point of its test table is inside its crop"):
        calibration.fit(net, table)


@pytest.mark.parametrize(
    "calibrated",
    [
        {"covered_below": [0.1] * 5}, {"temperature": 0, "covered_below": [0.1] * 5},
        {"temperature": 1, "covered_below": [0.1]}, {"temperature": "warm", "covered_below": []},
    ],
)  # fmt: skip
def test_a_damaged_calibration_is_named(weights, calibrated):
    loaded = load_weights(weights)
    with pytest.raises(InputError, match="damaged calibration"):
        Weights(loaded.net, loaded.keypoints, loaded.crop_rule, loaded.template, {}, calibrated)


@pytest.mark.parametrize("name", ["rcn-6-mtfl", "rcn-68-300w", "joint-68-300w"])
def test_shipped_weights_are_calibrated(name):
    loaded = load_weights(name)
    assert loaded.calibration["temperature"] > 0 and loaded.calibration["split"] == "valid"
    assert len(loaded.calibration["covered_below"]) == len(loaded.keypoints) and 0.3 < loaded.calibration["least"] < 1


def test_refused_before_anything_is_measured(weights, faces5, tmp_path, monkeypatch):
    monkeypatch.setattr(calibration, "calibrate", lambda *a: pytest.fail("measured"))
    monkeypatch.setattr(calibration, "report", lambda *a, **k: pytest.fail("measured"))
    table = tmp_path / "valid.parquet"
    table.write_bytes((faces5 / "valid.parquet").read_bytes())
    before = table.read_bytes()
    for command, options, words in (
        ("calibrate", ["--out", str(table)], "would overwrite the input"),
        ("calibrate", ["--out", str(tmp_path / "a.onnx")], "must end in .safetensors"),
        ("calibrate", ["--out", str(tmp_path / "a.json")], "expected a JSON object"),
        ("reliability", ["--plot", str(tmp_path / "a.abc")], "must end in .png or .pdf"),
        ("reliability", ["--json", str(tmp_path / "r.json"), "--plot", str(table)], f"{table}: would overwrite"),
    ):
        with pytest.raises(InputError, match=words):
            CliRunner().invoke(app, [command, str(weights), "--data", str(table), *options], catch_exceptions=False)
    assert table.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == ["valid.parquet"]


def test_a_pair_moves_with_its_calibration(faces68, tmp_path):
    out = tmp_path / "elsewhere" / "pair.json"
    run = CliRunner().invoke(
        app, ["calibrate", "joint-68-300w", "--data", str(faces68 / "valid.parquet"), "--out", str(out)]
    )
    assert run.exit_code == 0, run.output
    assert load_weights(out).calibration["dataset"] == "synthetic"
