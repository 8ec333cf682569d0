"""fit with a finder: several objects per image, found without boxes, from one model file."""

import json
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import recombinator
from recombinator.cli import app
from recombinator.data.readers.own import prepare_points
from recombinator.data.table import load_table
from recombinator.fit import finder
from recombinator.fit.finder import by_image, finder_table, measure_found
from recombinator.fit.folds import fit_folds
from recombinator.fit.measure import Finding
from recombinator.fit.plan import Plan, changed, choose_where, decide, examine
from recombinator.fit.run import fit
from recombinator.fit.samples import read_samples
from recombinator.keypoints import KeypointSet
from recombinator.models import create_model
from recombinator.training.finder_task import group
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights

NAMES = ("nose", "left_ear", "right_ear")
SHAPE = np.array([[0, -12], [-8, 6], [8, 6]], float)
QUICK = {
    "size": 32, "factor": 1, "coarse_epochs": 1, "finder_epochs": 1, "finder_size": 160, "batch": 64,
}  # fmt: skip


def draw(folder, count, objects=2, size=(192, 128), seed=0):
    """Write images of several textured triangles each, and their points."""
    generator, rows = np.random.default_rng(seed), ["file,object,keypoint,x,y"]
    for i in range(count):
        image = generator.integers(150, 200, (size[1], size[0])).astype(np.uint8)
        cells = [(x, y) for x in range(size[0] // 64) for y in range(size[1] // 64)]
        for n, cell in enumerate(generator.permutation(cells)[:objects]):
            angle = np.radians(generator.uniform(-20, 20))
            rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
            points = SHAPE @ rotation.T + 64 * cell + generator.uniform(22, 42, 2)
            cv2.fillPoly(image, [np.rint(points).astype(np.int32)], 110)
            for k, (x, y) in enumerate(points):
                cv2.circle(image, (int(x), int(y)), 2 + k, 25 * k, -1)
                rows.append(f"{i}.png,{n},{NAMES[k]},{x:.2f},{y:.2f}")
        cv2.imwrite(str(folder / f"{i}.png"), image)
    (folder / "points.csv").write_text("\n".join(rows))
    return folder / "points.csv"


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("several"), 12)


@pytest.fixture(scope="module")
def fitted(several, tmp_path_factory):
    out = tmp_path_factory.mktemp("fit") / "run"
    return out, fit(several, out, settings=QUICK)


def seen_in(source):
    samples, keypoints = read_samples(source, None)
    return examine(samples, keypoints), keypoints


def test_a_finder_is_chosen_for_several_or_small_objects(several, tmp_path):
    seen, keypoints = seen_in(several)
    plan = decide(seen, keypoints)
    assert (plan.where, plan.rule, plan.finder_size) == ("finder", "object", 192)
    assert "up to 2" in plan.reasons[1]
    assert decide(seen, keypoints, boxes=True).where == "box"
    small = decide(*seen_in(draw(tmp_path, 10, objects=1, size=(512, 384))))
    assert (small.where, small.finder_size) == ("finder", 480)
    assert "4 % of the longer side" in small.reasons[1]
    plain = decide(*seen_in(draw(tmp_path, 10, objects=1)))
    assert (plain.where, plain.finder_size, plain.finder_epochs) == ("image", 0, 0)
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan


def test_the_choice_of_where_must_fit_the_data(several, tmp_path):
    seen, keypoints = seen_in(several)
    with pytest.raises(InputError, match="where=image: an image has 2 objects.*use where=finder"):
        decide(seen, keypoints, where="image")
    with pytest.raises(InputError, match="where='eye': expected one of image, finder, box"):
        decide(seen, keypoints, where="eye")
    with pytest.raises(InputError, match="--boxes: excludes where=finder"):
        decide(seen, keypoints, where="finder", boxes=True)
    with pytest.raises(InputError, match="a single keypoint has no size.*two or more keypoints"):
        decide(seen, KeypointSet("one", ("spot",)))
    with pytest.raises(InputError, match="--unlabeled: is for models that see the whole image"):
        fit(several, tmp_path / "run", unlabeled=tmp_path)
    assert choose_where(seen, False, "box")[0] == "box"
    single, keypoints = seen_in(draw(tmp_path, 10, objects=1))
    plan = changed(decide(single, keypoints, where="finder"), where="finder")
    assert plan.where == "finder"
    assert plan.reasons[-1] == "where: finder, as you set it"


def test_a_finder_learns_from_each_image_once_and_from_empty_parts(several):
    samples, keypoints = read_samples(several, None)
    table = finder_table(samples, keypoints, 160, 1, "train")
    images, squares = group(table, "object")
    empty = ~np.isfinite(squares.numpy()).all(axis=2).any(axis=1)
    assert len(images) == 12 + empty.sum()
    assert 0 < empty.sum() <= 3
    assert (np.isfinite(squares.numpy()).all(axis=2).sum(axis=1)[~empty] == 2).all()
    back = table.points[0] * table.to_file[0, 0, 0] + table.to_file[0, :, 2]
    np.testing.assert_allclose(back, samples[0].points, atol=0.02)
    for i in np.flatnonzero(~table.mask.any(axis=1)):  # neither a triangle nor its dark corners
        inside = table.images[i, 0, 8:-8, 8:-8]
        assert inside.min() > 130
    assert len(finder_table(samples, keypoints, 160, 1, "valid")) == 24


def test_a_gray_finder_starts_one_in_color():
    gray, color = create_model("finder", 3), create_model("finder", 3, channels=3)
    color.load_state_dict(color.adapt(gray.state_dict()))
    x = 255 * torch.rand(1, 1, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(color(x.expand(-1, 3, -1, -1)), gray(x), atol=1e-4, rtol=1e-4)


def test_one_file_holds_both_networks_and_takes_no_boxes(fitted, several):
    out, report = fitted
    weights = load_weights(out)
    assert weights.finder.net.task == "finding"
    assert weights.finder.crop_rule == weights.crop_rule == "object"
    assert weights.template == weights.finder.template
    predictor = recombinator.load(out)
    assert predictor.detector.engine.about.rule == "object"
    image = several.parent / "3.png"
    predictor.predict(image)
    assert predictor.noun == "object"
    assert len(predictor.predict(image, boxes=[(10, 10, 40, 40)])) == 1
    assert report["held_out"]["finding"]["objects"] == 10
    assert report["held_out"]["finding"]["images"] == 5
    assert report["training"]["objects"] == 14
    assert "finding" not in report["training"]
    page = (out / "report.html").read_text()
    assert f"found {report['held_out']['finding']['found']} of 10 objects" in page


def test_a_run_is_resumed_with_its_finder(fitted, several):
    out, report = fitted
    again = fit(several, out, resume=True)
    assert again["plan"] == report["plan"]
    assert again["held_out"]["finding"] == report["held_out"]["finding"]


@pytest.mark.slow
def test_folds_count_what_was_found(several, tmp_path):
    report = fit_folds(several, tmp_path, 6, settings=QUICK, only=[0, 1])
    assert report["finding"]["objects"] == 8
    assert report["finding"]["found"] + len(report["finding"]["missed"]) == 8


def test_misses_and_false_detections_are_counted(several, fitted, monkeypatch):
    samples, keypoints = read_samples(several, None)
    weights = load_weights(fitted[0])
    net = recombinator.load(fitted[0])
    by_file = {str(g[0].path): g for g in by_image(samples)}

    class Stub:
        about = net.about

        def __init__(self, engine):
            pass

        def predict(self, path):
            first = by_file[str(path)][0].points
            boxes = [(*p.min(axis=0), *np.ptp(p, axis=0)) for p in (first, first)]
            faces = net.predict(path, boxes=boxes)
            moved = [first + 1.5, first + 300]
            return [replace(f, points=p) for f, p in zip(faces, moved, strict=True)]

    monkeypatch.setattr(finder, "Predictor", Stub)
    found, seen = measure_found(weights, samples, keypoints)
    assert seen.finding == Finding(12, 24, 12, 12, [g[1].where for g in by_image(samples)])
    assert [s.face for s in found] == [g[0].face for g in by_image(samples)]
    np.testing.assert_allclose(seen.errors, 1.5 * np.sqrt(2))
    assert "found 12 of 24 objects (50.0 %), 1.00 false detections per image" in seen.sentence()
    joined = type(seen).joined([seen, seen])
    assert (joined.finding.objects, joined.finding.false, len(joined.finding.missed)) == (48, 24, 24)


def test_whole_images_of_your_own_points(several, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    for i in range(4):
        cv2.imwrite(str(empty / f"{i}.png"), np.full((50, 80), 40 * i, np.uint8))
    counts = prepare_points(several, tmp_path / "t", size=128, whole=True, backgrounds=empty)
    assert counts == {"train": 23, "valid": 3, "test": 2, "dropped": 0}
    table = load_table(tmp_path / "t" / "train.parquet")
    assert table.info.crop_rule == "image"
    images, squares = group(table, "object")
    assert len(images) == 13
    assert np.isfinite(squares.numpy()).all(axis=2).sum() == 20
    run = CliRunner().invoke(
        app, ["prepare", "points", str(several), str(tmp_path / "u"), "--backgrounds", str(empty)]
    )  # fmt: skip
    assert isinstance(run.exception, InputError)
    assert str(run.exception) == "--backgrounds: for whole images only; add --whole"


def test_the_plan_is_printed(several, tmp_path):
    run = CliRunner().invoke(
        app, ["fit", str(several), "--out", str(tmp_path / "run"), "--plan", "--minutes", "1"], catch_exceptions=False
    )  # fmt: skip
    assert run.exit_code == 0
    assert "where: a finder network finds the objects; an image has up to 2" in run.output
    assert "time: finder " in run.output
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_fitted_model_finds_all_objects(tmp_path):
    (tmp_path / "train").mkdir()
    (tmp_path / "test").mkdir()
    source, test = draw(tmp_path / "train", 40), draw(tmp_path / "test", 8, objects=3, seed=1)
    settings = {"size": 48, "factor": 1, "coarse_epochs": 12, "finder_epochs": 8, "finder_size": 192}
    fit(source, tmp_path / "run", settings=settings)
    samples, keypoints = read_samples(test, None)
    _, seen = measure_found(load_weights(tmp_path / "run"), samples, keypoints)
    assert seen.finding.found >= 0.9 * 24
    assert seen.finding.false <= 2
    assert np.median(seen.known_errors) < 2
    recombinator.export(tmp_path / "run", tmp_path / "m.onnx")
    image = samples[0].path
    both = [recombinator.load(m).predict(image) for m in (tmp_path / "run", tmp_path / "m.onnx")]
    assert len(both[0]) == len(both[1]) >= 2
    for a, b in zip(*both, strict=True):
        np.testing.assert_allclose(a.points, b.points, atol=0.05)
