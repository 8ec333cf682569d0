"""Anybody's keypoints: from a file of points to a trained network."""

import csv
import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.readers.own import infer_keypoints, mirror_pairs, prepare_points
from recombinator.data.table import load_table
from recombinator.keypoints import FACE_5
from recombinator.training.run import train
from recombinator.utils.errors import InputError

NAMES = ("left_tip", "right_tip", "middle", "foot")


@pytest.fixture
def arrows(tmp_path):
    """Drawn arrows with four points, one of them now and then missing."""
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    rows = []
    for i in range(30):
        points = np.array([[60, 60], [140, 60], [100, 90], [100, 150]]) + rng.uniform(-15, 15, (4, 2))
        image = np.full((200, 220, 3), 200, np.uint8)
        for a, b in ((0, 2), (1, 2), (2, 3)):
            cv2.line(image, *(tuple(int(v) for v in points[j]) for j in (a, b)), (30, 60, 160), 5)
        cv2.imwrite(str(tmp_path / "pictures" / f"{i}.png"), image)
        for j, (name, (x, y)) in enumerate(zip(NAMES, points, strict=True)):
            hidden = i % 5 == 0 and j == 3
            rows.append((f"{i}.png", name, "" if hidden else x, "" if hidden else y))
    with open(tmp_path / "points.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "keypoint", "x", "y"), *rows])
    return tmp_path


def test_from_points_to_a_network(arrows, tmp_path):
    run = CliRunner().invoke(
        app, ["prepare", "points", str(arrows / "points.csv"), str(tmp_path / "t"), "--images",
              str(arrows / "pictures"), "--normalizer", "left_tip,right_tip"], catch_exceptions=False,
    )  # fmt: skip
    assert run.exit_code == 0 and "24 faces" in run.output
    table = load_table(tmp_path / "t" / "train.parquet")
    keypoints = table.info.keypoints
    assert keypoints.names == NAMES and keypoints.mirror == ((0, 1),) and keypoints.normalizer == ((0,), (1,))
    assert 0 < (~table.mask).sum() <= 6 and not (~table.mask)[:, :3].any()
    kind = {"options": {"size": 48, "width": 0.3}, "batch": 8, "flip": True}
    done = train("rcn-4", tmp_path / "t", tmp_path / "run", epochs=12, learning_rate=4e-3, **kind)
    first = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[0])
    assert done["best_valid"] < 0.7 * first["valid"]


def test_names_and_mirror_pairs():
    assert mirror_pairs(FACE_5.names) == FACE_5.mirror
    assert mirror_pairs(("L_hand", "R_hand", "head")) == ((0, 1),)
    assert mirror_pairs(("1", "2")) == ()


def test_inferred_sets(tmp_path):
    def infer(name, text, normalizer=None):
        (tmp_path / name).write_text(text)
        return infer_keypoints(tmp_path / name, normalizer)

    assert infer("a.csv", "file,x1,x2,x3,y1,y2,y3\na,1,2,3,4,5,6\n").names == ("1", "2", "3")
    assert infer("a.csv", "file,keypoint,x,y\na,p,1,2\na,q,1,2\na,p,3,4\n").names == ("p", "q")
    assert infer("a.json", '[{"file": "a", "points": [[1, 2], [3, 4]]}]').names == ("1", "2")
    assert infer("a.json", '{"annotations": [{"keypoints": [1, 2, 2, 3, 4, 2]}]}').names == ("1", "2")
    five = "".join(f"a,1,{n},1,2\n" for n in FACE_5.names)
    assert infer("b.csv", "file,face,keypoint,x,y\n" + five) == FACE_5
    for name, text, normalizer, message in (
        ("c.csv", "keypoint,x,y\n", None, "no face"), ("c.json", "{", None, "cannot be read"),
        ("c.json", "[]", None, "no face"), ("d.csv", "keypoint,x,y\na,1,2\nb,3,4\n", "a,c", "--normalizer a,c"),
        ("d.csv", "keypoint,x,y\na,1,2\nb,3,4\n", "a,a", "two different"),
        ("e.csv", "file;keypoint;x;y\na;b;1;2\n", None, "e.csv:1: wants the columns file, keypoint, x, y"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            infer(name, text, normalizer)


def test_bad_faces_are_named_and_left_out(arrows, tmp_path, caplog):
    (arrows / "pictures" / "3.png").unlink()
    with open(arrows / "points.csv", "a") as stream:
        stream.write("99.png,left_tip,1,2\n")
    counts = prepare_points(arrows / "points.csv", tmp_path / "t", images=arrows / "pictures")
    told = caplog.messages
    assert counts["dropped"] == 2 and any("3.png" in t for t in told) and any("has 1 keypoints" in t for t in told)
    text = (arrows / "points.csv").read_text().replace("7.png,left_tip,", "7.png,left_tip,,#").split("\n")
    cut = [t.split("#")[0] if "#" in t else t for t in text]
    (arrows / "points.csv").write_text("\n".join(cut))
    kind = {"images": arrows / "pictures", "normalizer": "left_tip,right_tip"}
    prepare_points(arrows / "points.csv", tmp_path / "n", **kind)
    assert any("without left_tip its errors have no normalizer" in t for t in caplog.messages)
    with pytest.raises(InputError):
        prepare_points(arrows / "points.csv", tmp_path / "s", images=arrows / "pictures", strict=True)
    lines = [f"{i}.png,10,40,20,20" for i in range(9)]  # two points at one height: a box without area
    (tmp_path / "flat.csv").write_text("\n".join(["file,x1,x2,y1,y2", *lines]))
    caplog.clear()
    with pytest.raises(InputError, match="all 9 faces were dropped"):
        prepare_points(tmp_path / "flat.csv", tmp_path / "f", images=arrows / "pictures")
    assert any("its normalizer is" in t and "--normalizer a,b" in t for t in caplog.messages)
    (tmp_path / "few.csv").write_text("file,x1,x2,y1,y2\na.png,1,2,3,4\n")
    with pytest.raises(InputError, match="too few"):
        prepare_points(tmp_path / "few.csv", tmp_path / "u")
