"""Tables of several files, and crops that stay on disk."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from test_training import SMALL, Stop, same, stop_after, weights_of

from recombinator.data.readers.synthetic import prepare_synthetic
from recombinator.data.stream import StreamedImages, TableReader
from recombinator.data.table import load_table, read_info
from recombinator.evaluation.tables import evaluate_table
from recombinator.models import create_model
from recombinator.study import memory
from recombinator.training.order import epoch_order
from recombinator.training.recipe import get_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError


def split(source, folder, first=0, rows=7, group=3):
    """Write a table's rows from `first` on as files of a folder."""
    table = pq.read_table(source)
    folder.mkdir(parents=True)
    for i in range(first, len(table), rows):
        pq.write_table(table.slice(i, rows), folder / f"{i:03}.parquet", row_group_size=group)


@pytest.fixture(scope="module")
def shards(faces5, tmp_path_factory):
    """The tables of faces5 in many files and row groups of three."""
    folder = tmp_path_factory.mktemp("shards")
    for name in ("train", "valid"):
        split(faces5 / f"{name}.parquet", folder / name)
    return folder


def test_files_of_a_folder_are_one_table(faces5, shards, tmp_path):
    whole = load_table(faces5 / "train.parquet")
    split(faces5 / "train.parquet", tmp_path / "train", first=20)
    pq.write_table(pq.read_table(faces5 / "train.parquet").slice(0, 20), tmp_path / "train.parquet")
    for path in (shards / "train", shards / "train.parquet", tmp_path / "train.parquet"):
        table = load_table(path)
        assert table.fingerprint == whole.fingerprint and table.files == whole.files and table.info == whole.info
        assert np.array_equal(table.images, whole.images) and np.array_equal(table.limits, whole.limits)
        some = [load_table(p, limit=9, spread=True) for p in (path, faces5 / "train.parquet")]
        assert some[0].files == some[1].files and np.array_equal(some[0].images, some[1].images)


def test_a_file_that_does_not_belong_is_named(faces5, faces68, shards, tmp_path):
    split(faces5 / "train.parquet", tmp_path / "train")
    (tmp_path / "train" / "zzz.parquet").write_bytes((faces68 / "train.parquet").read_bytes())
    with pytest.raises(InputError, match=r"zzz\.parquet: the 8 files of one table must agree"):
        read_info(tmp_path / "train.parquet")
    with pytest.raises(InputError, match=r"is a folder; give one of its tables"):
        load_table(faces5)
    prepared = tmp_path / "test"  # a folder of other tables that has the table's name
    prepare_synthetic(prepared, faces=10, size=32)
    (tmp_path / "test.parquet").write_bytes((faces5 / "test.parquet").read_bytes())
    assert len(load_table(tmp_path / "test.parquet")) == 6


@pytest.mark.parametrize("limit", [None, 17])
def test_crops_on_disk_are_those_in_memory(shards, limit):
    whole, table = (load_table(shards / "train", limit=limit, spread=True, memory=gb) for gb in (1, 0))
    images = table.images
    assert isinstance(images, StreamedImages) and images.shape == whole.images.shape
    assert table.fingerprint == whole.fingerprint and np.array_equal(table.points, whole.points)
    for index in (slice(3, 9), slice(None), np.array([5, 0, 16, 5]), np.array([2])):
        assert np.array_equal(images[index], whole.images[index])
    batches = [np.array([7, 1]), np.array([3]), np.array([2, 16])]
    images.read_ahead(batches)
    assert np.array_equal(images[slice(0, 2)], whole.images[:2])  # anything else may be read meanwhile
    for batch in batches:
        assert np.array_equal(images[batch], whole.images[batch])


def test_an_epoch_reads_each_row_group_once_in_mixed_order(shards, monkeypatch):
    table = load_table(shards / "train", memory=0)
    images, recipe = table.images, get_recipe("fast", "rcn-4")
    images.window, groups = 4, len(images.reader.groups)
    assert groups > 16
    orders = [epoch_order(table, recipe, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1]) and not torch.equal(orders[0], orders[2])
    order = orders[0].numpy()
    assert sorted(order) == list(range(48))
    blocks = [set(images.group_of[part]) for part in np.array_split(order, 4)]
    assert all(len(block) <= 8 for block in blocks)  # of at most two windows
    assert any(abs(a - b) > 1 for a, b in zip(sorted(blocks[0])[:-1], sorted(blocks[0])[1:], strict=True))
    assert (np.diff(order[:9]) != 1).any()
    reads = []
    read = TableReader.read
    monkeypatch.setattr(
        TableReader, "read", lambda self, group, columns: reads.append(group) or read(self, group, columns)
    )
    for batch in np.array_split(order, 12):
        images[batch]
    assert len(reads) == len(set(reads)) == groups
    assert len(images._cache) == 8


def test_training_from_disk(faces5, shards, tmp_path):
    kind = dict(SMALL, batch=16, precision="float32")
    for name, changes in (("disk", {"memory": 0.0}), ("memory", {})):  # in the file's order both are the same
        train("rcn-4", shards, tmp_path / name, epochs=2, shuffle=False, **changes, **kind)
    assert same(weights_of(tmp_path / "disk"), weights_of(tmp_path / "memory"))
    kind = dict(SMALL, batch=16, memory=0.0, revive=True)
    train("rcn-4", shards, tmp_path / "whole", epochs=4, **kind)
    with pytest.raises(Stop):
        train("rcn-4", shards, tmp_path / "cut", epochs=4, **dict(kind, on_epoch=stop_after(2)))
    train("rcn-4", shards, tmp_path / "cut", resume=True)
    assert same(weights_of(tmp_path / "whole"), weights_of(tmp_path / "cut"))
    with pytest.raises(InputError, match="cannot be resumed with other settings: memory was 0.0 and is now 1.0"):
        train("rcn-4", shards, tmp_path / "cut", resume=True, memory=1.0)


def test_evaluation_from_disk(shards):
    net = create_model("rcn-4", **SMALL["options"])
    a, b = (evaluate_table(net, load_table(shards / "valid", memory=gb)) for gb in (1, 0))
    assert np.array_equal(a.predicted, b.predicted) and np.array_equal(a.at_border, b.at_border)


def test_a_damaged_crop_and_a_large_row_group_are_named(faces5, tmp_path, monkeypatch):
    table = pq.read_table(faces5 / "train.parquet")
    rows = table.to_pylist()
    rows[30]["image"]["bytes"] = b"\xff\xd8 no image"
    pq.write_table(table.from_pylist(rows, schema=table.schema), tmp_path / "train.parquet")
    (tmp_path / "valid.parquet").write_bytes((faces5 / "valid.parquet").read_bytes())
    for changes in ({}, {"memory": 0.0}):
        with pytest.raises(InputError, match=r"train\.parquet row 30.*: not an image"):
            train("rcn-4", tmp_path, tmp_path / "run", epochs=1, **changes, **SMALL)

    monkeypatch.setattr("recombinator.data.stream.LARGEST", 1000)
    with pytest.raises(InputError, match="row group 0 has 0 MB.*row_group_size"):
        load_table(faces5 / "train.parquet", memory=0)
    assert load_table(faces5 / "train.parquet").images.any()


def test_a_jittered_row_keeps_its_points_on_their_pixels(faces5):
    table = load_table(faces5 / "train.parquet")
    row = memory.jittered_row(table, 48 + 3)
    shift = row.points - table.points[3]
    assert np.allclose(shift, shift[0], atol=1e-4) and np.allclose(
        row.box[:2] - table.boxes[3, :2], shift[0], atol=1e-4
    )
    file = [p @ a[:, :2].T + a[:, 2] for p, a in ((row.points, row.to_file), (table.points[3], table.to_file[3]))]
    assert np.allclose(*file, atol=1e-3)


@pytest.mark.slow
def test_memory_does_not_grow_with_the_crops(tmp_path):
    report = memory.measure(20_000, folder=tmp_path, model="rcn-4", steps=20, rounds=1, threads=1)
    disk, held = report["on disk"], report["in memory"]
    assert disk["crops"] == held["crops"] == 20_000 and not list(tmp_path.iterdir())
    assert held["peak_bytes"] - disk["peak_bytes"] > 0.7 * 20_000 * 160**2
    assert 0 < report["speed"]["low"] <= report["speed"]["high"] and json.dumps(report)
