"""Tables: Parquet files with one row per face: crop, points, the affine back to the image file, attributes.

They open in pandas, DuckDB and Hugging Face `datasets`, which shows the image column as images. Keypoint set and crop
rule are in the file's metadata.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recombinator.data.images import MAX_PIXELS, decode_image
from recombinator.data.schema import check_info, read_columns
from recombinator.keypoints import KeypointSet, decode_described
from recombinator.utils.errors import InputError, first_line, import_optional
from recombinator.utils.files import check_regular, to_file_keys, write_atomically
from recombinator.utils.schema import decode, parse_json

logger = logging.getLogger(__name__)

FORMAT = 3
SPLIT_SEED = 7345  # the authors' seed, for every split
ROWS_AT_ONCE = 256  # rows per row group, which are in memory together while writing


@dataclass
class Row:
    """One row of a table.

    Attributes:
        image: the stage-1 crop, encoded as JPEG or PNG.
        points: (K, 2) x, y in pixels of the crop.
        box: (3,) the network's square (x, y, side) in pixels of the crop.
        to_file: (2, 3) affine from crop to image file.
        file: name of the image file.
        file_size: width and height of the image file in pixels.
        subset: the part of the dataset that the row belongs to, empty if there are none.
        mask: (K,) False where a point must not be used; None: all can be used.
        attributes: classes from 0 by the attribute's name.
        mm_per_pixel: physical size of a pixel of the image file in millimeters; NaN if unknown.
    """

    image: bytes
    points: np.ndarray
    box: np.ndarray
    to_file: np.ndarray
    file: str
    file_size: tuple[int, int]
    subset: str = ""
    mask: np.ndarray | None = None
    attributes: dict[str, int] = field(default_factory=dict)
    mm_per_pixel: float = float("nan")


@dataclass(frozen=True)
class TableInfo:
    """What holds for every row of a table.

    Attributes:
        dataset: name of the dataset.
        split: "train", "valid" or "test".
        keypoints: the keypoint set.
        crop_rule: name of the crop rule (`recombinator.data.crops.RULES`).
        size: side of the crops in pixels.
        gray: the crops are gray.
    """

    dataset: str
    split: str
    keypoints: KeypointSet
    crop_rule: str
    size: int
    gray: bool


def _schema(info: TableInfo, attributes: tuple[str, ...], physical: bool) -> Any:
    import pyarrow as pa

    meta = to_file_keys({"format": FORMAT, **info.__dict__, "keypoints": info.keypoints.to_dict()})
    return pa.schema(
        [
            ("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
            ("points", pa.list_(pa.list_(pa.float32()))),
            ("mask", pa.list_(pa.bool_())),
            ("box", pa.list_(pa.float32())),
            ("to_file", pa.list_(pa.float64())),
            ("file", pa.string()),
            ("file_size", pa.list_(pa.int32())),
            ("subset", pa.string()),
            ("split", pa.string()),
            *((a, pa.int8()) for a in attributes),
            *([("mm_per_pixel", pa.float64())] if physical else []),
        ],
        metadata={
            "recombinator": json.dumps(meta),
            # `datasets` infers the other columns from their types
            "huggingface": json.dumps({"info": {"features": {"image": {"_type": "Image"}}}}),
        },
    )


def write_table(
    path: Path, info: TableInfo, rows: Iterable[Row], attributes: tuple[str, ...] = (), physical: bool = False
) -> int:
    """Write a table, with ROWS_AT_ONCE rows in memory.

    Args:
        path: the file to write, atomically.
        info: what holds for every row.
        rows: the rows.
        attributes: names of the attributes that every row has.
        physical: also write the rows' `mm_per_pixel`.

    Returns:
        The number of rows written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema, count = _schema(info, attributes, physical), 0

    def write(temporary: Path) -> None:
        nonlocal count
        with pq.ParquetWriter(temporary, schema, compression="zstd") as writer:
            for group in batched(rows, ROWS_AT_ONCE):
                columns: dict[str, list[Any]] = {name: [] for name in schema.names}
                for row in group:
                    keep = row.mask if row.mask is not None else np.ones(len(row.points), bool)
                    columns["image"].append({"bytes": row.image, "path": Path(row.file).name})
                    columns["points"].append(row.points.astype(np.float32).tolist())
                    columns["mask"].append(keep.tolist())
                    columns["box"].append(row.box.tolist())
                    columns["to_file"].append(row.to_file.reshape(-1).tolist())
                    columns["file"].append(row.file)
                    columns["file_size"].append(list(row.file_size))
                    columns["subset"].append(row.subset)
                    columns["split"].append(info.split)
                    for a in attributes:
                        columns[a].append(row.attributes[a])
                    if physical:
                        columns["mm_per_pixel"].append(row.mm_per_pixel)
                writer.write_table(pa.table(columns, schema=schema))
                count += len(group)

    write_atomically(path, write)
    return count


T = TypeVar("T")


def write_splits(
    out: Path, jobs: Mapping[str, Sequence[T]], make: Callable[[T], Row], info: Callable[[str], TableInfo], *,
    attributes: tuple[str, ...] = (), strict: bool = False, physical: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Make the rows of every split in threads, and write OUT/SPLIT.parquet.

    A split without a usable row is not written. ROWS_AT_ONCE rows are in memory together.

    Args:
        out: folder for the tables.
        jobs: the items of each split.
        make: makes a row of an item, or raises InputError naming file and line.
        info: returns what holds for every row of a split.
        attributes: names of the attributes that every row has.
        strict: raise the first error instead of leaving the item out.
        physical: also write the rows' `mm_per_pixel`.
        progress: called with the numbers of items done and in all.

    Returns:
        Rows written per split, and "dropped".

    Raises:
        InputError: nothing could be used, or with `strict` the first item that could not.
    """
    import_optional("pyarrow", "writing tables")  # before the work
    total, done, counts = sum(map(len, jobs.values())), 0, {"dropped": 0}

    def attempt(item: T) -> Row | InputError:
        try:
            return make(item)
        except InputError as error:
            return error

    def rows(items: Sequence[T]) -> Iterator[Row]:
        nonlocal done
        for group in batched(items, ROWS_AT_ONCE):
            for made in pool.map(attempt, group):
                if isinstance(made, Row):
                    yield made
                elif strict:
                    raise made
                else:
                    counts["dropped"] += 1
                    logger.warning("%s", made)
            done += len(group)
            progress(done, total)

    with ThreadPoolExecutor() as pool:
        for split, items in jobs.items():
            made = rows(items)
            first = next(made, None)
            counts[split] = 0
            if first is not None:
                path = out / f"{split}.parquet"
                counts[split] = write_table(path, info(split), chain([first], made), attributes, physical)
    for other in sorted({"train", "valid", "test"} - {s for s in jobs if counts[s]}):
        if (out / f"{other}.parquet").exists():
            logger.warning(
                "%s.parquet: left as an earlier run wrote it; this run wrote no %s table", out / other, other
            )
    if not sum(counts[s] for s in jobs):
        raise InputError(f"nothing could be used: all {counts['dropped']} faces were dropped, for the reasons above")
    return counts


def batched(items: Iterable[Any], n: int) -> Iterator[list[Any]]:
    """Yield lists of n consecutive items; the last one may be shorter."""
    group: list[Any] = []
    for item in items:
        group.append(item)
        if len(group) == n:
            yield group
            group = []
    if group:
        yield group


def file_limits(to_file: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the edges of image files in crop pixels.

    Args:
        to_file: (N, 2, 3) affines from crop to image file, which scale and shift.
        sizes: (N, 2) width and height of the files in pixels.

    Returns:
        (N, 4) left, top, right and bottom edge.
    """
    scale, corner = to_file[:, 0, :1], to_file[:, :, 2]
    return np.concatenate([-corner / scale, (sizes - corner) / scale], axis=1)


@dataclass
class FaceTable:
    """A table in memory.

    Attributes:
        info: what holds for every row.
        images: (N, C, S, S) uint8 crops.
        points: (N, K, 2) float32 x, y in crop pixels.
        mask: (N, K) bool, False where a point must not be used.
        boxes: (N, 3) float32 stage-2 squares (x, y, side) in crop pixels.
        to_file: (N, 2, 3) float64 affines from crop to image file.
        limits: (N, 4) the image file's left, top, right and bottom edge in crop pixels; beyond them a crop is black.
        files: names of the image files.
        subsets: the part of the dataset that each row belongs to.
        fingerprint: 16 hexadecimal digits of the images' and points' SHA-256.
        attributes: (N,) int64 classes by name, where the dataset has them.
        mm_per_pixel: (N,) physical size of a pixel of the image file in millimeters, NaN where it is not known; None if
            the table does not say.
    """

    info: TableInfo
    images: np.ndarray
    points: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    to_file: np.ndarray
    limits: np.ndarray
    files: list[str]
    subsets: list[str]
    fingerprint: str
    attributes: dict[str, np.ndarray] = field(default_factory=dict)
    mm_per_pixel: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.files)

    def describe(self) -> dict[str, Any]:
        """Return what reports say of the table they were measured on: dataset, split, images, fingerprint."""
        return {
            "dataset": self.info.dataset, "split": self.info.split, "images": len(self),
            "fingerprint": self.fingerprint,
        }  # fmt: skip

    @property
    def template(self) -> np.ndarray:
        """(K, 2) mean points relative to the stage-2 square, from 0 to 1; NaN for a point that no row has."""
        relative = (self.points - self.boxes[:, None, :2]) / self.boxes[:, None, 2:]
        mean: np.ndarray = np.nanmean(np.where(self.mask[..., None], relative, np.nan), axis=0)
        return mean

    @property
    def at_border(self) -> np.ndarray:
        """Return which points are at the edge of their image file, as the authors' code has it (docs/protocol.md).

        A point is at the left or top edge if it is within 10 pixels of it, at the right or bottom edge within 3, and
        the network's crop reaches beyond that edge. Crops that are not padded have none.

        Returns:
            (N, K, 4) bool: left, top, right, bottom.
        """
        margin = np.array([10, 10, 3, 3]) / self.to_file[:, 0, :1]
        gap = np.concatenate([self.points - self.limits[:, None, :2], self.limits[:, None, 2:] - self.points], axis=2)
        corner, side = self.boxes[:, :2], self.boxes[:, 2:]
        beyond = np.concatenate([corner < self.limits[:, :2], corner + side > self.limits[:, 2:]], axis=1)
        return (gap <= margin[:, None]) & beyond[:, None]


def read_info(path: str | os.PathLike[str]) -> TableInfo:
    """Read what holds for every row of a table.

    Raises:
        InputError: the file is missing, or not a table of this format.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if Path(path).is_dir():
        raise InputError(f"{path}: is a folder; give one of its tables, such as {Path(path) / 'test.parquet'}")
    check_regular(path)
    if not os.path.isfile(path):
        raise InputError(f"{path}: no such file; `recombinator prepare` writes tables")
    try:
        found = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path}: not a Parquet file ({first_line(error)})") from None
    if b"recombinator" not in found:
        raise InputError(f"{path}: not written by `recombinator prepare` (its metadata is missing)")
    meta = decode(dict[str, Any], parse_json(found[b"recombinator"], f"{path}: metadata"), f"{path}: metadata")
    if meta.pop("format", None) != FORMAT:
        raise InputError(f"{path}: written by another version of `recombinator prepare`; run it again")
    return check_info(decode_described(TableInfo, meta, f"{path}: metadata"), path)


def load_table(
    path: str | os.PathLike[str], channels: int = 1, limit: int | None = None, spread: bool = False
) -> FaceTable:
    """Read and decode a table.

    Args:
        path: the .parquet file.
        channels: 1 (gray) or 3 (RGB).
        limit: read that many rows only, the first ones.
        spread: draw the `limit` rows over the whole table instead. The draw is the same at every call, and a smaller
            number is a part of a larger.

    Raises:
        InputError: naming the file, for a missing, foreign or empty table.
    """
    info = read_info(path)
    table, further = read_columns(path, info)
    if limit and spread:
        table = table.take(np.sort(np.random.RandomState(0).permutation(len(table))[:limit]))
    elif limit:
        table = table.slice(0, limit)
    if not len(table):
        raise InputError(f"{path}: the table has no rows")
    if channels == 3 and info.gray:
        raise InputError(f"{path}: holds gray crops, expected RGB; prepare the table again, in color")
    raw = table["image"].combine_chunks().field("bytes").to_pylist()
    files: list[str] = table["file"].to_pylist()

    def decode(i: int) -> np.ndarray:
        most = MAX_PIXELS if len(raw[i]) > 1 << 16 else None  # a small file's header is not worth the time
        image = decode_image(raw[i], f"{path} row {i} ({files[i]})", gray=channels == 1, max_pixels=most)
        return image[None] if channels == 1 else image.transpose(2, 0, 1)

    with ThreadPoolExecutor() as pool:
        images = np.stack(list(pool.map(decode, range(len(raw)))))
    points = np.array(table["points"].to_pylist(), np.float32)
    to_file = np.array(table["to_file"].to_pylist()).reshape(-1, 2, 3)
    sizes = np.array(table["file_size"].to_pylist(), np.float64)
    # of what a network learns from: the file's layout does not change it
    fingerprint = hashlib.sha256(b"".join([*raw, points.tobytes()])).hexdigest()[:16]
    return FaceTable(
        info=info,
        images=images,
        points=points,
        mask=np.array(table["mask"].to_pylist(), bool),
        boxes=np.array(table["box"].to_pylist(), np.float32),
        to_file=to_file,
        limits=file_limits(to_file, sizes),
        files=files,
        subsets=table["subset"].to_pylist(),
        fingerprint=fingerprint,
        attributes={a: np.array(table[a].to_pylist(), np.int64) for a in further if a != "mm_per_pixel"},
        mm_per_pixel=np.array(table["mm_per_pixel"].to_pylist(), float) if "mm_per_pixel" in further else None,
    )
