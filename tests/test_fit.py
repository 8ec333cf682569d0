"""fit: decisions from data, the coarse-to-fine network, and the way from a points file to a model that predicts."""

import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from torch import nn

import recombinator
from recombinator.data.crops import RULES
from recombinator.fit.folds import fit_folds
from recombinator.fit.plan import Plan, changed, decide, examine
from recombinator.fit.run import fit, hold_out
from recombinator.fit.samples import read_samples, training_tables, whole_table
from recombinator.keypoints import KeypointSet
from recombinator.models import Cascade
from recombinator.utils.errors import InputError

QUICK = {"size": 32, "factor": 2, "patch": 32, "coarse_epochs": 1, "fine_epochs": 1, "batch": 64}
PAIRS = KeypointSet("own-3", ("nose", "left_ear", "right_ear"), ((1, 2),))
SHAPE = np.array([[0, -12], [-8, 6], [8, 6]], float)


def draw(folder, count, turn=0, shape=SHAPE, names=PAIRS.names):
    """Write images of one object each, and their points; the object is turned by up to `turn` degrees."""
    generator, rows = np.random.default_rng(0), ["file,keypoint,x,y"]
    for i in range(count):
        image = np.full((64, 96), 200, np.uint8)
        angle = np.radians(generator.uniform(-turn, turn))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = shape @ rotation.T + generator.uniform((20, 20), (76, 44))
        for k, (x, y) in enumerate(points):
            cv2.circle(image, (int(x), int(y)), 2 + k, 30 * k, -1)
        cv2.imwrite(str(folder / f"{i}.png"), image)
        rows += [f"{i}.png,{n},{x:.2f},{y:.2f}" for n, (x, y) in zip(names, points, strict=True)]
    (folder / "points.csv").write_text("\n".join(rows))
    return folder / "points.csv"


@pytest.fixture(scope="module")
def upright(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("upright"), 12, turn=5)


def plan_of(source, **options):
    samples, keypoints = read_samples(source, None)
    return decide(examine(samples, keypoints), keypoints, **options)


def test_decisions_follow_the_data(upright, tmp_path):
    still = plan_of(upright)
    assert (still.where, still.rule, still.channels) == ("image", "image", 1)
    assert still.degrees == 10
    assert still.flip  # the mirrored shape is the same shape
    assert len(still.reasons) >= 7
    assert plan_of(draw(tmp_path, 12, turn=180)).degrees == 180


def test_no_flip_without_symmetry_or_pairs(tmp_path):
    bent = SHAPE + [[9, 0], [0, 0], [0, -9]]
    assert not plan_of(draw(tmp_path, 12, turn=2, shape=bent)).flip
    assert not plan_of(draw(tmp_path, 12, turn=2, names=("a", "b", "c"))).flip


def test_changed_decisions_are_checked(upright):
    plan = plan_of(upright)
    assert changed(plan, size="96", flip="false").size == 96
    assert not changed(plan, flip="false").flip
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    with pytest.raises(InputError, match="unknown setting 'sise'"):
        changed(plan, sise=3)
    with pytest.raises(InputError, match="expected a value of type int"):
        changed(plan, size="large")
    with pytest.raises(InputError, match="flip='maybe': expected a value of type bool: true or false"):
        changed(plan, flip="maybe")


def test_a_damaged_plan_is_named(upright, tmp_path):
    for text in ("{", "[]", '{"size": 80, "reasons": []}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(InputError, match="plan.json.*: not a plan of `recombinator fit`; choose another --out"):
            fit(upright, tmp_path, resume=True)


def test_held_out_images_are_no_training_images(upright):
    samples, _ = read_samples(upright, None)
    train, held_out = hold_out(samples)
    assert {s.file for s in train}.isdisjoint(s.file for s in held_out)
    assert len(train) + len(held_out) == 12
    with pytest.raises(InputError, match="10 or more"):
        hold_out(samples[:9])


def test_training_points_are_where_the_pixels_are(upright):
    samples, keypoints = read_samples(upright, None)
    coarse, fine = training_tables(samples, keypoints, "image", 32, 2, 32, 1)
    full = whole_table(samples, keypoints, "image", 96, 1, "test")
    assert (len(coarse), len(fine), len(full)) == (12, 36, 12)
    assert RULES["image"].stored_size(64) == coarse.images.shape[-1] == 160
    for table, of in ((coarse, samples), (full, samples), (fine, [s for s in samples for _ in range(3)])):
        for i, sample in enumerate(of):
            back = table.points[i] * table.to_file[i, 0, 0] + table.to_file[i, :, 2]
            np.testing.assert_allclose(back[table.mask[i]], sample.points[table.mask[i]], atol=0.02)
    for i in range(3):  # the dark first point
        x, y = fine.points[3 * i, 0].astype(int)
        assert fine.images[3 * i, 0, y, x] < 60


class Peak(nn.Module):
    """Scores that are the brightness of the input, for every keypoint."""

    def __init__(self, size, sharp):
        super().__init__()
        self.size, self.keypoints, self.channels, self.config, self.sharp = size, 2, 1, {}, sharp

    def forward(self, x):
        return (self.sharp * x).expand(-1, 2, -1, -1)


def test_a_cascade_refines_in_input_pixels():
    x = torch.zeros(3, 1, 128, 128)
    spots = [(20, 30), (100, 5), (127, 127)]
    for i, (column, row) in enumerate(spots):
        x[i, 0, row, column] = 255
    net = Cascade(Peak(32, 2.0), Peak(16, 1.0), 4, weight=1.0)
    found = net.decode(net(x))
    expected = torch.tensor(spots)[:, None].expand(-1, 2, -1) + 0.5
    torch.testing.assert_close(found.highest, expected)
    torch.testing.assert_close(found.points, expected, atol=0.01, rtol=0)
    assert (found.confidence > 0.99).all()


def test_a_distant_fine_maximum_cannot_win():
    x = torch.zeros(1, 1, 128, 128)
    # the fine network prefers the second one, 28 pixels away in the same patch
    x[0, 0, 64, 64], x[0, 0, 66, 92] = 215, 255
    coarse = SimpleNamespace(scores=torch.full((1, 2, 32, 32), -20.0))
    coarse.scores[0, :, 16, 16] = 0
    net = Cascade(Peak(32, 1.0), Peak(64, 1.0), 4)
    net.fine.sharp = 0.1
    alone = Cascade(Peak(32, 1.0), net.fine, 4, weight=0.0)
    far, near = (n.decode(n.refine(x, coarse.scores)).highest[0, 0].tolist() for n in (alone, net))
    assert far == [92.5, 66.5]
    assert near == [64.5, 64.5]


def test_networks_of_a_cascade_must_match():
    other = Peak(16, 1.0)
    other.keypoints = 3
    with pytest.raises(InputError, match="expected the same"):
        Cascade(Peak(32, 1.0), other, 4)
    with pytest.raises(InputError, match="do not fit"):
        Cascade(Peak(8, 1.0), Peak(64, 1.0), 4)


@pytest.fixture(scope="module")
def fitted(upright, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "run"
    report = fit(upright, out, settings=QUICK)
    return out, report


def test_fit_writes_a_model_that_finds_the_object_without_a_box(fitted, upright, tmp_path):
    out, report = fitted
    image = upright.parent / "3.png"
    predictor = recombinator.load(out)
    faces = predictor.predict(image)
    assert len(faces) == 1
    assert faces[0].points.shape == (3, 2)
    assert faces[0].keypoints.names == PAIRS.names
    with pytest.raises(InputError, match="leave the boxes out"):
        predictor.predict(image, boxes=[(0, 0, 50, 50)])
    assert report["held_out"]["objects"] == 5
    assert report["held_out"]["points"] == 15
    assert json.loads((out / "report.json").read_text())["training"]["objects"] == 7
    page = (out / "report.html").read_text()
    assert "data:image/jpeg;base64," in page
    assert "http" not in page


def test_a_cascade_is_stored_whole(fitted, tmp_path):
    from recombinator.weights.files import load_weights, save_weights

    out, _ = fitted
    weights = load_weights(out)
    parts = [
        recombinator.create_model(**{**weights.net.config.get(n, weights.net.config), "size": s})
        for n, s in (("coarse", 32), ("fine", 32))
    ]
    weights.net = Cascade(*parts, 2, 0.5, 1.2).eval()
    weights.calibration = {}
    save_weights(tmp_path / "both.safetensors", weights)
    again = load_weights(tmp_path / "both.safetensors").net
    x = torch.rand(2, 1, 64, 64) * 255
    with torch.inference_mode():
        torch.testing.assert_close(again.decode(again(x)).points, weights.net.decode(weights.net(x)).points)
    assert again.config == weights.net.config


def test_a_run_is_not_replaced_and_can_be_resumed(fitted, upright, tmp_path):
    out, report = fitted
    with pytest.raises(InputError, match="--resume"):
        fit(upright, out, settings=QUICK)
    with pytest.raises(InputError, match="nothing to resume"):
        fit(upright, tmp_path / "none", resume=True)
    again = fit(upright, out, resume=True)
    assert again["held_out"]["mean"] == pytest.approx(report["held_out"]["mean"], rel=1e-5)


def test_folds_predict_every_image_once(upright, tmp_path):
    report = fit_folds(upright, tmp_path, 6, settings={**QUICK, "factor": 1}, only=[1])
    assert report["folds_run"] == [2]
    assert report["objects"] == 2
    assert report["per_keypoint"][0]["points"] == 2


def test_models_for_boxes_take_boxes(upright, tmp_path):
    fit(upright, tmp_path / "run", boxes=True, settings=QUICK)
    samples, _ = read_samples(upright, None)
    low, high = samples[0].points.min(axis=0), samples[0].points.max(axis=0)
    faces = recombinator.load(tmp_path / "run").predict(samples[0].path, boxes=[(*low, *(high - low))])
    assert len(faces) == 1
    assert np.isfinite(faces[0].points).all()


@pytest.mark.slow
def test_a_fitted_model_exports(fitted, upright, tmp_path):
    out, _ = fitted
    recombinator.export(out, tmp_path / "m.onnx")
    image = upright.parent / "3.png"
    points = [recombinator.load(m).predict(image)[0].points for m in (out, tmp_path / "m.onnx")]
    np.testing.assert_allclose(*points, atol=0.02)


def test_errors_in_millimeters_need_every_pixel_size():
    from recombinator.fit.measure import Measured

    true = np.zeros((2, 2, 2))
    predicted = true + [3.0, 4.0]
    known, ones = np.array([[True, True], [True, False]]), np.ones((2, 2))
    seen = Measured(true, predicted, known, ones, ones, np.ones(2), ["a", "b"], np.array([0.1, 0.9]))
    row = seen.summary()
    assert row["mean"] == 5
    assert row["mean_mm"] == pytest.approx((0.5 + 0.5 + 4.5) / 3)
    assert row["within_mm"]["2"] == pytest.approx(2 / 3)
    seen.mm[0] = np.nan
    assert "mean_mm" not in seen.summary()
