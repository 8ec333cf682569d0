"""Whole photographs, detection included, and the ways of looking for a face."""

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
def test_boxes_come_back_from_a_turned_photograph(look, hopper):
    """A photograph that is turned the other way looks upright to the detector; the box lies on the turned face."""
    (upright,) = HaarDetector().detect(hopper)
    center = upright[:2] + upright[2:] / 2
    height, width = hopper.shape[:2]
    turn = cv2.getRotationMatrix2D((width / 2, height / 2), -look.degrees, 1.0)
    image, wanted = cv2.warpAffine(hopper, turn, (width, height)), turn[:, :2] @ center + turn[:, 2]
    boxes = HaarDetector()._run(image, look)
    gaps = np.linalg.norm(boxes[:, :2] + boxes[:, 2:] / 2 - wanted, axis=1)
    assert len(boxes) and gaps.min() < 0.15 * upright[2]


def test_a_photograph_that_lies_on_its_side(hopper):
    predictor = load("rcn-6-mtfl")
    (upright,) = predictor.predict(hopper)
    sideways = np.ascontiguousarray(np.rot90(hopper))
    assert not len(predictor.detector.detect(sideways))  # it takes the search
    faces = predictor.predict(sideways, min_confidence=0)
    height_width = hopper.shape[1]
    wanted = upright.points[:, ::-1] * [1, -1] + [0, height_width]
    side = upright.box[2]
    assert min(np.linalg.norm(f.points.mean(axis=0) - wanted.mean(axis=0)) for f in faces) < 0.2 * side


@pytest.fixture(scope="module")
def folder(tmp_path_factory, hopper):
    """Two photographs and a table of their points, as the network itself finds them; a third shows no face."""
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


def test_found_missed_and_others(folder):
    tables = sorted((folder / "table").glob("*.parquet"))
    told = [evaluate_photographs("rcn-6-mtfl", t, folder) for t in tables]
    assert sum(t["faces"] for t in told) == 3 and sum(t["missed"] for t in told) == 1
    for t in told:
        if t["found"]:
            assert t["nme"] < 1 and t["nme_true_crop"] < 4 and t["others"] == 0


def test_from_the_command_line(folder, tmp_path):
    table = sorted((folder / "table").glob("*.parquet"))[0]
    told = tmp_path / "r.json"
    asked = ["evaluate", "rcn-6-mtfl", "--data", str(table), "--photos", str(folder), "--json", str(told)]
    run = CliRunner().invoke(app, asked)
    assert run.exit_code == 0 and "faces found" in run.output, run.output
    assert json.loads(told.read_text())["kind"] == "photographs"
    with pytest.raises(InputError, match="give the folder"):
        evaluate_photographs("rcn-6-mtfl", table, tmp_path)
    with pytest.raises(InputError, match="are not those of"):
        evaluate_photographs("rcn-68-300w", table, folder)
