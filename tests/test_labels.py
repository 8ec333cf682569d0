"""check-labels: displaced points rank first, and swapped ones are named."""

import csv
import json

import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.images import SAMPLE_PHOTOGRAPH
from recombinator.fit.labels import check_labels
from recombinator.predict.predictor import load
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


def test_a_displaced_point_ranks_first(labels, tmp_path):
    points, write = labels
    x, y = points["nose"]
    found = check_labels("rcn-6-mtfl", write(nose=(x + 40, y)))["labels"]
    assert len(found) == 5
    top = max(found, key=lambda row: row["error"])
    assert top["keypoint"] == "nose"
    assert top["error"] == pytest.approx(40, abs=10)
    assert top["reason"] == "far from the prediction"


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
