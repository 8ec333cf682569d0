"""The files of a table, read by row groups, and crops that stay on disk.

Files are read, not mapped: pages of a mapped file would count as memory of the process.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import MAX_PIXELS, decode_image
from recombinator.utils.errors import InputError, first_line
from recombinator.utils.files import check_regular

SPLITS = {"train", "valid", "test"}
WINDOW = 64e6  # bytes of row groups whose crops are mixed; twice as much is in memory
LARGEST = 256e6  # bytes of a row group that can be streamed
AHEAD = 8  # batches that are decoded in advance
WORKERS = min(4, os.cpu_count() or 1)  # threads that decode


def table_files(path: str | os.PathLike[str]) -> list[Path]:
    """Find the files of a table.

    Args:
        path: NAME.parquet, to which the files of a folder NAME next to it belong too, or a folder of such files.

    Returns:
        NAME.parquet if it exists, then the folder's files by name.

    Raises:
        InputError: There is no such file, or the folder holds tables of their own.
    """
    check_regular(path)
    path = Path(path)
    folder = path if path.is_dir() else path.with_suffix("") if path.suffix == ".parquet" else None
    shards = sorted(p for p in folder.glob("*.parquet") if p.name[0] != ".") if folder else []
    if SPLITS & {p.stem for p in shards}:  # a folder that `prepare` wrote
        shards = []
    if path.is_dir() and not shards:
        raise InputError(f"{path}: is a folder; give one of its tables, such as {path / 'test.parquet'}")
    files = [path, *shards] if path.is_file() else shards
    if not files:
        raise InputError(f"{path}: no such file; `recombinator prepare` writes tables")
    return files


def table_schema(meta: dict[str, Any], attributes: Sequence[str], physical: bool) -> Any:
    """Return the Arrow schema of a table.

    Args:
        meta: What holds for every row, for the file's metadata.
        attributes: Names of the attributes that every row has.
        physical: The table has a column `mm_per_pixel`.
    """
    import pyarrow as pa

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


@dataclass(frozen=True)
class RowGroup:
    """Rows of a file that are read together.

    Attributes:
        file: Number of the file.
        number: Number of the row group in its file.
        start: Number of its first row in the table.
        in_file: Number of its first row in its file.
        rows: Number of rows.
        bytes: Size of its columns, decompressed.
    """

    file: int
    number: int
    start: int
    in_file: int
    rows: int
    bytes: int


class TableReader:
    """The open files of a table. Reading is thread-safe.

    Args:
        files: Parquet files, whose rows follow each other.

    Attributes:
        files: The files.
        columns: The names of each file's columns.
        groups: Their row groups.

    Raises:
        InputError: A file is damaged.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        import pyarrow.parquet as pq

        self.files, self.groups = list(files), list[RowGroup]()
        self._open, self._lock, start = list[pq.ParquetFile](), threading.Lock(), 0
        for path in files:
            with _damage_named(path):
                self._open.append(pq.ParquetFile(path))
        self.columns: list[list[str]] = [opened.schema_arrow.names for opened in self._open]
        for f, opened in enumerate(self._open):
            in_file = 0
            for g in range(opened.metadata.num_row_groups):
                about = opened.metadata.row_group(g)
                self.groups.append(RowGroup(f, g, start + in_file, in_file, about.num_rows, about.total_byte_size))
                in_file += about.num_rows
            start += in_file

    def __len__(self) -> int:
        return sum(group.rows for group in self.groups)

    def check_streamable(self) -> None:
        """Raise InputError if a row group is too large for a table that stays on disk."""
        largest = max(self.groups, key=lambda group: group.bytes)
        if largest.bytes > LARGEST:
            raise InputError(
                f"{self.files[largest.file]}: row group {largest.number} has {largest.bytes / 1e6:.0f} MB, too much "
                f"for a table that stays on disk; write it with at most {LARGEST / 1e6:.0f} MB per row group "
                "(row_group_size), or raise the setting `memory`"
            )

    def read(self, group: RowGroup, columns: list[str]) -> Any:
        """Return columns of a row group as an Arrow table."""
        with self._lock, _damage_named(self.files[group.file]):
            return self._open[group.file].read_row_group(group.number, columns=columns, use_threads=False)


@contextmanager
def _damage_named(path: Path) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into InputError."""
    import pyarrow as pa

    try:
        yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a damaged Parquet file ({first_line(error)})") from None


def encoded(part: Any) -> Any:
    """Return the encoded crops of an Arrow table as an Arrow array of bytes."""
    return part["image"].combine_chunks().field("bytes")


def decode_crop(data: Any, where: str, out: np.ndarray) -> None:
    """Decode a crop into its place.

    Args:
        data: The encoded crop, an Arrow scalar.
        where: What error messages call it.
        out: (C, S, S) uint8 array that receives the crop.

    Raises:
        InputError: It cannot be decoded, or has another size.
    """
    buffer = data.as_buffer()
    most = MAX_PIXELS if buffer.size > 1 << 16 else None  # a small file's header is not worth the time
    image = decode_image(np.frombuffer(buffer, np.uint8), where, gray=len(out) == 1, max_pixels=most)
    if image.shape[:2] != out.shape[1:]:
        raise InputError(
            f"{where}: expected a crop of {out.shape[1]} pixels, got {image.shape[1]}x{image.shape[0]}; "
            "prepare the table again"
        )
    out[:] = image if image.ndim == 2 else image.transpose(2, 0, 1)


def read_rows(
    reader: TableReader, rows: np.ndarray, numbers: dict[str, np.ndarray], texts: Sequence[str],
    images: np.ndarray | None, check: Callable[[Any, str, int], None],
) -> tuple[dict[str, list[str]], str, int]:  # fmt: skip
    """Read rows of a table in one pass, with two row groups in memory.

    Args:
        reader: The table's files.
        rows: (N,) rows of the table, in rising order.
        numbers: For each column of numbers the array of N rows that receives it.
        texts: Columns of text, `file` among them.
        images: (N, C, S, S) uint8 array that receives the decoded crops; None leaves them encoded.
        check: Called with each row group, its file and the number of its first row, to raise InputError.

    Returns:
        The columns of text, the SHA-256 of what a network learns from, encoded crops and points (the layout of the
        files does not change it), and the bytes of the encoded crops.
    """
    columns: dict[str, list[str]] = {name: [] for name in texts}
    content, size, decoding = hashlib.sha256(), 0, list[Future[None]]()
    with ThreadPoolExecutor() as pool:
        for group in reader.groups:
            first, last = np.searchsorted(rows, (group.start, group.start + group.rows)).tolist()
            if first == last:
                continue
            part, chosen = reader.read(group, ["image", *numbers, *texts]), rows[first:last] - group.start
            check(part, str(reader.files[group.file]), group.in_file)
            if len(chosen) < group.rows:
                part = part.take(chosen)
            for name, array in numbers.items():
                array[first:last] = _flat(part[name]).reshape(array[first:last].shape)
            with _damage_named(reader.files[group.file]):
                for name, column in columns.items():
                    column += map(sys.intern, part[name].to_pylist())
            crops = encoded(part)
            for crop in crops:
                content.update(crop.as_buffer())
                size += crop.as_buffer().size
            for future in decoding:  # the row group before was decoded meanwhile
                future.result()
            if images is not None:
                names = zip((chosen + group.in_file).tolist(), columns["file"][first:], strict=True)
                where = [f"{reader.files[group.file]} row {row} ({file})" for row, file in names]
                decoding = [pool.submit(decode_crop, *x) for x in zip(crops, where, images[first:last], strict=True)]
        for future in decoding:
            future.result()
    content.update(numbers["points"].tobytes())
    return columns, content.hexdigest(), size


def _flat(column: Any) -> np.ndarray:
    """Return all numbers of an Arrow column of numbers or of nested lists."""
    import pyarrow as pa

    array = column.combine_chunks()
    while pa.types.is_nested(array.type):
        array = array.flatten()
    return array.to_numpy(zero_copy_only=False)


class StreamedImages:
    """Crops on disk. Index them by a slice or by an array, like an (N, C, S, S) uint8 array.

    Crops are decoded at every access; the row groups used last are kept encoded. `read_ahead` decodes the batches of
    an epoch in threads before they are asked for.

    Args:
        reader: The table's files.
        rows: (N,) rows of the table, in rising order.
        channels: 1 (gray) or 3 (RGB).
        size: Side of the crops in pixels.
        crop_bytes: Mean size of an encoded crop.

    Attributes:
        shape: (N, C, S, S).
        group_of: (N,) number of each crop's row group.
        window: Number of row groups whose crops are mixed in training; twice as many are kept.
    """

    def __init__(self, reader: TableReader, rows: np.ndarray, channels: int, size: int, crop_bytes: float) -> None:
        self.reader, self.rows, self.shape = reader, rows, (len(rows), channels, size, size)
        starts = np.array([group.start for group in reader.groups])
        self.group_of = np.searchsorted(starts, rows, side="right") - 1
        self.window = max(1, int(WINDOW * len(reader.groups) / (crop_bytes * len(reader))))
        self._cache: OrderedDict[int, Any] = OrderedDict()
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(WORKERS)
        self._coming: Iterator[np.ndarray] = iter(())
        self._waiting = deque[tuple[np.ndarray, Future[np.ndarray]]]()

    def __len__(self) -> int:
        return self.shape[0]

    def read_ahead(self, batches: Iterable[np.ndarray]) -> None:
        """Decode batches in advance, to be asked for in this order.

        Args:
            batches: (B,) indices of each batch.
        """
        for _, future in self._waiting:
            future.cancel()
        self._waiting.clear()
        self._coming = iter(batches)
        for _ in range(AHEAD):
            self._submit()

    def _submit(self) -> None:
        batch = next(self._coming, None)
        if batch is not None:
            self._waiting.append((batch, self._pool.submit(self._decode, batch)))

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        chosen = np.arange(len(self))[index] if isinstance(index, slice) else np.asarray(index)
        if self._waiting and np.array_equal(self._waiting[0][0], chosen):
            self._submit()
            return self._waiting.popleft()[1].result()
        return self._decode(chosen)

    def _decode(self, chosen: np.ndarray) -> np.ndarray:
        """Return the (B, C, S, S) crops of (B,) indices."""
        images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
        group_of = self.group_of[chosen]
        for g in np.unique(group_of).tolist():
            group, crops = self.reader.groups[g], self._crops(g)
            for i in np.flatnonzero(group_of == g).tolist():
                row = int(self.rows[chosen[i]]) - group.start
                where = f"{self.reader.files[group.file]} row {group.in_file + row}"
                decode_crop(crops[row], where, images[i])
        return images

    def _crops(self, g: int) -> Any:
        """Return the encoded crops of row group `g`; those used least recently make room."""
        with self._lock:
            if g not in self._cache:
                while len(self._cache) >= 2 * self.window:  # a batch may end one window and begin the next
                    self._cache.popitem(last=False)
                self._cache[g] = encoded(self.reader.read(self.reader.groups[g], ["image.bytes"]))
            self._cache.move_to_end(g)
            return self._cache[g]
