"""Evaluation on whole photographs, detection included, and the passes of the face detector."""

import json
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.readers.own import prepare_points
from recombinator.evaluation.photographs import evaluate_photographs
from recombinator.predict.detect import CascadePass, HaarDetector
from recombinator.predict.predictor import load
from recombinator.utils.errors import InputError

HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


@pytest.fixture(scope="module")
def hopper():
    return cv2.imread(str(HOPPER))[..., ::-1].copy()


@pytest.mark.parametrize(
    "look",
    [
        CascadePass(degrees=35),
        CascadePass(degrees=-90),
        CascadePass(mirrored=True),
        CascadePass(degrees=20, mirrored=True),
    ],
)
def test_boxes_are_mapped_back_from_a_rotated_photograph(look, hopper):
    """The detector sees a photograph upright that is rotated the other way; the box is on the rotated face."""
    (detection,) = HaarDetector().detect(hopper)
    upright = np.array(detection.box)
    center = upright[:2] + upright[2:] / 2
    height, width = hopper.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -look.degrees, 1.0)
    image, expected = cv2.warpAffine(hopper, turn, (width, height)), turn[:, :2] @ center + turn[:, 2]
    boxes = np.array([d.box for d in HaarDetector()._run(image, look)])
    distances = np.linalg.norm(boxes[:, :2] + boxes[:, 2:] / 2 - expected, axis=1)
    assert len(boxes) and distances.min() < 0.15 * upright[2]


def test_a_photograph_on_its_side(hopper):
    predictor = load("rcn-6-mtfl")
    (upright,) = predictor.predict(hopper)
    sideways = np.ascontiguousarray(np.rot90(hopper))
    assert not HaarDetector().detect(sideways)  # the finder sees faces of any rotation
    faces = predictor.predict(sideways, min_confidence=0)
    height_width = hopper.shape[1]
    expected = upright.points[:, ::-1] * [1, -1] + [0, height_width]
    side = upright.box[2]
    assert min(np.linalg.norm(f.points.mean(axis=0) - expected.mean(axis=0)) for f in faces) < 0.2 * side


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hopper):
    """Two photographs and a table with the points that the network itself predicts; a third shows no face."""
    root = tmp_path_factory.mktemp("photos")
    predictor = load("rcn-6-mtfl")
    lines = ["file,face,keypoint,x,y"]
    for name, image in (("a.png", hopper), ("b.png", hopper[:, ::-1].copy()), ("c.png", hopper[:, ::-1].copy())):
        (face,) = predictor.predict(image)
        cv2.imwrite(str(root / name), image[..., ::-1])
        lines += [f"{name},1,{n},{x:.3f},{y:.3f}" for n, (x, y) in zip(NAMES, face.points, strict=True)]
    cv2.imwrite(str(root / "c.png"), np.full(hopper.shape, 128, np.uint8))
    (root / "points.csv").write_text("\n".join(lines))
    prepare_points(root / "points.csv", root / "table")
    return root


def test_found_faces_missed_faces_and_other_detections(folder):
    tables = sorted((folder / "table").glob("*.parquet"))
    reports = [evaluate_photographs("rcn-6-mtfl", t, folder) for t in tables]
    assert sum(r["faces"] for r in reports) == 3 and sum(r["missed"] for r in reports) == 1
    for r in reports:
        if r["found"]:
            assert r["nme"] < 1 and r["nme_true_crop"] < 4 and r["others"] == 0


def test_from_the_command_line(folder, tmp_path):
    table = sorted((folder / "table").glob("*.parquet"))[0]
    report = tmp_path / "r.json"
    command = ["evaluate", "rcn-6-mtfl", "--data", str(table), "--photos", str(folder), "--json", str(report)]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0 and "faces found" in run.output, run.output
    assert json.loads(report.read_text())["kind"] == "photographs"
    with pytest.raises(InputError, match="give the folder"):
        evaluate_photographs("rcn-6-mtfl", table, tmp_path)
    with pytest.raises(InputError, match="expected [0-9]+ keypoints"):
        evaluate_photographs("rcn-68-300w", table, folder)
