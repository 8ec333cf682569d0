"""`study tools`: points of other tools, their offsets, workers, tables."""

import json
import subprocess
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.images import SAMPLE_PHOTOGRAPH, read_image
from recombinator.evaluation.photographs import match
from recombinator.predict.finder import face_finder
from recombinator.predict.predictor import load
from recombinator.study import tools, whole_images
from recombinator.study.negatives import patches, write_negatives
from recombinator.study.render import render_text
from recombinator.study.tool_points import MAPPINGS, TEMPLATE, Found, correct, offsets, summarize, to_five
from recombinator.study.tool_worker import TOOLS
from recombinator.utils.errors import InputError

OFFSET = np.array([[0.05, -0.02], [-0.05, -0.02], [0, 0.1], [0.03, 0], [0, -0.04]])


def faces(count, seed=0):
    """(count, 5, 2) faces of different sizes, rotations and places."""
    rng = np.random.default_rng(seed)
    result = []
    for _ in range(count):
        angle, size = rng.uniform(-1, 1), rng.uniform(20, 80)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        result.append((TEMPLATE + rng.normal(0, 0.02, (5, 2))) @ turn * size + rng.uniform(50, 400, 2))
    return np.array(result)


@pytest.mark.parametrize("count", sorted(MAPPINGS))
def test_points_are_mapped_to_five(count):
    points = np.zeros((count, 2))
    for (x, y), indices in zip(TEMPLATE, MAPPINGS[count], strict=True):
        spread = np.linspace(-0.1, 0.1, len(indices)) if len(indices) > 1 else [0]
        for index, d in zip(indices, spread, strict=True):
            points[index] = x + d, y
    assert np.allclose(to_five(points), TEMPLATE)


def test_another_number_of_points_is_an_error():
    with pytest.raises(InputError, match="other: expected 5, 68, 468 points, got 7"):
        to_five(np.zeros((7, 2)), "other")


def test_a_constant_offset_is_removed_at_any_size_and_rotation():
    true = faces(60)
    predicted = np.array([correct(t, -OFFSET) for t in true])
    found = offsets(predicted[:40], true[:40])
    assert np.abs(found - OFFSET).max() < 0.02
    size = np.linalg.norm(true[40:, 1] - true[40:, 0], axis=1)[:, None]
    before = np.linalg.norm(predicted[40:] - true[40:], axis=2) / size
    after = np.linalg.norm([correct(p, found) for p in predicted[40:]] - true[40:], axis=2) / size
    assert before.mean() > 0.04 and after.mean() < 0.01


def test_offsets_without_faces_or_annotations_are_zero():
    assert (offsets([], []) == 0).all()
    true = faces(3)
    unknown = true.copy()
    unknown[:, 2] = np.nan
    assert (offsets(true - 1, unknown)[2] == 0).all() and (offsets(true - 1, unknown)[0] != 0).all()


def test_each_prediction_belongs_to_one_face():
    a, b, far = TEMPLATE * 40, TEMPLATE * 40 + 200, TEMPLATE * 40 + 1000
    assert match([b + 1, a + 2, far], [a, b], [40.0, 40.0]) == ([1, 0], 1)
    assert match([a], [a, a], [40.0, 40.0]) == ([0, None], 0)
    assert match([], [a], [40.0]) == ([None], 0)
    assert match([a + 20], [a], [40.0]) == ([None], 1)  # 0.7 eye distances away


def test_errors_are_compared_on_the_faces_that_all_tools_found():
    true = TEMPLATE[None] * 100 + np.zeros((3, 1, 1))
    near, far = [t + [3.0, 0] for t in true], [t + [9.0, 0] for t in true]
    first = Found([near[0], near[1], far[2]])
    second = Found([near[0], near[1], None], [0.04], 2)
    rows = summarize(["first", "second"], [first, second], true, [np.zeros((5, 2)), np.tile([-0.03, 0], (5, 1))])
    assert [r["found"] for r in rows] == [3, 2] and [r["shared"] for r in rows] == [2, 2]
    assert rows[0]["nme"] == pytest.approx(5) and rows[0]["nme_shared"] == pytest.approx(3)
    assert rows[1]["nme_corrected"] == pytest.approx(0, abs=1e-6) and rows[1]["others"] == 2
    assert rows[0]["nme_68"] is None and rows[1]["nme_68"] == pytest.approx(4)


def test_a_worker_gives_the_points_of_predict():
    tool = tools.network("rcn-6-fast-mtfl-int8", "")
    image = read_image(SAMPLE_PHOTOGRAPH)
    with tools.Worker(tool, tools.python_of(None, tool, False)) as worker:
        worker.start()
        worker.send(image)
        found, milliseconds = worker.receive()
    expected = load(tool.option, threads=1).predict(image)
    assert np.allclose(found, [f.points for f in expected], atol=1e-3) and len(found) == 1 and milliseconds > 0


def test_a_worker_that_fails_gives_one_sentence():
    tool = tools.network("no-such-network", "")
    failure = pytest.raises(InputError, match="no-such-network: ended with status 1: .*InputError")
    with tools.Worker(tool, tools.python_of(None, tool, False)) as worker, failure:
        worker.start()


def test_every_tool_has_a_worker_and_pinned_packages():
    assert {t.kind for t in tools.OTHERS} | {"recombinator"} == set(TOOLS)
    assert all("==" in r for t in tools.OTHERS for r in t.requirements)


def test_a_missing_environment_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"mediapipe: has no environment of MediaPipe Face Mesh; add --install"):
        tools.python_of(tmp_path, tools.OTHERS[0], False)


def test_what_pip_refuses_is_an_error(tmp_path, monkeypatch):
    text = "WARNING: old\nERROR: No matching distribution found\n[notice] a new pip\n"
    monkeypatch.setattr(tools.venv, "create", lambda *a, **k: None)
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=1, stderr=text))
    with pytest.raises(InputError, match="cannot install mediapipe==.*: ERROR: No matching distribution found$"):
        tools.python_of(tmp_path, tools.OTHERS[0], True)


def test_both_folders_of_68_points_are_needed(tmp_path):
    given = ["--envs", tmp_path, "--data", tmp_path, "--photos", tmp_path, "--data-68", tmp_path]
    outcome = CliRunner().invoke(app, ["study", "tools", *map(str, given)])
    assert isinstance(outcome.exception, InputError) and "--photos-68" in str(outcome.exception)


def test_the_table_is_rendered():
    true = TEMPLATE[None] * 100
    rows = summarize(["ours", "other"], [Found([true[0] + 1]), Found([None])], true, [np.zeros((5, 2))] * 2)
    report = {
        "kind": "tools",
        "rows": [{"set": "MTFL", "split": split, **r} for split in ("valid", "test") for r in rows],
        "times": [{"set": "MTFL", "tool": t, "median": m, "ratio": m / 4} for t, m in (("ours", 4.0), ("other", 2.0))],
        "tools": {"other": {"versions": {"package": "1.2"}, "license": "MIT", "training": "photographs"}},
        "provenance": {"date": "2026-01-01", "machine": {"processor": "a processor"}},
    }
    results = {"tools": json.loads(json.dumps(report))}
    text = render_text("<!-- results: tools -->\n<!-- end -->", results, "docs/results.md")
    assert "[tools](../results/tools.json), 2026-01-01, a processor:" in text
    assert "| MTFL validation | other | 0 of 1 (0.0 %) | - | - | - | - | 2.0 (0.50) |" in text
    assert "| AFLW | ours | 1 of 1 (100.0 %) | 1.41 [1.41, 1.41] | - | - | - | - |" in text
    assert "| other | package 1.2 | MIT | photographs |" in text
    assert whole_images.tools_table({}) == ""


def test_false_alarms_of_the_finder_are_collected_away_from_faces(tmp_path):
    image = read_image(SAMPLE_PHOTOGRAPH)
    cv2.imwrite(str(tmp_path / "portrait.png"), image[..., ::-1])
    noise = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (300, 400), np.uint8), (0, 0), 4)
    cv2.imwrite(str(tmp_path / "noise.png"), cv2.normalize(noise, None, 0, 255, cv2.NORM_MINMAX))
    detector = face_finder()
    detector.threshold = 0.05
    predictor = load("rcn-6-fast-mtfl", detector, threads=1)
    face = predictor.predict(image)[0]
    square = np.array([[*(face.box[:2] + face.box[2] / 2), face.box[2], 0.0]])
    found = patches(predictor, image, square, np.random.default_rng(0))
    assert found and all(p.ndim == 2 and min(p.shape) >= 14 and max(p.shape) <= 256 for p in found)
    everywhere = np.array([[image.shape[1] / 2, image.shape[0] / 2, 2000.0, 0.0]])
    assert patches(predictor, image, everywhere, np.random.default_rng(0)) == []
    # the face itself is avoided although nobody annotated it
    unknown = patches(predictor, image, np.zeros((0, 4)), np.random.default_rng(0))
    assert unknown and not any(load("rcn-6-fast-mtfl", threads=1).predict(p) for p in unknown)
    count = write_negatives("rcn-6-fast-mtfl", tmp_path / "out", data=None, photographs=tmp_path)
    assert count == len(list((tmp_path / "out").iterdir())) > 0
    with pytest.raises(InputError, match="holds files"):
        write_negatives("rcn-6-fast-mtfl", tmp_path / "out", data=None, photographs=tmp_path)
