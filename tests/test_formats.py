"""Labels of other tools: each reader gives the same points in the same convention, whatever the tool counts from."""

import csv
import json

import cv2
import numpy as np
import pytest
from conftest import SHARED
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.points import infer_names, point_sets, read_entries
from recombinator.data.readers.own import infer_keypoints, prepare_points
from recombinator.data.table import load_table
from recombinator.utils.errors import InputError

NAMES = ("left_ear", "right_ear", "nose", "tail")
WIDTH, HEIGHT = 120, 80
FILES = ("a.png", "b.png", "c.png", "d.png")
RNG = np.random.default_rng(0)
# the true points: a pixel's center is at its integer + 0.5, x to the right, y down
TRUE = {file: np.round(RNG.uniform(10, 70, (len(NAMES), 2)), 2) for file in FILES}


@pytest.fixture
def photos(tmp_path):
    for file in FILES:
        cv2.imwrite(str(tmp_path / file), np.full((HEIGHT, WIDTH, 3), 99, np.uint8))
    return tmp_path


def sets(path, **kind):
    """The point sets of a file by image and object, the keypoint set, and the messages about what was left out."""
    entries = read_entries(path, "auto", **kind)
    keypoints, problems = infer_keypoints(entries, path), []
    return point_sets(entries, keypoints, lambda e: problems.append(str(e))), keypoints, problems


def check(path, names=NAMES, missing=None, **kind):
    """Assert that the file has the true points of every image; `missing` is an (image, name) that has none."""
    found, keypoints, problems = sets(path, **kind)
    assert not problems and sorted(keypoints.names) == sorted(names)
    assert [s.entry.path.name for s in found] == list(FILES)
    order = [names.index(n) for n in keypoints.names]
    for s in found:
        assert s.entry.path.is_file()
        known = np.array([(s.entry.path.name, n) != missing for n in keypoints.names])
        np.testing.assert_allclose(s.points[known], TRUE[s.entry.path.name][order][known], atol=1e-6)
        assert np.isnan(s.points[~known]).all()
    return found, keypoints


# ---- DeepLabCut ------------------------------------------------------------------------------------------------


def deeplabcut(folder, animals=None, split_path=False, hole=None):
    """Write a project of one video; `animals` gives the fourth header row."""
    frames = folder / "project" / "labeled-data" / "video"
    frames.mkdir(parents=True)
    for file in FILES:
        (folder / file).rename(frames / file)
    index = ["", ""] if split_path else []
    per_animal = [n for n in NAMES for _ in "xy"]
    rows = [["scorer", *index, *["me"] * (8 * len(animals or "1"))]]
    if animals:
        rows.append(["individuals", *index, *[a for a in animals for _ in per_animal]])
    rows.append(["bodyparts", *index, *per_animal * len(animals or "1")])
    rows.append(["coords", *index, *["x", "y"] * (4 * len(animals or "1"))])
    for file in FILES:
        values = [["", ""] if hole == (file, n) else p for n, p in zip(NAMES, TRUE[file].tolist(), strict=True)]
        flat = [v for p in values for v in p]
        where = ["labeled-data", "video", file] if split_path else [f"labeled-data/video/{file}"]
        blank = [[""] * 8 for _ in (animals or "1")[1:]]
        rows.append([*where, *flat, *(v for b in blank for v in b)])
    with open(frames / "CollectedData_me.csv", "w", newline="") as stream:
        csv.writer(stream).writerows(rows)
    (folder / "project" / "config.yaml").write_text("Task: x\nbodyparts:\n- nose\n")
    return frames / "CollectedData_me.csv"


@pytest.mark.parametrize(("animals", "split_path"), [(None, False), (None, True), (("m1", "m2"), False)])
def test_deeplabcut(photos, animals, split_path):
    file = deeplabcut(photos, animals, split_path, hole=("b.png", "tail"))
    file.with_suffix(".h5").write_bytes(b"\x89HDF")
    project = photos / "project"
    for path in (file, file.with_suffix(".h5"), file.parent, project, project / "config.yaml"):
        found, keypoints = check(path, missing=("b.png", "tail"))
        assert keypoints.mirror == ((0, 1),) and found[0].file == "labeled-data/video/a.png"
        assert found[0].entry.columns == {"video": "video", "individual": "m1" if animals else "1"}
    check(file, images=project, missing=("b.png", "tail"))
    check(file, images=file.parent, missing=("b.png", "tail"))


def test_deeplabcut_that_cannot_be_read(photos):
    file = deeplabcut(photos)
    text = file.read_text()
    file.write_text(text.replace(str(TRUE["b.png"][0, 0]), "here", 1))
    found, _, problems = sets(file)
    assert len(found) == 3 and f"{file}:5: 'here' is not a number" in problems[0]
    (photos / "x.csv").write_text("\n".join(line for line in text.splitlines() if not line.startswith("coords")))
    with pytest.raises(InputError, match=r"x\.csv:1: expected DeepLabCut's header rows"):
        read_entries(photos / "x.csv")
    (photos / "CollectedData_you.h5").write_bytes(b"\x89HDF")
    with pytest.raises(InputError, match=r"needs CollectedData_you\.csv, which DeepLabCut saves with it"):
        read_entries(photos / "CollectedData_you.h5")


# ---- tpsDig ----------------------------------------------------------------------------------------------------


def tps(folder, scale="", name="wings.tps"):
    text = ""
    for i, file in enumerate(FILES):
        rows = "".join(f"{x:.5f} {HEIGHT - y:.5f}\n" for x, y in TRUE[file])
        text += f"LM={len(NAMES)}\n{rows}IMAGE={file}\nID={i}\n{scale}"
    (folder / name).write_text(text)
    return folder / name


def test_tps_counts_y_from_the_bottom(photos, caplog):
    found, _ = check(tps(photos, "SCALE=0.05\n"), names=tuple("1234"))
    assert [s.entry.mm_per_pixel for s in found] == [0.05] * 4 and found[1].entry.columns["ID"] == "1"
    assert "SCALE has no unit and is taken as millimeters per pixel" in caplog.text
    found, _ = check(tps(photos, "SCALE=0.05\nUNITS=cm\n"), names=tuple("1234"))
    assert found[0].entry.mm_per_pixel == pytest.approx(0.5)
    curves = tps(photos).read_text().replace("IMAGE", "CURVES=1\nPOINTS=2\n1 2\n3 4\nIMAGE")
    (photos / "curves.tps").write_text(curves)
    check(photos / "curves.tps", names=tuple("1234"))


def test_tps_that_cannot_be_used(photos):
    text = tps(photos).read_text()
    for old, new, message in (
        ("LM=4", "LM=5", "x.tps:1: expected 5 landmarks (LM=), got 4"),
        ("IMAGE=a.png", "IMAGE=none.png", "x.tps:1: its points need the size of the image"),
        ("IMAGE=a.png\n", "", "x.tps:1: its points need the size of the image, and nothing names the image"),
        (f"{TRUE['a.png'][0, 0]:.5f}", "x", "x.tps:1: 'x' is not a number"),
    ):
        (photos / "x.tps").write_text(text.replace(old, new, 1))
        found, _, (problem,) = sets(photos / "x.tps")
        assert len(found) == 3 and message in problem
    (photos / "x.tps").write_text(
        text.replace(f"{TRUE['a.png'][0, 0]:.5f} {HEIGHT - TRUE['a.png'][0, 1]:.5f}", "-1 -1")
    )
    found, _, _ = sets(photos / "x.tps")
    assert np.isnan(found[0].points[0]).all() and np.isfinite(found[0].points[1:]).all()
    (photos / "x.tps").write_text("\n")
    with pytest.raises(InputError, match=r"x\.tps: no specimen"):
        read_entries(photos / "x.tps")


def test_csv_with_y_from_the_bottom(photos, caplog):
    rows = [["id", *(f"{a}{i}" for i in range(1, 5) for a in "XY")]]
    rows += [[f, *(v for x, y in TRUE[f].tolist() for v in (x, HEIGHT - y))] for f in FILES]
    (photos / "morph.csv").write_text("\n".join(",".join(map(str, r)) for r in rows))
    check(photos / "morph.csv", names=tuple("1234"))
    assert "as in ml-morph; y is counted from the bottom" in caplog.text
    (photos / "own.csv").write_text((photos / "morph.csv").read_text().replace("id", "file", 1))
    check(photos / "own.csv", names=tuple("1234"), y_up=True)


# ---- which format ----------------------------------------------------------------------------------------------


def test_unknown_formats(photos):
    with pytest.raises(InputError, match=r"notes\.txt: unknown points format; expected one of deeplabcut \("):
        (photos / "notes.txt").write_text("nothing")
        read_entries(photos / "notes.txt")
    with pytest.raises(InputError, match="unknown points format 'x'; expected one of deeplabcut, tps"):
        read_entries(photos / "notes.txt", form="x")
    tps(photos).rename(photos / "wings.txt")
    check(photos / "wings.txt", names=tuple("1234"), form="tps")


# ---- real files ------------------------------------------------------------------------------------------------


def test_shared_open_field(tmp_path):
    project = SHARED / "data" / "openfield"
    if not project.is_dir():
        pytest.skip("skipped: no ../shared/data")
    found, keypoints, problems = sets(project)
    assert len(found) == 116 and not problems and keypoints.names == ("snout", "leftear", "rightear", "tailbase")
    assert keypoints.mirror == ((1, 2),)
    assert found[0].entry.path == project / "labeled-data" / "m4s1" / "img0000.png"
    np.testing.assert_allclose(found[0].points[3], [87.11, 152.698])
    run = CliRunner().invoke(
        app, ["prepare", "points", str(project), str(tmp_path / "t"), "--size", "32"], catch_exceptions=False
    )
    assert run.exit_code == 0 and "dropped: 0" in run.output
    assert len(load_table(tmp_path / "t" / "train.parquet")) == 94


def test_shared_wings_have_the_same_points_in_both_files(tmp_path):
    folder = SHARED / "data" / "wings"
    if not folder.is_dir():
        pytest.skip("skipped: no ../shared/data")
    images = {"images": folder / "image-examples"}
    first, keypoints, _ = sets(folder / "landmark-examples" / "tps-example.tps", **images)
    second, _, _ = sets(folder / "landmark-examples" / "csv-example.csv", **images)
    assert len(first) == len(second) == 58 and len(keypoints) == 12
    by_file = {s.file: s.points for s in second}
    for s in first:
        np.testing.assert_allclose(s.points, by_file[s.file])
    np.testing.assert_allclose(first[0].points[:2], [[290, 480 - 108], [100, 480 - 179]])
    counts = prepare_points(folder / "landmark-examples" / "tps-example.tps", tmp_path, size=32, **images)
    assert counts["dropped"] == 0


@pytest.mark.parametrize("name", ["CollectedData_scorer1.csv"])
def test_shared_cases_of_tools(name):
    folder = SHARED / "cases" / "points"
    if not folder.is_dir():
        pytest.skip("skipped: no ../shared/cases")
    truth = json.loads((folder / "truth.json").read_text())
    entries = read_entries(folder / name, "auto", images=folder / "img")
    keypoints = infer_keypoints(entries, folder / name)
    found = point_sets(entries, keypoints, lambda e: pytest.fail(str(e)))
    assert len(found) == 12 and infer_names(entries) == tuple(truth["keypoints"])
    for s in found:
        np.testing.assert_allclose(s.points, truth["points"][s.entry.path.name], atol=0.0051)
