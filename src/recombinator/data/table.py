"""Tables: Parquet files with one row per face: crop, points, the affine back to the image file, attributes.

They open in pandas, DuckDB and Hugging Face `datasets`, which shows the image column as images. Keypoint set and crop
rule are in the file's metadata.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from recombinator.data.schema import PHYSICAL, check_columns, check_info, check_names
from recombinator.data.stream import StreamedImages, TableReader, read_rows, table_files, table_schema
from recombinator.keypoints import KeypointSet, decode_described
from recombinator.utils.errors import InputError, first_line, import_optional
from recombinator.utils.files import to_file_keys, write_atomically
from recombinator.utils.schema import decode, parse_json

logger = logging.getLogger(__name__)

FORMAT = 3
SPLIT_SEED = 7345  # the authors' seed, for every split
PSEUDO_LABELS = "pseudo-labels"  # the subset of rows whose points a network predicted
ROWS_AT_ONCE = 256  # rows per row group, which are in memory together while writing


@dataclass
class Row:
    """One row of a table.

    Attributes:
        image: The stage-1 crop, encoded as JPEG or PNG.
        points: (K, 2) x, y in pixels of the crop.
        box: (3,) the network's square (x, y, side) in pixels of the crop.
        to_file: (2, 3) affine from crop to image file.
        file: Name of the image file.
        file_size: Width and height of the image file in pixels.
        subset: The part of the dataset that the row belongs to, empty if there are none.
        mask: (K,) False where a point must not be used; None: all can be used.
        attributes: Classes from 0 by the attribute's name.
        mm_per_pixel: Physical size of a pixel of the image file in millimeters; NaN if unknown.
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
        dataset: Name of the dataset.
        split: "train", "valid" or "test".
        keypoints: The keypoint set.
        crop_rule: Name of the crop rule (`recombinator.data.crops.RULES`).
        size: Side of the crops in pixels.
        gray: The crops are gray.
    """

    dataset: str
    split: str
    keypoints: KeypointSet
    crop_rule: str
    size: int
    gray: bool


def write_table(
    path: Path, info: TableInfo, rows: Iterable[Row], attributes: tuple[str, ...] = (), physical: bool = False
) -> int:
    """Write a table, with ROWS_AT_ONCE rows in memory.

    Args:
        path: The file to write, atomically.
        info: What holds for every row.
        rows: The rows.
        attributes: Names of the attributes that every row has.
        physical: Also write the rows' `mm_per_pixel`.

    Returns:
        The number of rows written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    meta = to_file_keys({"format": FORMAT, **info.__dict__, "keypoints": info.keypoints.to_dict()})
    schema, count = table_schema(meta, attributes, physical), 0

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
        out: Folder for the tables.
        jobs: The items of each split.
        make: Makes a row of an item, or raises InputError naming file and line.
        info: Returns what holds for every row of a split.
        attributes: Names of the attributes that every row has.
        strict: Raise the first error instead of leaving the item out.
        physical: Also write the rows' `mm_per_pixel`.
        progress: Called with the numbers of items done and in all.

    Returns:
        Rows written per split, and "dropped".

    Raises:
        InputError: Nothing could be used, or with `strict` the first item that could not.
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
    """Return an iterator of lists of n consecutive items; the last one may be shorter."""
    rest = iter(items)
    return iter(lambda: list(islice(rest, n)), [])


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
    """A table in memory; the crops of a large one stay on disk.

    Attributes:
        info: What holds for every row.
        images: (N, C, S, S) uint8 crops, an array or StreamedImages.
        points: (N, K, 2) float32 x, y in crop pixels.
        mask: (N, K) bool, False where a point must not be used.
        boxes: (N, 3) float32 stage-2 squares (x, y, side) in crop pixels.
        to_file: (N, 2, 3) float64 affines from crop to image file.
        limits: (N, 4) the image file's left, top, right and bottom edge in crop pixels; beyond them a crop is black.
        files: Names of the image files.
        subsets: The part of the dataset that each row belongs to.
        fingerprint: 16 hexadecimal digits of the images' and points' SHA-256.
        attributes: (N,) int64 classes by name, where the dataset has them.
        mm_per_pixel: (N,) physical size of a pixel of the image file in millimeters, NaN where it is not known; None if
            the table does not say.
    """

    info: TableInfo
    images: Any
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
        some = slice(None, None, 1 + len(self) // 200_000)  # of a large table, rows spread over it
        relative = (self.points[some] - self.boxes[some, None, :2]) / self.boxes[some, None, 2:]
        mean: np.ndarray = np.nanmean(np.where(self.mask[some, :, None], relative, np.nan), axis=0)
        return mean

    @property
    def at_border(self) -> np.ndarray:
        """Return which points are at the edge of their image file, as the authors' code has it (docs/protocol.md).

        A point is at the left or top edge if it is within 10 pixels of it, at the right or bottom edge within 3, and
        the network's crop reaches beyond that edge. Crops that are not padded have none.

        Returns:
            (N, K, 4) bool: left, top, right, bottom.
        """
        result = np.empty((*self.points.shape[:2], 4), bool)
        for start in range(0, len(self), 10_000):  # the distances take 8 times the memory of the points
            part = slice(start, start + 10_000)
            points, box, limits = self.points[part], self.boxes[part], self.limits[part]
            margin = np.array([10, 10, 3, 3]) / self.to_file[part, 0, :1]
            gap = np.concatenate([points - limits[:, None, :2], limits[:, None, 2:] - points], axis=2)
            corner, side = box[:, :2], box[:, 2:]
            beyond = np.concatenate([corner < limits[:, :2], corner + side > limits[:, 2:]], axis=1)
            result[part] = (gap <= margin[:, None]) & beyond[:, None]
        return result


def read_info(path: str | os.PathLike[str]) -> TableInfo:
    """Read what holds for every row of a table.

    Args:
        path: As in `load_table`.

    Raises:
        InputError: A file is missing, not a table of this format, or not a part of the same table.
    """
    first, *others = files = table_files(path)
    info = _read_info(first)
    for file in others:
        if _read_info(file) != info:
            raise InputError(
                f"{file}: the {len(files)} files of one table must agree in dataset, split, keypoints, crop rule, size "
                f"and color; it differs from {first}"
            )
    return info


def _read_info(path: Path) -> TableInfo:
    import pyarrow as pa
    import pyarrow.parquet as pq

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
    path: str | os.PathLike[str], channels: int = 1, limit: int | None = None, spread: bool = False,
    memory: float = math.inf,
) -> FaceTable:  # fmt: skip
    """Read a table, and decode its crops unless they are too large for the memory.

    Args:
        path: NAME.parquet, to which the files of a folder NAME next to it belong too, or a folder of such files.
        channels: 1 (gray) or 3 (RGB).
        limit: Read that many rows only, the first ones.
        spread: Draw the `limit` rows over the whole table instead. The draw is the same at every call, and a smaller
            one is contained in a larger one.
        memory: Gigabytes of decoded crops up to which the table is decoded; `images` of a larger one are
            StreamedImages.

    Raises:
        InputError: Naming the file, for a missing, foreign or empty table.
    """
    info = read_info(path)
    reader = TableReader(table_files(path))
    further = check_names(reader.columns, reader.files)
    attributes = [name for name in further if name != PHYSICAL]
    rows = np.arange(len(reader))
    if limit:
        rows = np.sort(np.random.RandomState(0).permutation(len(rows))[:limit]) if spread else rows[:limit]
    if not len(rows):
        raise InputError(f"{path}: the table has no rows")
    if channels == 3 and info.gray:
        raise InputError(f"{path}: holds gray crops, expected RGB; prepare the table again, in color")
    n, k, shape = len(rows), len(info.keypoints), (channels, info.size, info.size)
    streamed = n * math.prod(shape) > memory * 1e9
    if streamed:
        reader.check_streamable()
    try:
        images: Any = None if streamed else np.empty((n, *shape), np.uint8)
    except MemoryError:
        raise InputError(
            f"{path}: {n} crops of {info.size} pixels do not fit in memory; leave them on disk with --set memory=GB"
        ) from None
    values: dict[str, np.ndarray] = {
        "points": np.empty((n, k, 2), np.float32), "mask": np.empty((n, k), bool), "box": np.empty((n, 3), np.float32),
        "to_file": np.empty((n, 2, 3)), "file_size": np.empty((n, 2)),
        **{a: np.empty(n, np.int64) for a in attributes},
        **({PHYSICAL: np.empty(n)} if PHYSICAL in further else {}),
    }  # fmt: skip
    check = partial(check_columns, info=info, attributes=further)
    texts, fingerprint, size = read_rows(reader, rows, values, ("file", "subset"), images, check)
    if streamed:
        images = StreamedImages(reader, rows, channels, info.size, size / n)
    return FaceTable(
        info=info,
        images=images,
        points=values["points"],
        mask=values["mask"],
        boxes=values["box"],
        to_file=values["to_file"],
        limits=file_limits(values["to_file"], values["file_size"]),
        files=texts["file"],
        subsets=texts["subset"],
        fingerprint=fingerprint[:16],
        attributes={a: values[a] for a in attributes},
        mm_per_pixel=values.get(PHYSICAL),
    )
