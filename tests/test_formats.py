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


# ---- the other tools -------------------------------------------------------------------------------------------


def labelme(folder):
    for file in FILES:
        shapes = [
            {"label": n, "points": [p], "shape_type": "point", "group_id": None}
            for n, p in zip(NAMES, TRUE[file].tolist(), strict=True)
        ]
        shapes.append({"label": "animal", "points": [[0, 0], [9, 9]], "shape_type": "rectangle", "group_id": None})
        value = {"shapes": shapes, "imagePath": f"..\\{file}", "imageWidth": WIDTH, "imageHeight": HEIGHT}
        (folder / "labels").mkdir(exist_ok=True)
        (folder / "labels" / f"{file[0]}.json").write_text(json.dumps(value))
    return folder / "labels"


def labelstudio(folder, minimal=False):
    tasks = []
    for i, file in enumerate(FILES):
        url = ("/data/upload/3/0a1b2c3d-" if i % 2 else "/data/local-files/?d=some/folder/") + file
        marks = [
            {"x": 100 * x / WIDTH, "y": 100 * y / HEIGHT, "width": 0.4, "keypointlabels": [n]}
            for n, (x, y) in zip(NAMES, TRUE[file], strict=True)
        ]
        size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
        results = [{**size, "value": m, "type": "keypointlabels", "id": str(j)} for j, m in enumerate(marks)]
        results.append({**size, "value": {"x": 1, "y": 1, "rectanglelabels": ["animal"]}, "type": "rectanglelabels"})
        skipped = {"was_cancelled": True, "result": results[:1]}
        task = {"id": i, "data": {"image": url}, "annotations": [skipped, {"result": results}]}
        tasks.append({"image": url, "kp": [{**size, **m} for m in marks]} if minimal else task)
    (folder / "export.json").write_text(json.dumps(tasks))
    return folder / "export.json"


def cvat(folder, skeleton=True, hole=None, video=False):
    images = []
    for i, file in enumerate(FILES):
        marks = "".join(
            f'<points label="{n}" occluded="{int(n == "nose")}" outside="{int(hole == (file, n))}" points="{x},{y}"/>'
            for n, (x, y) in zip(NAMES, TRUE[file].tolist(), strict=True)
        )
        inner = f'<skeleton label="animal" frame="{i}">{marks}<attribute name="sex">f</attribute></skeleton>'
        size = f'width="{WIDTH}" height="{HEIGHT}"'
        box = '<box label="animal" xtl="0" ytl="0" xbr="9" ybr="9"/>'
        images.append(
            f'<track id="{i}" label="animal">{inner}</track>' if video
            else f'<image id="{i}" name="{file}" {size}>{box}{inner if skeleton else marks}</image>'
        )  # fmt: skip
    text = f'<?xml version="1.0" encoding="utf-8"?>\n<annotations><version>1.1</version>{"".join(images)}</annotations>'
    (folder / "annotations.xml").write_text(text)
    return folder / "annotations.xml"


def via(folder, form):
    images = {}
    for file in FILES:
        regions = [
            {"shape_attributes": {"name": "point", "cx": x, "cy": y}, "region_attributes": {"name": n, "seen": "yes"}}
            for n, (x, y) in zip(NAMES, TRUE[file].tolist(), strict=True)
        ]
        regions.append({"shape_attributes": {"name": "rect", "x": 1}, "region_attributes": {}})
        images[file + "123"] = {"filename": file, "size": 123, "regions": regions, "file_attributes": {"animal": "m1"}}
    if form == "csv":
        rows = [["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes",
                 "region_attributes"]]  # fmt: skip
        for image in images.values():
            for i, r in enumerate(image["regions"]):
                both = [json.dumps(r[k]) for k in ("shape_attributes", "region_attributes")]
                rows.append([image["filename"], 1, json.dumps(image["file_attributes"]), 5, i, *both])
        with open(folder / "via.csv", "w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        return folder / "via.csv"
    (folder / "via.json").write_text(json.dumps({"_via_img_metadata": images} if form == "project" else images))
    return folder / "via.json"


def dlib(folder, numbers=False):
    images = ""
    for file in FILES:
        parts = "".join(
            f'<part name="{i:02d}" x="{x - 0.5:.2f}" y="{y - 0.5:.2f}"/>' if numbers
            else f'<part name="{NAMES[i]}" x="{x - 0.5:.2f}" y="{y - 0.5:.2f}"/>'
            for i, (x, y) in enumerate(TRUE[file])
        )  # fmt: skip
        images += f'<image file="{file}"><box top="1" left="2" width="9" height="9">{parts}</box></image>'
    (folder / "dlib.xml").write_text(f"<?xml version='1.0'?><dataset><images>{images}</images></dataset>")
    return folder / "dlib.xml"


def pts(folder, suffix=""):
    for file in FILES:
        rows = "\n".join(f"{x + 0.5:.3f} {y + 0.5:.3f}" for x, y in TRUE[file])  # the first pixel's center is 1
        (folder / f"{file[0]}{suffix}.pts").write_text(f"version: 1\nn_points: 4\n{{\n{rows}\n}}\n")
    return folder


def yolo(folder, names=True, each=3, hole=None):
    for part in ("images", "labels"):
        for split in ("train", "val"):
            (folder / part / split).mkdir(parents=True)
    for i, file in enumerate(FILES):
        split = "train" if i < 3 else "val"
        (folder / file).rename(folder / "images" / split / file)
        values = ["0", "0.5", "0.5", "1", "1"]
        for n, (x, y) in zip(NAMES, TRUE[file].tolist(), strict=True):
            there = hole != (file, n)
            values += [repr(x / WIDTH), repr(y / HEIGHT)] if there else ["0", "0"] if each == 3 else ["-1", "-1"]
            values += [str(2 * there)] if each == 3 else []
        (folder / "labels" / split / f"{file[0]}.txt").write_text(" ".join(values) + "\n")
    text = f"path: .\ntrain: images/train\nkpt_shape: [4, {each}]\nflip_idx: [0, 1, 3, 2]\nnames:\n  0: animal\n"
    text += f"kpt_names:\n  0: [{', '.join(NAMES)}]\n" if names else ""
    (folder / "data.yaml").write_text(text)
    return folder


def coco(folder, size=(WIDTH, HEIGHT), convert=lambda x, y: (x, y)):
    images = [{"id": i, "file_name": f, "width": size[0], "height": size[1]} for i, f in enumerate(FILES)]
    marks = [[v for p in TRUE[f].tolist() for v in (*(c - 0.5 for c in convert(*p)), 2)] for f in FILES]
    annotations = [{"id": i, "image_id": i, "category_id": 3, "keypoints": m} for i, m in enumerate(marks)]
    category = {"id": 3, "keypoints": list(NAMES), "skeleton": [[1, 3], [2, 3], [3, 4]]}
    value = {"images": images, "annotations": annotations, "categories": [category]}
    (folder / "coco.json").write_text(json.dumps(value))
    return folder / "coco.json"


NUMBERED = tuple("1234")


@pytest.mark.parametrize(
    ("write", "names"),
    [
        (labelme, NAMES), (labelstudio, NAMES), (lambda f: labelstudio(f, minimal=True), NAMES), (cvat, NAMES),
        (lambda f: cvat(f, skeleton=False), NAMES), (lambda f: via(f, "project"), NAMES),
        (lambda f: via(f, "json"), NAMES), (lambda f: via(f, "csv"), NAMES), (dlib, NAMES),
        (lambda f: dlib(f, numbers=True), NUMBERED), (pts, NUMBERED), (lambda f: pts(f, "_1"), NUMBERED),
        (yolo, NAMES), (lambda f: yolo(f, names=False, each=2), NUMBERED), (coco, NAMES),
    ],
)  # fmt: skip
def test_every_tool_gives_the_true_points(photos, write, names):
    path = write(photos)
    found, keypoints = check(path, names)
    if write is yolo:
        assert keypoints.mirror == ((2, 3),)  # as flip_idx says, whatever the names are
        assert [s.entry.columns["split"] for s in found] == ["train"] * 3 + ["val"]
    elif names == NAMES:
        assert keypoints.mirror == ((0, 1),)
    if write is coco:
        assert keypoints.lines == ((0, 2), (1, 2), (2, 3))
    if write is cvat:
        assert found[0].entry.columns == {"sex": "f"} and found[0].entry.points["nose"].visibility == 1


@pytest.mark.parametrize("write", [cvat, yolo, lambda f, **kind: yolo(f, each=2, **kind)])
def test_points_that_are_not_labeled(photos, write):
    check(write(photos, hole=("b.png", "tail")), missing=("b.png", "tail"))


@pytest.mark.parametrize(
    ("write", "names", "point"),  # the true point that the file has at 0,0
    [
        (deeplabcut, NAMES, (0, 0)), (tps, NUMBERED, (0, HEIGHT)), (labelme, NAMES, (0, 0)),
        (labelstudio, NAMES, (0, 0)), (cvat, NAMES, (0, 0)), (lambda f: via(f, "csv"), NAMES, (0, 0)),
        (dlib, NAMES, (0.5, 0.5)), (pts, NUMBERED, (-0.5, -0.5)), (lambda f: yolo(f, each=2), NAMES, (0, 0)),
        (coco, NAMES, (0.5, 0.5)),
    ],
)  # fmt: skip
def test_placeholders_are_reported_in_every_format(photos, monkeypatch, caplog, write, names, point):
    changed = {file: points.copy() for file, points in TRUE.items()}
    for file in ("a.png", "c.png"):
        changed[file][3] = point
    monkeypatch.setattr("test_formats.TRUE", changed)
    found, _, problems = sets(write(photos))
    assert not problems and [bool(np.isfinite(s.points).all()) for s in found] == [False, True, False, True]
    assert all(np.isnan(found[0].points[i]).all() == (i == 3) for i in range(4))
    assert "2 points at exactly 0,0 are taken as missing; --missing none uses them" in caplog.text


def test_frames_of_a_cvat_video(photos):
    for i, file in enumerate(FILES):
        (photos / file).rename(photos / f"frame_{i:06d}.PNG")
    found, _, problems = sets(cvat(photos, video=True))
    assert not problems and [s.entry.path.is_file() for s in found] == [True] * 4
    np.testing.assert_allclose([s.points for s in found], [TRUE[f] for f in FILES])
    assert found[1].entry.columns == {"track": "1", "sex": "f"}


def test_one_bad_entry_is_named_and_the_others_are_kept(photos):
    def spoil(path, old, new):
        path.write_text(path.read_text().replace(old, new, 1))
        found, _, problems = sets(path.parent if path.suffix == ".txt" or path.parent.name == "labels" else path)
        assert len(found) == 3 and len(problems) == 1, problems
        return problems[0]

    x = str(TRUE["b.png"][0, 0])
    assert "b.json: 'zero' is not a number" in spoil(labelme(photos) / "b.json", f"[{x}", '["zero"')
    (photos / "labels" / "b.json").write_text("{")
    found, _, (problem,) = sets(photos / "labels")
    assert len(found) == 3 and problem.endswith(
        "b.json:1: not JSON (Expecting property name enclosed in double quotes)"
    )
    old = '"keypointlabels": ["tail"]}, "type"'
    assert "keypoint nose occurs twice" in spoil(labelstudio(photos), old, old.replace("tail", "nose"))
    text = spoil(cvat(photos), f'points="{x},', 'points="zero,')
    assert "image b.png: 'zero' is not a number" in text
    assert "b.png: 'zero' is not a number" in spoil(via(photos, "json"), f'"cx": {x}', '"cx": "zero"')
    assert "image 2: 'zero' is not a number" in spoil(dlib(photos), f'x="{TRUE["b.png"][0, 0] - 0.5:.2f}"', 'x="zero"')
    yolo(photos)
    file = photos / "labels" / "train" / "b.txt"
    file.write_text(file.read_text().strip() + " 3")
    found, _, (problem,) = sets(photos / "data.yaml")
    assert len(found) == 3 and f"{file}:1: expected 17 numbers as kpt_shape says, got 18" in problem


def test_two_objects_in_an_image(photos):
    folder = labelme(photos)
    value = json.loads((folder / "a.json").read_text())
    again = [s | {"group_id": 7} for s in value["shapes"][:4]]
    (folder / "a.json").write_text(json.dumps(value | {"shapes": value["shapes"] + again}))
    found, _, problems = sets(folder)
    assert len(found) == 5 and not problems and [s.face for s in found[:2]] == ["1", "7"]
    (folder / "a.json").write_text(json.dumps(value | {"shapes": value["shapes"] + value["shapes"][:1]}))
    _, _, (problem,) = sets(folder)
    assert "keypoint left_ear occurs twice; give each object its own group id" in problem


@pytest.mark.parametrize("orientation", [3, 5, 6, 7, 8])
def test_coco_sizes_from_before_the_exif_rotation(photos, orientation):
    from PIL import Image, ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    for file in FILES:  # stored turned; displayed as before
        Image.new("RGB", (HEIGHT, WIDTH) if orientation >= 5 else (WIDTH, HEIGHT)).save(photos / file, exif=exif)
        with Image.open(photos / file) as image:
            assert ImageOps.exif_transpose(image).size == (WIDTH, HEIGHT)
    check(coco(photos))  # sizes as displayed
    if orientation >= 5:
        back = {  # the stored coordinates of a displayed point
            5: lambda x, y: (y, x), 6: lambda x, y: (y, WIDTH - x), 7: lambda x, y: (HEIGHT - y, WIDTH - x),
            8: lambda x, y: (HEIGHT - y, x),
        }  # fmt: skip
        check(coco(photos, (HEIGHT, WIDTH), back[orientation]))
        stored, turned = np.zeros((WIDTH, HEIGHT), np.uint8), TRUE["a.png"][0]
        x, y = (int(v) for v in back[orientation](*turned))
        stored[y, x] = 255
        image = Image.fromarray(stored)
        image.getexif()[0x0112] = orientation
        shown = np.asarray(ImageOps.exif_transpose(image))
        assert shown[int(turned[1]), int(turned[0])] == 255


def test_points_for_another_size_of_the_image_are_refused(photos):
    found, _, problems = sets(coco(photos, (2 * WIDTH, 2 * HEIGHT)))
    assert not found and len(problems) == 4
    assert f"its points are for an image of 240x160 pixels, but {photos / 'a.png'} has 120x80" in problems[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kpt_shape: 4\n", "kpt_shape must be"),
        ("kpt_shape: [4, 3\n", "not YAML"),
        ("kpt_shape: [4, 3]\nflip_idx: [0, 1]\n", "flip_idx must hold the numbers 0 to 3"),
        ("kpt_shape: [4, 3]\nflip_idx: [1, 2, 3, 0]\n", "flip_idx must swap pairs"),
        ("kpt_shape: [4, 3]\nkpt_names: [a, b]\n", "kpt_names must be 4 different names, got 2"),
        ("kpt_shape: [4, 3]\n", "no labels/"),
    ],
)
def test_yolo_settings_that_cannot_be_used(tmp_path, text, message):
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        read_entries(tmp_path)


def test_sleap(photos):
    sleap = pytest.importorskip("sleap_io", reason="skipped: needs the extra formats")
    skeleton = sleap.Skeleton(list(NAMES), edges=[("nose", "tail")])
    skeleton.add_symmetry("right_ear", "left_ear")
    video = sleap.Video.from_filename([str(photos / f) for f in FILES])
    frames = [
        sleap.LabeledFrame(video=video, frame_idx=i, instances=[sleap.Instance.from_numpy(TRUE[f] - 0.5, skeleton)])
        for i, f in enumerate(FILES)
    ]
    sleap.Labels(frames).save(str(photos / "labels.slp"))
    _, keypoints = check(photos / "labels.slp")
    assert keypoints.mirror == ((0, 1),) and keypoints.lines == ((2, 3),)
    frames[2].frame_idx = 7
    sleap.Labels(frames).save(str(photos / "labels.slp"))
    found, _, problems = sets(photos / "labels.slp")
    assert len(found) == len(FILES) - 1 and problems == [
        f"{photos / 'labels.slp'}: frame 7: its video has {len(FILES)} images"
    ]
    frames[2].frame_idx = 2
    with cv2.VideoWriter(str(photos / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 5, (WIDTH, HEIGHT)) as out:
        for level in (20, 90, 160, 230):
            out.write(np.full((HEIGHT, WIDTH, 3), level, np.uint8))
    clip = sleap.Video.from_filename(str(photos / "clip.avi"))
    for frame in frames:
        frame.video = clip
    sleap.Labels(frames).save(str(photos / "clip.slp"))
    found, _, problems = sets(photos / "clip.slp")
    assert not problems and found[2].file == "clip.avi#2" and found[2].entry.columns["video"] == "clip.avi"
    assert abs(found[2].entry.image().mean() - 160) < 8
    np.testing.assert_allclose(found[2].points, TRUE["c.png"], atol=1e-4)
    assert prepare_points(photos / "clip.slp", photos / "t", strict=True)["train"] == 2


def test_sleap_without_its_package(photos, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sleap_io", None)
    (photos / "x.slp").write_bytes(b"")
    with pytest.raises(InputError, match=r"reading x\.slp needs sleap_io; pip install .*\[formats\]"):
        read_entries(photos / "x.slp")


# ---- which format ----------------------------------------------------------------------------------------------


def test_unknown_formats(photos):
    with pytest.raises(InputError, match=r"notes\.txt: unknown points format; expected one of dlc \("):
        (photos / "notes.txt").write_text("nothing")
        read_entries(photos / "notes.txt")
    with pytest.raises(InputError, match="unknown points format 'x'; expected one of dlc, yolo"):
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


LACKING = {("labelme", "im03.png")}  # a point was not labeled there


@pytest.mark.parametrize("name", ["CollectedData_scorer1.csv", "labelme", "labelstudio.json", "dlib.xml"])
def test_shared_cases_of_tools(name):
    folder = SHARED / "cases" / "points"
    if not folder.is_dir():
        pytest.skip("skipped: no ../shared/cases")
    truth = json.loads((folder / "truth.json").read_text())
    entries = read_entries(folder / name, "auto", images=folder / "img")
    keypoints = infer_keypoints(entries, folder / name)
    found = point_sets(entries, keypoints, lambda e: pytest.fail(str(e)))
    names = tuple("12345") if name == "dlib.xml" else tuple(truth["keypoints"])
    assert len(found) == 12 and infer_names(entries) == names
    for s in found:
        # imglab has whole pixels: half a pixel of rounding, or a pixel's edge where the true point is close to it
        off = 0.505 if name == "dlib.xml" else 0.0051
        known = np.isfinite(s.points).all(axis=1)
        assert known.sum() == (4 if (name, s.entry.path.name) in LACKING else 5)
        np.testing.assert_allclose(s.points[known], np.array(truth["points"][s.entry.path.name])[known], atol=off)
