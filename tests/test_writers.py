"""Predictions in the formats of labeling tools, read back with our own readers."""

import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.points import read_points
from recombinator.data.readers.own import infer_keypoints, read_entries
from recombinator.keypoints import FACE_68, KeypointSet
from recombinator.predict.output import FILES, FORMATS
from recombinator.utils.errors import InputError

NAMES = ("left_ear", "right_ear", "nose")
KEYPOINTS = KeypointSet("own-3", NAMES, mirror=((0, 1),), lines=((0, 2, 1),))
WIDTH, HEIGHT = 90, 70


def predictions_of(tmp_path, keypoints):
    """Write points.jsonl as `predict` does: two photographs of one size with 1 and 2 faces, and another size."""
    rng, records, points = np.random.default_rng(1), [], []
    (tmp_path / "photos").mkdir()
    (tmp_path / "out").mkdir()
    for name, size, faces in (
        ("a.png", (WIDTH, HEIGHT), 1),
        ("b.png", (WIDTH, HEIGHT), 2),
        ("c.png", (HEIGHT, WIDTH), 1),
    ):
        cv2.imwrite(str(tmp_path / "photos" / name), np.full((size[1], size[0], 3), 80, np.uint8))
        found = []
        for _ in range(faces):
            xy = np.round(rng.uniform(5, 60, (len(keypoints), 2)), 2)
            points.append((name, xy))
            marks = [
                {"name": n, "x": x, "y": y, "confidence": 0.9}
                for n, (x, y) in zip(keypoints.names, xy.tolist(), strict=True)
            ]
            found.append({"box": [2.0, 3.0, 60.0], "confidence": 0.9, "keypoints": marks})
        records.append({"file": str(tmp_path / "photos" / name), "weights": "w", "stem": name[0], "width": size[0],
                        "height": size[1], "faces": found})  # fmt: skip
    (tmp_path / "out" / "points.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    return tmp_path, points


@pytest.fixture
def predictions(tmp_path):
    return predictions_of(tmp_path, KEYPOINTS)


@pytest.mark.parametrize("keypoints", [KEYPOINTS, FACE_68], ids=["3 points", "68 points"])
@pytest.mark.parametrize("name", [*FORMATS, "jsonl"])
def test_what_is_written_is_read_back(tmp_path, name, keypoints):
    folder, true = predictions_of(tmp_path, keypoints)
    if name == "slp":
        pytest.importorskip("sleap_io", reason="skipped: needs the extra formats")
    if name != "jsonl":
        FORMATS[name](folder / "out" / "points.jsonl", folder / "out", "w", keypoints)
    path = folder / "out" / FILES.get(name, "points.jsonl")
    images = None if name in ("labelme", "tps", "slp") else folder / "photos"
    found = read_points(path, keypoints, lambda e: pytest.fail(str(e)), images=images)
    assert len(found) == len(true)
    for one, (file, points) in zip(found, true, strict=True):
        if name == "pts":  # they name no image, and are not next to it here
            assert one.entry.path.stem.rsplit("_", 1)[0] == file[0]
        else:
            assert one.entry.path == folder / "photos" / file and one.entry.path.is_file()
        np.testing.assert_allclose(one.points, points, atol=1e-3, rtol=0)
    if name in ("coco", "slp") and keypoints is KEYPOINTS:
        inferred = infer_keypoints(read_entries(path), path)
        assert inferred.names == NAMES and inferred.mirror == ((0, 1),) and set(inferred.lines) == {(0, 2), (2, 1)}


def test_predict_writes_for_a_tool(tmp_path):
    from recombinator.data.images import SAMPLE_PHOTOGRAPH

    command = ["predict", str(SAMPLE_PHOTOGRAPH), "--out", str(tmp_path), "--no-pictures"]
    run = CliRunner().invoke(app, [*command, "--format", "labelme", "--format", "tps"], catch_exceptions=False)
    assert run.exit_code == 0
    record = json.loads((tmp_path / "points.jsonl").read_text())
    expected = [[p["x"], p["y"]] for p in record["faces"][0]["keypoints"]]
    for path in (tmp_path / "labelme", tmp_path / "points.tps"):
        (entry,) = read_entries(path)
        assert entry.path.samefile(SAMPLE_PHOTOGRAPH)
        np.testing.assert_allclose([[p.x, p.y] for p in entry.points.values()], expected, atol=0.01)


def test_slp_needs_its_package(predictions, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sleap_io", None)
    folder, _ = predictions
    with pytest.raises(InputError, match=r"writing points\.slp needs sleap_io; pip install .*\[formats\]"):
        FORMATS["slp"](folder / "out" / "points.jsonl", folder / "out", "w", KEYPOINTS)
