"""Your own keypoints: from a file of points to a trained network."""

import csv
import json
import logging

import cv2
import numpy as np
import pytest
from conftest import SHARED
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.points import infer_names, read_entries, read_points
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
    assert mirror_pairs(("right_ear", "left_ear")) == ((1, 0),)
    assert mirror_pairs(("eye L", "eye R", "earL", "earR", "paw.l", "paw.r")) == ((0, 1), (2, 3), (4, 5))
    assert mirror_pairs(("tail", "tair", "LEFT", "RIGHT", "cleft")) == ((2, 3),)


def test_inferred_sets(tmp_path):
    def infer(name, text, normalizer=None):
        (tmp_path / name).write_text(text)
        return infer_keypoints(read_entries(tmp_path / name), tmp_path / name, normalizer)

    assert infer("a.csv", "file,x1,x2,x3,y1,y2,y3\na,1,2,3,4,5,6\n").names == ("1", "2", "3")
    assert infer("a.csv", "file,keypoint,x,y\na,p,1,2\na,q,1,2\na,p,3,4\n").names == ("p", "q")
    assert infer("a.json", '[{"file": "a", "points": [[1, 2], [3, 4]]}]').names == ("1", "2")
    assert infer("a.json", '{"annotations": [{"keypoints": [1, 2, 2, 3, 4, 2]}]}').names == ("1", "2")
    five = "".join(f"a,1,{n},1,2\n" for n in FACE_5.names)
    assert infer("b.csv", "file,face,keypoint,x,y\n" + five) == FACE_5
    backward = "".join(f"a,1,{n},1,2\n" for n in reversed(FACE_5.names))
    assert infer("b.csv", "file,face,keypoint,x,y\n" + backward) == FACE_5
    part = "file,keypoint,x,y\na,p,1,2\na,r,1,2\nb,p,3,4\nb,q,3,4\nb,r,1,2\n"  # the first object lacks q
    assert infer("b.csv", part).names == ("p", "q", "r")
    for name, text, normalizer, message in (
        ("c.csv", "keypoint,x,y\n", None, "no object with points"), ("c.json", "{", None, "c.json:1: not JSON"),
        ("c.json", "[]", None, "no object with points"),
        ("d.csv", "keypoint,x,y\na,1,2\nb,3,4\n", "a,c", "--normalizer a,c"),
        ("d.csv", "keypoint,x,y\na,1,2\nb,3,4\n", "a,a", "two different"),
        ("e.csv", "file;name;left;top\na;b;1;2\n", None, "e.csv:1: expected the columns file, keypoint, x, y"),
        ("c.jsonl", "{\n{\n", None, "c.jsonl:1: not JSON"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=message):
            infer(name, text, normalizer)


def test_bad_faces_are_named_and_left_out(arrows, tmp_path, caplog):
    (arrows / "pictures" / "3.png").unlink()
    with open(arrows / "points.csv", "a") as stream:
        stream.write("99.png,left_tip,1,2\n")
    counts = prepare_points(arrows / "points.csv", tmp_path / "t", images=arrows / "pictures")
    told = caplog.messages
    assert counts["dropped"] == 2
    assert any("3.png" in t for t in told) and any("or more known points, got 1" in t for t in told)
    text = (arrows / "points.csv").read_text().replace("7.png,left_tip,", "7.png,left_tip,,#").split("\n")
    cut = [t.split("#")[0] if "#" in t else t for t in text]
    (arrows / "points.csv").write_text("\n".join(cut))
    kind = {"images": arrows / "pictures", "normalizer": "left_tip,right_tip"}
    prepare_points(arrows / "points.csv", tmp_path / "n", **kind)
    assert any("left_tip is missing, but errors are normalized by it" in t for t in caplog.messages)
    with pytest.raises(InputError):
        prepare_points(arrows / "points.csv", tmp_path / "s", images=arrows / "pictures", strict=True)
    lines = [f"{i}.png,10,40,20,20" for i in range(9)]  # two points at one height: a box without area
    (tmp_path / "flat.csv").write_text("\n".join(["file,x1,x2,y1,y2", *lines]))
    caplog.clear()
    with pytest.raises(InputError, match="all 9 faces were dropped"):
        prepare_points(tmp_path / "flat.csv", tmp_path / "f", images=arrows / "pictures")
    assert any("its normalizer is" in t and "--normalizer a,b" in t for t in caplog.messages)
    (tmp_path / "few.csv").write_text("file,x1,x2,y1,y2\na.png,1,2,3,4\n")
    with pytest.raises(InputError, match="expected 3 or more images for three splits, got 1"):
        prepare_points(tmp_path / "few.csv", tmp_path / "u")


# ---- forms of points files -------------------------------------------------------------------------------------


def read(path, text, keypoints=FACE_5, missing="none", encoding="utf-8"):
    """The point sets of a file, and the messages of what was left out."""
    path.write_bytes(text.encode(encoding))
    problems = []
    return read_points(path, keypoints, lambda e: problems.append(str(e)), missing), problems


HEAD = "file,face,keypoint,x,y\n"
FIVE = [[53.5, 63.25], [79.75, 63.5], [66.5, 80.0], [55.0, 91.75], [77.25, 91.5]]
ROWS = "".join(f"a.png,1,{n},{x},{y}\n" for n, (x, y) in zip(FACE_5.names, FIVE, strict=True))
NAMED = [{"name": n, "x": x, "y": y} for n, (x, y) in zip(FACE_5.names, FIVE, strict=True)]
WIDE = ",".join(f"{n}_x,{n}_y" for n in FACE_5.names) + "\na.png," + ",".join(f"{x},{y}" for x, y in FIVE) + "\n"
FORMS = {
    "semicolons.csv": (HEAD + ROWS).replace(",", ";").replace(".", ",").replace("a,png", "a.png"),
    "semicolons-and-points.csv": (HEAD + ROWS).replace(",", ";"),
    "tabs.csv": (HEAD + ROWS).replace(",", "\t"),
    "tabs.tsv": (HEAD + ROWS).replace(",", "\t"),
    "blank-line-first.csv": "\n" + HEAD + ROWS,
    "capitals.csv": "File,Face,Keypoint,X,Y\n" + ROWS,
    "filename.csv": "filename,face,keypoint,x,y\n" + ROWS,
    "image-path.csv": "Image Path,face,keypoint,x,y\n" + ROWS,
    "backwards.csv": HEAD + "".join(reversed(ROWS.splitlines(keepends=True))),
    "wide.csv": "file," + WIDE,
    "wide-dots.csv": "file," + WIDE.replace("_x,", ".x,").replace("_y,", ".y,").replace("_y\n", ".y\n"),
    "named.json": json.dumps([{"file": "a.png", "points": NAMED[::-1]}]),
    "object.json": json.dumps([{"file": "a.png", "points": {p["name"]: [p["x"], p["y"]] for p in NAMED[::-1]}}]),
    "nested.json": json.dumps([{"file": "a.png", "keypoints": [[x, y, 2] for x, y in FIVE]}]),
    "landmarks.json": json.dumps([{"image_path": "a.png", "landmarks": FIVE}]),
    "images.json": json.dumps({"images": {"7": "a.png"}, "annotations": [{"image_id": "7", "points": FIVE}]}),
    "blank-line-first.jsonl": "\n" + json.dumps({"imagePath": "a.png", "points": FIVE}) + "\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_points_files(tmp_path, name):
    (face,), problems = read(tmp_path / name, FORMS[name])
    assert not problems and face.file == "a.png" and face.face in ("1", "7")
    np.testing.assert_allclose(face.points, FIVE)
    positional = name in ("nested.json", "landmarks.json", "images.json", "blank-line-first.jsonl")
    assert infer_names(read_entries(tmp_path / name)) == (
        tuple("12345") if positional else FACE_5.names[::-1] if name in ("backwards.csv", "named.json", "object.json")
        else FACE_5.names
    )  # fmt: skip


def coco(names=FACE_5.names, **changes):
    numbers = [v for x, y in FIVE for v in (x - 0.5, y - 0.5, 2)]  # a pixel's center is at its integer there
    annotation = {"id": 4, "image_id": 7, "category_id": 1, "keypoints": numbers, **changes}
    return {
        "images": [{"id": 7, "file_name": "a.png"}], "annotations": [{"image_id": 7, "bbox": [1, 2, 3, 4]}, annotation],
        "categories": [{"id": 1, "keypoints": list(names)}],
    }  # fmt: skip


def test_coco_names_convention_and_mirror_pairs(tmp_path, caplog):
    (face,), problems = read(tmp_path / "c.json", json.dumps(coco()))
    assert (
        not problems
        and (face.file, face.face) == ("a.png", "4")
        and "1 annotation left out, without keypoints" in caplog.text
    )
    np.testing.assert_allclose(face.points, FIVE)
    (backward,), _ = read(tmp_path / "c.json", json.dumps(coco(FACE_5.names[::-1])))
    np.testing.assert_allclose(backward.points, FIVE[::-1])
    names = ("left_paw", "right_paw", "head", "l_ear", "r_ear")
    (tmp_path / "c.json").write_text(json.dumps(coco(names)))
    found = infer_keypoints(read_entries(tmp_path / "c.json"), tmp_path / "c.json")
    assert found.names == names and found.mirror == ((0, 1), (3, 4))


def test_coco_points_that_are_not_labeled(tmp_path):
    numbers = [v for x, y in FIVE for v in (x, y, 2)]
    for hole in ([None, None, 2], [5, 5, 0], [0, 0, 0]):
        (face,), problems = read(tmp_path / "c.json", json.dumps(coco(keypoints=hole + numbers[3:])))
        assert not problems and np.isnan(face.points[0]).all() and np.isfinite(face.points[1:]).all()


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (coco(keypoints=[1, 2]), "annotation 2: expected x, y, visibility for each keypoint"),
        (coco(keypoints=[1, 2, 2]), "annotation 2: expected 5 keypoints as in its category, got 1"),
        (coco(keypoints=[1, 2, 7] * 5), "annotation 2: visibility must be 0, 1 or 2, got 7"),
        (coco(image_id=8), "annotation 2: image_id 8 is not in `images`"),
        (coco() | {"images": "a.png"}, "`images` must be a list"),
        (coco() | {"images": [3]}, "`images` must be a list"),
        (coco() | {"annotations": {}}, "`annotations` must be a list"),
        (coco() | {"annotations": [3]}, "annotation 1: expected an object"),
        ([{"points": [{"name": "nose", "x": 1, "y": 2}, {"x": 1, "y": 2}]}], "entry 1: point 2 has no name"),
        ([{"points": [{"name": "nose", "x": 1, "y": 2}] * 2}], "entry 1: keypoint nose occurs twice"),
        ([{"points": {"noze": [1, 2]}}], "entry 1: unknown keypoint 'noze'; did you mean 'nose'?"),
        ([{"points": [[1]] * 5}], "entry 1: expected x, y for each point, got [1]"),
        ([{"points": [["a", 1]] * 5}], "entry 1: 'a' is not a number"),
        ([{"faces": 3}], "entry 1: `faces` must be a list"),
        (3, "entry 1: expected `points`"),
    ],
)
def test_json_that_cannot_be_used_gives_a_sentence(tmp_path, value, message):
    try:
        faces, problems = read(tmp_path / "c.json", json.dumps(value))
    except InputError as error:
        faces, problems = [], [str(error)]
    assert not faces and len(problems) == 1 and message in problems[0] and problems[0].startswith(str(tmp_path))


def test_points_are_matched_by_name_in_every_entry(tmp_path):
    entries = [{"file": "a", "points": NAMED}, {"file": "b", "points": NAMED[::-1]}, {"file": "c", "points": FIVE}]
    faces, problems = read(tmp_path / "p.json", json.dumps(entries))
    assert [f.file for f in faces] == ["a", "b"] and "entry 3: its points have no names" in problems[0]
    np.testing.assert_allclose(faces[1].points, FIVE)


@pytest.mark.parametrize("hole", ["NA,NA", ",", "nan,nan", "null,null", "-,-", None])
def test_a_missing_point_is_missing_alone(tmp_path, hole):
    lines = ROWS.splitlines(keepends=True)
    lines[2] = f"a.png,1,nose,{hole}\n" if hole else ""
    (face,), problems = read(tmp_path / "p.csv", HEAD + "".join(lines))
    assert not problems and np.isnan(face.points[2]).all()
    np.testing.assert_allclose(np.delete(face.points, 2, 0), np.delete(FIVE, 2, 0))


def test_a_slip_in_one_name_is_no_new_keypoint(tmp_path):
    rows = [ROWS.replace("a.png", f"{i}.png") for i in range(10)]
    rows[4] = rows[4].replace("nose", "noes")
    (tmp_path / "p.csv").write_text(HEAD + "".join(rows))
    assert infer_names(read_entries(tmp_path / "p.csv")) == FACE_5.names
    faces, problems = read(tmp_path / "p.csv", HEAD + "".join(rows))
    assert len(faces) == 9 and "unknown keypoint 'noes'; did you mean 'nose'?" in problems[0]


def test_decimal_commas_between_commas_are_refused(tmp_path):
    rows = ROWS.replace("63.25", "63,25")  # a field too many: x and y would be wrong
    faces, problems = read(tmp_path / "p.csv", HEAD + rows)
    assert not faces and "p.csv:2: expected 5 fields as in the header, got 6" in problems[0]


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("file,x1,y1,x2", "only x or only y of 2"), ("file,nose_x", "only x or only y of nose"),
        ("file,x1,y1,x1,y2", "the column x1 occurs twice"), ("", "got none"), ("file,x1,y1,width", "got width"),
    ],
)  # fmt: skip
def test_columns_that_are_not_points(tmp_path, header, message):
    with pytest.raises(InputError, match=message):
        read(tmp_path / "p.csv", header + "\na,1,2,3,4\n" if header else "\n")


def test_encodings(tmp_path, caplog):
    for encoding in ("utf-8-sig", "utf-16", "cp1252"):
        (face,), _ = read(tmp_path / "p.csv", HEAD + ROWS.replace("a.png", "bär.png"), encoding=encoding)
        assert face.file == "bär.png" and ("read as Windows-1252" in caplog.text) == (encoding == "cp1252")
    (tmp_path / "p.csv").write_bytes(b"file\0\1\2")
    with pytest.raises(InputError, match=r"p\.csv: a binary file"):
        read_entries(tmp_path / "p.csv")
    with pytest.raises(InputError, match=r"none\.csv: cannot be read"):
        read_entries(tmp_path / "none.csv")


def test_placeholders_are_not_learned_silently(tmp_path, caplog):
    def known(missing, holes):
        caplog.clear()
        rows = [ROWS.replace("66.5,80.0", holes[i] if i < len(holes) else "66.5,80.0") for i in range(3)]
        text = HEAD + "".join(r.replace("a.png", f"{i}.png") for i, r in enumerate(rows))
        faces, _ = read(tmp_path / "p.csv", text, missing=missing)
        return [bool(np.isfinite(f.points).all()) for f in faces], [r.getMessage() for r in caplog.records]

    found, (warning,) = known("auto", ["0,0", "0,0"])
    assert found == [False, False, True] and "2 points at exactly 0,0 are taken as missing" in warning
    found, (warning,) = known("auto", ["-1,-1", "0,0", "-1,-1"])[0], known("auto", ["-1,-1", "-1,-1"])[1]
    assert found == [False, True, False] and "2 points at exactly -1,-1" in warning
    found, (warning,) = known("auto", ["0,0"])
    assert found == [True] * 3 and "a point at exactly 0,0 is used; --missing 0,0 drops it" in warning
    assert known("none", ["0,0", "0,0"]) == ([True] * 3, [])
    assert known("0,0", ["0,0"]) == ([False, True, True], [])
    assert known("0,0", ["-1,-1", "-1,-1"]) == ([True] * 3, [])
    with pytest.raises(InputError, match="expected auto, none or a pair of numbers"):
        known("zero", [])
    zeros = [v for x, y in FIVE for v in (x, y, 2)]
    zeros[:3] = 0, 0, 2  # COCO's own 0,0, although it is converted
    (tmp_path / "c.json").write_text(json.dumps(coco(keypoints=zeros)))
    (face,) = read_points(tmp_path / "c.json", FACE_5, pytest.fail, missing="0,0")
    assert np.isnan(face.points[0]).all()


def test_paths_of_windows_and_of_other_folders(arrows, tmp_path):
    text = (arrows / "points.csv").read_text()
    for i, prefix in enumerate(("pictures\\", "C:\\Users\\me\\pictures\\", "/elsewhere/")):
        lines = text.splitlines(keepends=True)
        (arrows / "moved.csv").write_text(lines[0] + "".join(prefix + line for line in lines[1:]))
        images = None if i == 0 else arrows / "pictures"
        assert prepare_points(arrows / "moved.csv", tmp_path / str(i), images=images, strict=True)["train"] == 24
    twice = "".join(f"{folder}/{line}" for folder in ("a", "b") for line in lines[1:])
    (arrows / "moved.csv").write_text(lines[0] + twice)  # a/1.png and b/1.png are not the same image
    with pytest.raises(
        InputError, match="none of its 60 images was found, such as .*; give their folder with --images"
    ):
        prepare_points(arrows / "moved.csv", tmp_path / "twice", images=arrows / "pictures", strict=True)


# ---- the cases of ../shared ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cases():
    folder = SHARED / "cases" / "points"
    if not folder.is_dir():
        pytest.skip("skipped: no ../shared/cases")
    truth = json.loads((folder / "truth.json").read_text())
    return folder, {name: np.array(points) for name, points in truth["points"].items()}


@pytest.mark.parametrize(
    ("name", "missing", "numbers"),
    [
        ("plain.csv", 0, False), ("semicolon_deccomma.csv", 0, False), ("tab.csv", 0, False),
        ("capitals.csv", 0, False), ("filename_col.csv", 0, False), ("wide_names.csv", 0, False),
        ("latin1.csv", 0, False), ("winpath.csv", 0, False), ("missing_NA.csv", 4, False),
        ("missing_row.csv", 4, False), ("missing_zero.csv", 4, False), ("named.json", 0, False),
        ("coco.json", 0, False), ("coco_null.json", 1, False), ("coco_boxonly_first.json", 0, False),
        ("xyv_nested.json", 0, True), ("imagepath.json", 0, True), ("bad.jsonl", 0, True),
        ("points_blankfirst.jsonl", 0, True),
    ],
)  # fmt: skip
def test_shared_cases_become_tables_with_the_true_points(cases, tmp_path, caplog, name, missing, numbers):
    folder, truth = cases
    counts = prepare_points(folder / name, tmp_path, images=folder / "img", quality=0)
    messages = [r.message for r in caplog.records if r.name.endswith(("readers.own", "data.table"))]
    without_eye = name == "coco_null.json"  # an eye is missing, and no normalizer is left for that face
    assert counts["dropped"] == (1 if without_eye or name == "bad.jsonl" else 0) == len(messages)
    if name == "bad.jsonl":
        assert "bad.jsonl:2: not JSON" in messages[0]
    masked = files = 0
    for split in ("train", "valid", "test"):
        table = load_table(tmp_path / f"{split}.parquet")
        names = tuple("12345") if numbers else FACE_5.names
        assert table.info.keypoints.names == names and (numbers or table.info.keypoints == FACE_5)
        for i, file in enumerate(table.files):
            back = table.points[i] @ table.to_file[i][:, :2].T + table.to_file[i][:, 2]
            true = truth["im00.png" if "bär" in file else file.rsplit("/", 1)[-1]]
            np.testing.assert_allclose(back[table.mask[i]], true[table.mask[i]], atol=0.011)
            masked, files = masked + (~table.mask[i]).sum(), files + 1
    assert files == 12 - without_eye and masked == (0 if without_eye else missing)


def test_shared_placeholders_and_too_few_images(cases, tmp_path, caplog):
    folder, _ = cases
    images = ["--images", str(folder / "img")]
    command = ["prepare", "points", str(folder / "missing_zero.csv"), str(tmp_path / "t"), *images]
    assert CliRunner().invoke(app, [*command, "--missing", "none"], catch_exceptions=False).exit_code == 0
    assert all(load_table(tmp_path / "t" / f"{s}.parquet").mask.all() for s in ("train", "valid", "test"))
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert CliRunner().invoke(app, [*command, "--overwrite"], catch_exceptions=False).exit_code == 0
    assert "4 points at exactly 0,0 are taken as missing" in caplog.text
    with pytest.raises(InputError, match="expected 3 or more images for three splits, got 1"):
        prepare_points(folder / "images_dict.json", tmp_path / "few", images=folder / "img")
