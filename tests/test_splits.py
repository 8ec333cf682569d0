"""Splits by a column, by a second file and by groups; physical units."""

import csv
import json

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from recombinator.cli import app
from recombinator.data.readers.own import prepare_points
from recombinator.data.splits import connected, draw
from recombinator.data.table import SPLIT_SEED, load_table
from recombinator.utils.errors import InputError


@pytest.fixture
def own(tmp_path):
    """A function that writes images 0.png, ... and a CSV with further columns, and returns the CSV."""

    def write(n, name="points.csv", first=0, **columns):
        rows = [["file", "x1", "y1", "x2", "y2", *columns]]
        for i in range(first, first + n):
            cv2.imwrite(str(tmp_path / f"{i:02d}.png"), np.full((40, 40, 3), 9, np.uint8))
            rows.append([f"{i:02d}.png", 10, 10, 30, 25, *(values[i - first] for values in columns.values())])
        with open(tmp_path / name, "w", newline="") as stream:
            csv.writer(stream).writerows(rows)
        return tmp_path / name

    return write


def files(folder):
    return {s: load_table(folder / f"{s}.parquet").files for s in ("train", "valid", "test")}


def test_split_column(own, tmp_path):
    source = own(6, use=["train", "Training", "val", "test", "train", "valid"])
    run = CliRunner().invoke(
        app, ["prepare", "points", str(source), str(tmp_path / "t"), "--split-column", "use"], catch_exceptions=False
    )
    assert run.exit_code == 0
    assert files(tmp_path / "t") == {
        "train": ["00.png", "01.png", "04.png"], "valid": ["02.png", "05.png"], "test": ["03.png"],
    }  # fmt: skip
    with pytest.raises(InputError, match=r"points\.csv:1: no column usage; it has file, x1"):
        prepare_points(source, tmp_path / "u", split_column="usage")
    with pytest.raises(InputError, match=r"expected the columns .* got use"):
        prepare_points(source, tmp_path / "u")


def test_split_that_the_column_does_not_name_is_drawn_from_training(own, tmp_path, caplog):
    counts = prepare_points(own(21, use=["train"] * 18 + ["val"] * 2 + ["spare"]), tmp_path / "t", split_column="use")
    assert counts["dropped"] == 1 and "points.csv:22: unknown split 'spare'; expected one of train" in caplog.text
    found = files(tmp_path / "t")
    assert found["valid"] == ["18.png", "19.png"] and len(found["test"]) == 1 and len(found["train"]) == 17
    assert not {*found["test"]} & {*found["train"]}


def test_second_file_is_the_test_table(own, tmp_path, caplog):
    train, test = own(12), own(4, "more.csv", first=10)  # two images are in both
    prepare_points(train, tmp_path / "t", test=test)
    found = files(tmp_path / "t")
    assert found["test"] == ["10.png", "11.png", "12.png", "13.png"]
    assert sorted(found["train"] + found["valid"]) == [f"{i:02d}.png" for i in range(10)]
    assert "2 images also in" in caplog.text and "used for testing only" in caplog.text


def test_groups_stay_together(own, tmp_path):
    people = [f"p{i // 4}" for i in range(40)]
    source = own(40, person=people)
    prepare_points(source, tmp_path / "t", group="person")
    sides = {s: {people[int(f[:2])] for f in names} for s, names in files(tmp_path / "t").items()}
    assert len(sides["train"]) == 8 and len(sides["valid"]) == len(sides["test"]) == 1
    assert len(set.union(*sides.values())) == 10
    with pytest.raises(InputError, match="expected 3 or more groups of images for three splits, got 2"):
        prepare_points(own(8, person=["a"] * 4 + ["b"] * 4), tmp_path / "u", group="person")
    with pytest.raises(InputError, match="no column animal"):
        prepare_points(source, tmp_path / "u", group="animal")


def test_draw():
    names = [f"{i:02d}" for i in range(25)]
    order = [names[i] for i in np.random.RandomState(SPLIT_SEED).permutation(25)]  # as before there were groups
    single = draw([[n] for n in names], ["test", "valid"])
    assert single == {"test": order[:2], "valid": order[2:4], "train": order[4:]}
    large = draw([names[:22], names[22:23], names[23:24], names[24:]], ["test", "valid"])
    assert names[0] in large["train"] and all(large.values())  # the large group is for training
    assert connected(["a", "b", "c", "d"], {"a": {"1"}, "b": {"1", "2"}, "c": {"3"}, "d": {"2"}}) == [
        ["a", "b", "d"], ["c"],
    ]  # fmt: skip


def test_columns_of_coco_and_of_folders(own, tmp_path):
    own(12)
    images = [{"id": i, "file_name": f"{i:02d}.png", "camera": f"c{i % 4}"} for i in range(12)]
    marks = [{"id": i, "image_id": i, "keypoints": [10, 10, 2, 30, 25, 2]} for i in range(12)]
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": marks}))
    prepare_points(tmp_path / "c.json", tmp_path / "t", group="camera")
    sides = [{int(f[:2]) % 4 for f in names} for names in files(tmp_path / "t").values()]
    assert sum(map(len, sides)) == 4
    for i in range(12):
        (tmp_path / "abc"[i % 3]).mkdir(exist_ok=True)
        (tmp_path / f"{i:02d}.png").rename(tmp_path / "abc"[i % 3] / f"{i:02d}.png")
        images[i]["file_name"] = f"{'abc'[i % 3]}/{i:02d}.png"
    (tmp_path / "c.json").write_text(json.dumps({"images": images, "annotations": marks}))
    prepare_points(tmp_path / "c.json", tmp_path / "u", group="folder")
    assert all(len({f[0] for f in names}) == 1 for names in files(tmp_path / "u").values())


def test_physical_unit(own, tmp_path):
    source = own(
        6, scale=["0.5", "0.25", "0.5", "0.5", "", "0.5"], use=["train", "train", "val", "test", "train", "val"]
    )
    prepare_points(source, tmp_path / "t", mm_per_pixel="scale", split_column="use")
    table = load_table(tmp_path / "t" / "train.parquet")
    np.testing.assert_array_equal(table.mm_per_pixel, [0.5, 0.25, np.nan])
    assert table.attributes == {}
    plain = own(6)
    for option, expected in (("0.125", 0.125), (None, None)):
        extra = ["--mm-per-pixel", option] if option else []
        command = ["prepare", "points", str(plain), str(tmp_path / f"u{option}"), *extra]
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
        found = load_table(tmp_path / f"u{option}" / "train.parquet").mm_per_pixel
        assert found is None if expected is None else (found == expected).all()
    for wrong, message in (("-1", "must be above 0"), ("size", "no column size")):
        command = ["prepare", "points", str(plain), str(tmp_path / "w"), "--mm-per-pixel", wrong]
        assert message in str(CliRunner().invoke(app, command).exception)
    rows = [f"LM=2\n10 10\n30 25\nIMAGE={i:02d}.png\nSCALE=0.0{i + 1}\n" for i in range(6)]
    (tmp_path / "x.tps").write_text("".join(rows))
    prepare_points(tmp_path / "x.tps", tmp_path / "v")
    table = load_table(tmp_path / "v" / "train.parquet")
    np.testing.assert_allclose(table.mm_per_pixel, [(int(f[:2]) + 1) / 100 for f in table.files])
