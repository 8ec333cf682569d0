"""check-labels: displaced points rank first, and swapped ones are named."""

import csv
import json

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.images import SAMPLE_PHOTOGRAPH, read_image
from recombinator.fit.labels import check_labels
from recombinator.predict.predictor import load
from recombinator.predict.suggest import choose
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


@pytest.mark.slow
def test_without_a_model_displaced_points_rank_first(trained, tmp_path):
    """Models of the other folds predict each image; one label of 48 is wrong."""
    folder, wrong = trained.images[0].parent, "7.png,point_0,"
    lines = (folder / "points.csv").read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if line.startswith(wrong))
    x, y = map(float, lines[at].split(",")[2:])
    lines[at] = f"{wrong}{x + 25:.2f},{y + 20:.2f}"
    (tmp_path / "points.csv").write_text("\n".join(lines))
    settings = {"size": 32, "factor": 1, "coarse_epochs": 2, "batch": 32}
    report = check_labels(None, tmp_path / "points.csv", folder, folds=3, settings=settings)
    rows = report["labels"]
    assert (report["model"], report["folds"], report["objects"], len(rows)) == (None, 3, 16, 48)
    assert (rows[0]["file"], rows[0]["keypoint"]) == ("7.png", "point_0")
    assert rows[0]["where"].endswith(f"points.csv:{at + 1}")
    assert rows[0]["error"] == pytest.approx(32, abs=8)
    assert len({(row["file"], row["keypoint"]) for row in rows}) == 48


def test_without_a_model_few_images_and_tables_are_refused(trained, faces5):
    folder = trained.images[0].parent
    with pytest.raises(InputError, match="more images for 2 folds, got 16"):
        check_labels(None, folder / "points.csv", folds=2)
    done = CliRunner().invoke(app, ["check-labels", str(faces5 / "valid.parquet")])
    assert done.exit_code == 2 or isinstance(done.exception, InputError)
    assert "needs --model" in done.output + str(done.exception)


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


def test_uncertain_images_that_differ_are_chosen():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(6, 8))
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    features[1] = features[0]  # a copy
    uncertainty = np.array([0.9, 0.8, 0.5, 0.5, 0.01, 0.6])
    first = choose(uncertainty, features, 3, np.empty((0, 8)))
    assert first[0] == 0 and 1 not in first and 4 not in first
    assert 5 not in choose(uncertainty, features, 3, features[5:])  # one like it has labels
    assert sorted(choose(uncertainty, features, 99, np.empty((0, 8)))) == list(range(6))


def test_suggest_leaves_out_labeled_images_and_writes_predictions(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    portrait = Image.open(SAMPLE_PHOTOGRAPH)
    for name, picture in (("a", portrait), ("b", portrait.rotate(20)), ("c", Image.new("RGB", (90, 80)))):
        picture.save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes(b"no")
    face = load("rcn-6-mtfl").predict(folder / "a.png")[0]
    rows = [f"a.png,{n},{x},{y}" for n, (x, y) in zip(face.keypoints.names, face.points.tolist(), strict=True)]
    (tmp_path / "points.csv").write_text("\n".join(["file,keypoint,x,y", *rows]))
    line = ["suggest", "rcn-6-mtfl", "--images", folder, "--out", tmp_path / "next", "--format", "coco", "--number", 1]
    done = CliRunner().invoke(app, [str(x) for x in (*line, "--labeled", tmp_path / "points.csv")])
    assert done.exit_code == 1 and "broken.png" in done.output  # it is named, and the others are done all the same
    assert "1 of 3 images, 1 labeled image left out" in done.output and "1.000" in done.output
    assert [r["file"] for r in map(json.loads, (tmp_path / "next" / "points.jsonl").open())] == [str(folder / "c.png")]
    assert (tmp_path / "next" / "points.coco.json").is_file()


def test_suggest_takes_frames_of_videos(tmp_path):
    """Nine frames: one in three is a candidate; one of those has labels, and one is the same as it."""
    folder, out = tmp_path / "clips", tmp_path / "next"
    folder.mkdir()
    portrait = cv2.resize(read_image(SAMPLE_PHOTOGRAPH), (160, 200), interpolation=cv2.INTER_AREA)
    shown = [portrait] * 6 + [np.zeros_like(portrait)] * 3
    video = cv2.VideoWriter(str(folder / "a.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 25, (160, 200))
    for image in shown:
        video.write(np.ascontiguousarray(image[..., ::-1]))
    video.release()
    (folder / "broken.mp4").write_bytes(b"no")
    labeled = tmp_path / "a-000000.png"
    Image.fromarray(portrait).save(labeled)
    points = load("rcn-6-mtfl").predict(labeled)[0]
    rows = [f"{labeled},{n},{x},{y}" for n, (x, y) in zip(points.keypoints.names, points.points.tolist(), strict=True)]
    (tmp_path / "points.csv").write_text("\n".join(["file,keypoint,x,y", *rows]))
    line = ["suggest", "rcn-6-mtfl", "--images", folder, "--out", out, "--format", "labelme", "--frames", 3]
    line = [str(x) for x in (*line, "--number", 1, "--labeled", tmp_path / "points.csv")]
    done = CliRunner().invoke(app, line)
    assert done.exit_code == 1 and "broken.mp4" in done.output
    assert "1 of 3 images, 1 labeled image left out" in done.output  # two frames and the broken video
    chosen = out / "frames" / "a" / "a-000006.png"
    assert list((out / "frames").rglob("*.png")) == [chosen] and read_image(chosen).max() < 20
    assert [r["file"] for r in map(json.loads, (out / "points.jsonl").open())] == [str(chosen)]
    (written,) = (out / "labelme").glob("*.json")
    assert (written.parent / json.loads(written.read_text())["imagePath"]).resolve() == chosen
    again = CliRunner().invoke(app, line)
    assert isinstance(again.exception, InputError) and "already holds results" in str(again.exception)
