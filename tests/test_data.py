import hashlib
import json
import os
import subprocess
import sys

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from conftest import SHARED, mtfl_line

from recombinator.data import crops
from recombinator.data.images import decode_image, encode_image, read_image
from recombinator.data.readers.mtfl import parse_line, prepare_mtfl, split_indices
from recombinator.data.readers.synthetic import draw_face, five_of, prepare_synthetic
from recombinator.data.table import load_table, read_info
from recombinator.keypoints import FACE_5, FACE_68, KeypointSet, check_same_keypoints
from recombinator.utils.errors import InputError
from recombinator.utils.files import Busy, check_output_file, check_output_folder, is_locked, lock_folder

FACE = np.array([[30.0, 40.0], [62.0, 38.0], [47.0, 58.0], [34.0, 76.0], [60.0, 77.0]])


# ---- crop rules ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(250, 250), (100, 300), (90, 90), (60, 80)])
def test_eye_mouth_box_is_square_and_inside(size):
    rng = np.random.default_rng(0)
    for _ in range(50):
        points = FACE + rng.normal(0, 3, (5, 2)) + rng.uniform(-20, 60, 2)
        x, y, side = crops.eye_mouth_box(points, 1.25, *size)
        assert x >= 0 and y >= 0 and x + side <= size[0] and y + side <= size[1] and side <= min(size)


def test_a_box_that_cannot_fit_is_trimmed_evenly():
    """The authors' square is kept by cutting the long axis on both sides."""
    points = FACE + [0, 60]
    x, y, side = crops.eye_mouth_box(points, 1.25, 90, 400)
    full = crops.eye_mouth_box(points + 1000, 1.25, 9000, 9000)[2]
    assert side == 90 < full and x == 0
    top = max(0, int(points[:, 1].min()) - int(1.25 * np.linalg.norm(points[:2].mean(0) - points[3:].mean(0))))
    assert y == top + -(-(full - 90) // 2)


def test_eye_mouth_box_reaches_as_far_as_the_rule_says():
    points = FACE + 500
    x, y, side = crops.eye_mouth_box(points, 1.25, 2000, 2000)
    d = max(np.hypot(32, 2), np.linalg.norm(points[:2].mean(0) - points[3:].mean(0)))
    span = 577 - 538  # the taller side of the four points, in whole pixels
    assert side == span + 2 * int(1.25 * d)
    assert y == 538 - int(1.25 * d)
    assert x <= 530 - int(1.25 * d) < x + 10


def test_scaled_box_is_about_the_center_and_may_leave_the_image():
    x, y, side = crops.scaled_box(FACE, 1.7, 10, 10)
    assert y > 0 and y + side > 10 and abs(side - 1.7 * 39) < 3
    assert abs((x + side / 2) - 45.75) < 1.5 and abs((y + side / 2) - 57.5) < 1.5


def test_points_stay_on_their_pixels_through_the_crop():
    image = np.zeros((200, 220), np.uint8)
    points = FACE + [40, 30]
    for x, y in points:
        image[round(y) - 3 : round(y) + 3, round(x) - 3 : round(x) + 3] = 255
    for rule in crops.RULES.values():
        crop, to_file, box = rule.crop(image, points, 160)
        inside = (points - to_file[:, 2]) / to_file[0, 0]
        for x, y in inside:
            assert crop[int(y), int(x)] > 200
        np.testing.assert_allclose(inside * to_file[0, 0] + to_file[:, 2], points)
        assert (inside > box[:2]).all() and (inside < box[:2] + box[2]).all()


def test_cut_pads_with_black():
    image = np.full((10, 10), 7, np.uint8)
    out = crops.cut(image, (-2, 5, 8))
    assert out.shape == (8, 8) and (out[:5, 2:] == 7).all() and not out[5:].any() and not out[:, :2].any()
    assert not crops.cut(image, (50, 50, 4)).any()


def test_stage_two_does_not_depend_on_the_stored_size():
    points = FACE * 1.5
    a = crops.RULES["mtfl"].inner_box(points, 160)
    b = crops.RULES["mtfl"].inner_box(points * 0.8, 128)
    np.testing.assert_allclose(a, b / 0.8, rtol=1e-6)


def test_independent_crop_vectors(shared_mtfl):
    rule = crops.RULES["mtfl"]
    for face in json.loads((SHARED / "vectors.json").read_text())["crop"]:
        text = (shared_mtfl / face["list"]).read_text().splitlines()[face["line"] - 1]
        points = parse_line(text, "here").points + crops.FILE_ORIGIN
        box = rule.box(points, rule.stage1, *face["image_size"])
        assert list(box) == face["stage1_box_xywh"][:3]
        in_160 = (points - box[:2]) * 160 / box[2]
        inner = rule.inner_box(in_160, 160)
        assert inner.tolist() == face["stage2_box_xywh_in_160"][:3]
        _, to_file, stored = rule.crop(np.zeros(face["image_size"][::-1], np.uint8), points - crops.FILE_ORIGIN)
        assert to_file[:, 2].tolist() == list(box[:2]) and stored.tolist() == inner.tolist()
        np.testing.assert_allclose((in_160 - inner[:2]) * 80 / inner[2], face["points_in_80"], atol=6e-4)


# ---- MTFL ----------------------------------------------------------------------------------------------------


def test_the_authors_split():
    train, valid = split_indices(10_000)
    assert train[:5].tolist() == [4600, 8841, 6105, 6800, 298] and valid[:3].tolist() == [2284, 4736, 7480]
    assert (len(train), len(valid)) == (9000, 1000) and set(train) | set(valid) == set(range(10_000))
    assert [len(x) for x in split_indices(37)] == [34, 3] and [len(x) for x in split_indices(5)] == [4, 1]
    assert [len(x) for x in split_indices(1)] == [1, 0]


def test_prepare_writes_what_the_layout_holds(mtfl_layout, tmp_path):
    counts = prepare_mtfl(mtfl_layout, tmp_path / "out")
    assert counts == {"train": 18, "valid": 2, "test": 4, "dropped": 0}
    table = load_table(tmp_path / "out" / "test.parquet")
    assert table.images.shape == (4, 1, 160, 160) and table.points.shape == (4, 5, 2) and table.mask.all()
    assert table.files == [f"AFLW/{i}.jpg" for i in range(4)]
    for i, text in enumerate((mtfl_layout / "testing.txt").read_text().splitlines()):
        truth = parse_line(text, "x").points
        affine = table.to_file[i]
        np.testing.assert_allclose(table.points[i] @ affine[:, :2].T + affine[:, 2], truth, atol=1e-3)
    assert read_info(tmp_path / "out" / "train.parquet").split == "train"


def test_rows_open_elsewhere(mtfl_layout, tmp_path):
    prepare_mtfl(mtfl_layout, tmp_path / "out")
    frame = pd.read_parquet(tmp_path / "out" / "train.parquet")
    row = frame.iloc[0]
    assert decode_image(row["image"]["bytes"], "row").shape == (160, 160, 3)
    assert (row["gender"], row["smile"], row["glasses"], row["pose"]) == (0, 1, 1, 2) and row["split"] == "train"
    meta = json.loads(pq.read_schema(tmp_path / "out" / "train.parquet").metadata[b"huggingface"])
    assert meta == {"info": {"features": {"image": {"_type": "Image"}}}}  # the least that `datasets` needs


def test_tables_with_the_metadata_of_earlier_versions_stay_readable(faces5, tmp_path):
    table = pq.read_table(faces5 / "test.parquet")
    features = {name: {"dtype": "float32", "_type": "Value"} for name in table.column_names}
    old = {**table.schema.metadata, b"huggingface": json.dumps({"info": {"features": features}}).encode()}
    pq.write_table(table.replace_schema_metadata(old), tmp_path / "old.parquet")
    assert json.loads(old[b"recombinator"])["format"] == 3
    a, b = load_table(tmp_path / "old.parquet"), load_table(faces5 / "test.parquet")
    assert a.fingerprint == b.fingerprint and a.info == b.info


@pytest.mark.parametrize("missing", ["training.txt", "testing.txt"])
def test_either_list_may_be_missing(mtfl_layout, tmp_path, missing):
    (mtfl_layout / missing).unlink()
    counts = prepare_mtfl(mtfl_layout, tmp_path / "out")
    written = sorted(p.stem for p in (tmp_path / "out").glob("*.parquet"))
    assert written == (["test"] if missing == "training.txt" else ["train", "valid"])
    assert sum(counts.values()) == (4 if missing == "training.txt" else 20)


def bad_lines():
    face = FACE * 1.5
    nan = face.copy()
    nan[2, 1] = np.nan
    return [
        (mtfl_line("AFLW/none.jpg", face), "none.jpg: cannot be read"),
        (mtfl_line("AFLW/broken.jpg", face), "broken.jpg: not an image"),
        (mtfl_line("../outside.jpg", face), "outside.jpg: outside .*do not belong"),
        (mtfl_line("AFLW/empty.jpg", face), "empty.jpg: not an image"),
        (mtfl_line("AFLW/0.jpg", nan), "not a finite number"),
        (mtfl_line("AFLW/0.jpg", face + 900), "far outside"),
        (mtfl_line("AFLW/0.jpg", face * 0), "less than a pixel apart"),
        (mtfl_line("AFLW/0.jpg", face) + " 7 8 9 1 2 3 4 5", "expected 15 fields .*, got 23"),
        ("AFLW/0.jpg 1 2 3", "expected 15 fields .*, got 4"),
        (mtfl_line("AFLW/0.jpg", face, (1, 300, 1, 1)), "attributes must be whole numbers"),
        (mtfl_line("AFLW/0.jpg", face, (1, 1.7, 1, 1)), "attributes must be whole numbers"),
        (mtfl_line("AFLW/\0.jpg", face), "cannot be read"),
        (mtfl_line("AFLW/0.jpg", face).replace("45.0", "x45"), "could not convert"),
    ]


@pytest.mark.parametrize(("line", "reason"), bad_lines())
def test_a_bad_line_is_named_and_left_out(mtfl_layout, tmp_path, line, reason, caplog):
    (mtfl_layout / "AFLW" / "broken.jpg").write_bytes(b"\xff\xd8 this is no picture")
    (mtfl_layout / "AFLW" / "empty.jpg").write_bytes(b"")
    listing = mtfl_layout / "testing.txt"
    listing.write_text(listing.read_text() + "\n" + line + "\n")
    counts = prepare_mtfl(mtfl_layout, tmp_path / "out")
    said = caplog.messages
    assert counts["test"] == 4 and counts["dropped"] == 1 and len(said) == 1
    assert said[0].startswith(f"{listing}:5: ")
    with pytest.raises(InputError, match=reason):
        raise InputError(said[0])
    with pytest.raises(InputError, match="testing.txt:5"):
        prepare_mtfl(mtfl_layout, tmp_path / "strict", strict=True)
    assert not list((tmp_path / "strict").glob("test.parquet*"))


def test_a_folder_that_is_not_mtfl(tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        prepare_mtfl(tmp_path / "none", tmp_path / "out")
    with pytest.raises(InputError, match="expected training.txt and testing.txt"):
        prepare_mtfl(tmp_path, tmp_path / "out")


def test_files_count_from_one():
    """The first pixel's center is 1 in the file and 0.5 here; flips would turn the difference into an error."""
    assert np.allclose(parse_line(mtfl_line("a.jpg", FACE), "x").points, FACE - 0.5)


def test_blanks_in_a_file_name():
    assert parse_line(mtfl_line("a b\\c d.jpg", FACE), "x").file == "a b/c d.jpg"


def test_size_gray_and_quality(mtfl_layout, tmp_path):
    prepare_mtfl(mtfl_layout, tmp_path / "big", quality=0)
    prepare_mtfl(mtfl_layout, tmp_path / "small", size=128, gray=True, quality=80)
    big, small = (load_table(tmp_path / d / "test.parquet") for d in ("big", "small"))
    assert small.images.shape == (4, 1, 128, 128) and small.info.gray
    np.testing.assert_allclose(small.points * 160 / 128, big.points, rtol=1e-5)
    assert os.path.getsize(tmp_path / "small" / "test.parquet") < os.path.getsize(tmp_path / "big" / "test.parquet") / 3
    assert load_table(tmp_path / "big" / "test.parquet", channels=3).images.shape[1] == 3
    with pytest.raises(InputError, match="holds gray crops"):
        load_table(tmp_path / "small" / "test.parquet", channels=3)


def test_real_mtfl_lists_parse(shared_mtfl):
    for listing, count in (("training.txt", 10_000), ("testing.txt", 2_995)):
        lines = [t for t in (shared_mtfl / listing).read_text().splitlines() if t.strip()]
        parsed = [parse_line(t, listing) for t in lines]
        assert len(parsed) == count
        assert all((shared_mtfl / p.file).is_file() for p in parsed[::97])


# ---- tables --------------------------------------------------------------------------------------------------


def test_what_is_not_a_table_is_refused(tmp_path, faces5):
    (tmp_path / "text.parquet").write_text("hello")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "foreign.parquet")
    for name, words in (("none", "no such file"), ("text", "not a Parquet file"), ("foreign", "not written by")):
        with pytest.raises(InputError, match=words):
            load_table(tmp_path / f"{name}.parquet")


def test_what_reports_say_of_a_table(faces5):
    table = load_table(faces5 / "valid.parquet", limit=4)
    expected = {"dataset": "synthetic", "split": "valid", "images": 4, "fingerprint": table.fingerprint}
    assert table.describe() == expected and len(table.fingerprint) == 16


def test_a_fingerprint_is_that_of_earlier_versions(tmp_path):
    """Checkpoints and results name the tables that they are of: 16 digits of SHA-256 of crops, then float32 points."""
    prepare_synthetic(tmp_path, faces=10, seed=5, size=32, quality=0)
    rows = pq.read_table(tmp_path / "train.parquet").to_pylist()
    content = b"".join(row["image"]["bytes"] for row in rows)
    content += np.array([row["points"] for row in rows], np.float32).tobytes()
    assert load_table(tmp_path / "train.parquet").fingerprint == hashlib.sha256(content).hexdigest()[:16]


def test_fingerprint_and_limit(faces5):
    a, b = (load_table(faces5 / "train.parquet", limit=n) for n in (None, 7))
    assert a.fingerprint != b.fingerprint and len(b) == 7 and np.array_equal(a.points[:7], b.points)


def test_fingerprint_is_of_the_content(faces5, tmp_path):
    frame = pq.read_table(faces5 / "train.parquet")
    pq.write_table(frame, tmp_path / "again.parquet", compression="none", row_group_size=5)
    assert load_table(tmp_path / "again.parquet").fingerprint == load_table(faces5 / "train.parquet").fingerprint


# ---- drawn faces ---------------------------------------------------------------------------------------------


def test_drawn_faces_follow_the_seed(tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        prepare_synthetic(tmp_path / name, faces=10, seed=seed)
    a, b, c = (load_table(tmp_path / n / "train.parquet") for n in "abc")
    assert np.array_equal(a.images, b.images) and np.array_equal(a.points, b.points)
    assert not np.array_equal(a.points, c.points)


def test_drawn_faces_with_68_points(faces68):
    table = load_table(faces68 / "train.parquet")
    assert table.points.shape == (24, 68, 2) and table.info.keypoints.name == "face-68"
    left, right = table.points[:, 36:42].mean(1), table.points[:, 42:48].mean(1)
    assert (left[:, 0] < right[:, 0]).all()
    with pytest.raises(InputError, match="5 or 68"):
        prepare_synthetic(faces68 / "x", keypoints=7)
    with pytest.raises(InputError, match="expected 10 or more faces"):
        prepare_synthetic(faces68 / "x", faces=3)


def test_a_drawn_eye_lies_at_its_point():
    dark = 0
    for i in range(20):
        image, points = draw_face(np.random.default_rng([9, i]))
        x, y = five_of(points)[0]
        around = image[int(y) - 12 : int(y) + 13, int(x) - 12 : int(x) + 13].mean()
        dark += image[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2].mean() < around
    assert dark >= 15  # an iris is darker than what surrounds it; some are covered


# ---- images --------------------------------------------------------------------------------------------------


def test_reading_every_kind_of_image(tmp_path):
    import cv2
    from PIL import Image

    rgb = np.zeros((40, 60, 3), np.uint8)
    rgb[:20, :30] = (250, 20, 30)
    for name, image in (
        ("rgb.png", Image.fromarray(rgb)),
        ("gray.png", Image.fromarray(rgb[..., 0])),
        ("alpha.png", Image.fromarray(np.dstack([rgb, rgb[..., 0]]))),
        ("palette.gif", None),
    ):
        if image is not None:
            image.save(tmp_path / name)
            got = read_image(tmp_path / name)
            assert got.shape == (40, 60, 3) and got.dtype == np.uint8 and got[5, 5, 0] > 200 and got[30, 50].max() < 30
    assert tuple(read_image(tmp_path / "rgb.png")[0, 0]) == (250, 20, 30)
    cv2.imwrite(str(tmp_path / "deep.png"), (rgb.astype(np.uint16) * 257)[..., ::-1])
    np.testing.assert_allclose(read_image(tmp_path / "deep.png"), rgb, atol=1)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the stored picture is to be rotated clockwise
    Image.fromarray(rgb).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    turned = read_image(tmp_path / "turned.jpg")
    assert turned.shape == (60, 40, 3) and turned[5, 35, 0] > 200 and turned[5, 5].max() < 60


def test_unreadable_images_are_named(tmp_path):
    (tmp_path / "x.jpg").write_text("no")
    with pytest.raises(InputError, match=r"x\.jpg: not an image"):
        read_image(tmp_path / "x.jpg")
    with pytest.raises(InputError, match=r"y\.jpg: cannot be read"):
        read_image(tmp_path / "y.jpg")
    with pytest.raises(InputError, match="cannot be read"):
        read_image(tmp_path)


def test_encoding_round_trip():
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(decode_image(encode_image(image, 0), "x"), image)
    assert encode_image(image, 90)[:2] == b"\xff\xd8"


# ---- keypoint sets -------------------------------------------------------------------------------------------


def test_keypoint_sets_are_compared_by_names_in_order():
    check_same_keypoints(FACE_5, KeypointSet("another name", FACE_5.names), "x")
    with pytest.raises(InputError) as error:
        check_same_keypoints(FACE_5, FACE_68, "valid.parquet")
    assert str(error.value) == (
        "valid.parquet: expected 5 keypoints (face-5: left_eye, right_eye, nose, left_mouth, right_mouth), "
        "got 68 (face-68: jaw_1, jaw_2, jaw_3, jaw_4, jaw_5, ...)"
    )
    exchanged = KeypointSet("mine", ("left_eye", "nose", "right_eye", "left_mouth", "right_mouth"))
    with pytest.raises(InputError, match="keypoint 2 must be right_eye, got nose"):
        check_same_keypoints(FACE_5, exchanged, "x")


# ---- files and locks -----------------------------------------------------------------------------------------


def test_output_names_are_checked(tmp_path):
    check_output_file(tmp_path / "a.CSV", ".csv", ".json")
    check_output_folder(tmp_path / "new")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"a\.txt: must end in \.csv or \.json"):
        check_output_file(tmp_path / "a.txt", ".csv", ".json")
    with pytest.raises(InputError, match="is a folder; expected a file name"):
        check_output_file(tmp_path, ".csv")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        check_output_folder(tmp_path / "file")


HOLD = """
import sys
from pathlib import Path
from recombinator.utils.files import lock_folder
with lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_folder_belongs_to_one_process_until_that_dies(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "locked\n"
        assert is_locked(folder)
        with pytest.raises(Busy, match="another process uses this folder"), lock_folder(folder):
            pytest.fail("locked twice")
        other.kill()  # it has no time to tidy up
        other.wait()
    assert not is_locked(folder)
    with lock_folder(folder):
        assert not is_locked(folder)  # no *other* process


def test_a_lock_can_be_taken_again_and_leaves_no_empty_folder(tmp_path):
    with lock_folder(tmp_path / "empty"), lock_folder(tmp_path / "empty"):
        assert (tmp_path / "empty").is_dir()
    assert not (tmp_path / "empty").exists() and not is_locked(tmp_path / "empty")
    with pytest.raises(KeyError), lock_folder(tmp_path / "failed"):
        raise KeyError
    assert not (tmp_path / "failed").exists()
    with lock_folder(tmp_path / "used"):
        (tmp_path / "used" / "result").touch()
    with lock_folder(tmp_path / "used"):
        pass
    assert (tmp_path / "used" / "result").is_file()
