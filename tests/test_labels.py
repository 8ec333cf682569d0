"""check-labels: displaced points rank first, and swapped ones are named."""

import csv
import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.images import SAMPLE_PHOTOGRAPH, read_image
from recombinator.fit.labels import check_labels
from recombinator.predict.predictor import load
from recombinator.study.labels import run
from recombinator.utils.errors import InputError


@pytest.fixture
def labels(tmp_path):
    """Return a function that writes the portrait's own points, in two lines per name, with changes."""
    face = load("rcn-6-mtfl").predict(SAMPLE_PHOTOGRAPH)[0]
    points = dict(zip(face.keypoints.names, face.points.tolist(), strict=True))

    def write(**changes):
        rows = ["file,keypoint,x,y"]
        rows += [f"{SAMPLE_PHOTOGRAPH},{n},{x},{y}" for n, (x, y) in (points | changes).items()]
        (tmp_path / "points.csv").write_text("\n".join(rows))
        return tmp_path / "points.csv"

    return points, write


def test_displaced_points_rank_first(tmp_path):
    predictor, rows = load("rcn-6-mtfl"), ["file,keypoint,x,y"]
    for n in range(8):
        image = np.roll(read_image(SAMPLE_PHOTOGRAPH), (3 * n, 5 * n), axis=(0, 1))
        Image.fromarray(image).save(tmp_path / f"{n}.png")
        (face,) = predictor.predict(image)
        for name, (x, y) in zip(face.keypoints.names, face.points.tolist(), strict=True):
            moved = 40 if (n, name) in ((2, "nose"), (5, "left_eye")) else 0
            rows.append(f"{n}.png,{name},{x + moved},{y}")
    (tmp_path / "points.csv").write_text("\n".join(rows))
    found = check_labels("rcn-6-mtfl", tmp_path / "points.csv")["labels"]
    assert len(found) == 40 and [row["rank"] for row in found] == list(range(1, 41))
    assert {(row["file"], row["keypoint"]) for row in found[:2]} == {("2.png", "nose"), ("5.png", "left_eye")}
    assert all(row["error"] == pytest.approx(40, abs=10) for row in found[:2])
    assert {row["reason"] for row in found[:2]} == {"far from the prediction"}


def test_the_measurement_counts_displaced_points(faces5):
    report = run(faces5, epochs=1)
    assert report["displaced"] == sum(row["displaced"] for row in report["rows"]) > 0
    assert report["looked_at"] == round(0.03 * report["points"]) and 0 <= report["found"] <= report["looked_at"]


def test_swapped_points_are_named(labels):
    points, write = labels
    found = check_labels("rcn-6-mtfl", write(left_eye=points["right_eye"], right_eye=points["left_eye"]))["labels"]
    reasons = {row["keypoint"]: row["reason"] for row in found}
    assert reasons["left_eye"] == "swapped with right_eye"
    assert reasons["right_eye"] == "swapped with left_eye"


def test_the_command_writes_all_points_of_a_table(faces5, tmp_path):
    for name in ("all.csv", "all.json"):
        command = [
            "check-labels",
            str(faces5 / "valid.parquet"),
            "--model",
            "rcn-6-mtfl",
            "--out",
            str(tmp_path / name),
        ]
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
    rows = list(csv.DictReader((tmp_path / "all.csv").open()))
    assert [r["keypoint"] for r in rows] == [
        r["keypoint"] for r in json.loads((tmp_path / "all.json").read_text())["labels"]
    ]
    scores = [float(r["score"]) for r in rows]
    assert scores == sorted(scores, reverse=True)


def test_other_keypoints_are_refused(tmp_path, faces68):
    with pytest.raises(InputError, match="keypoints"):
        check_labels("rcn-6-mtfl", faces68 / "valid.parquet")
