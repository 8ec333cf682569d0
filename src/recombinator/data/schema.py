"""What a table's columns hold: types, lengths and ranges, checked before the table is used."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from recombinator.data.crops import RULES
from recombinator.utils.errors import InputError
from recombinator.utils.schema import LARGE

if TYPE_CHECKING:
    from recombinator.data.table import TableInfo

COLUMNS = ("image", "points", "mask", "box", "to_file", "file", "file_size", "subset")
PHYSICAL = "mm_per_pixel"  # the further column that is no attribute
LARGEST_CROP = 16384  # pixels; OpenCV decodes no image with more than 2^30


def check_info(info: TableInfo, path: str | os.PathLike[str]) -> TableInfo:
    """Return the metadata of a table if its crop rule is known and its size possible.

    Raises:
        InputError: Naming the file and the field.
    """
    if info.crop_rule not in RULES:
        raise InputError(f"{path}: metadata: crop_rule: expected one of {', '.join(RULES)}, got {info.crop_rule!r:.40}")
    if not 1 <= info.size <= LARGEST_CROP:
        raise InputError(f"{path}: metadata: size: expected 1 to {LARGEST_CROP} pixels, got {info.size}")
    return info


def check_names(columns: Sequence[Sequence[str]], files: Sequence[Path]) -> list[str]:
    """Check the names of a table's columns.

    Args:
        columns: The names of each file's columns.
        files: The files.

    Returns:
        The columns beyond COLUMNS: attributes, and PHYSICAL.

    Raises:
        InputError: A column is missing or there twice, or the files differ.
    """
    for names, path in zip(columns, files, strict=True):
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise InputError(f"{path}: expected the columns {', '.join(COLUMNS)}; {missing[0]} is missing")
        if len(set(names)) != len(names):
            raise InputError(f"{path}: two columns have the same name")
        other = set(names) ^ set(columns[0])
        if other:
            raise InputError(f"{path}: expected the columns of {files[0]}; they differ in {min(other)}")
    return [name for name in columns[0] if name not in (*COLUMNS, "split")]


def check_columns(table: Any, where: str, first: int, info: TableInfo, attributes: Sequence[str]) -> None:
    """Check types, lengths and ranges of a table's columns, or of some of its rows.

    Args:
        table: A pyarrow.Table with COLUMNS and the attributes.
        where: The file, for messages.
        first: Number of the first row in the file, for messages.
        info: The metadata of the table.
        attributes: Names of the further columns.

    Raises:
        InputError: "FILE: column NAME: expected X, got Y".
    """
    k = len(info.keypoints)
    check = _Checker(table, where, first)
    image = check.column("image", "struct<bytes: binary, path: string>")
    check.no_nulls("image", image.field("bytes"))
    for name in ("file", "subset"):
        check.no_nulls(name, check.column(name, "string"))
    points = check.numbers("points", (k, 2))
    check.numbers("mask", (k,), "bool")
    box, to_file, sizes = check.numbers("box", (3,)), check.numbers("to_file", (6,)), check.numbers("file_size", (2,))
    far = LARGE / 1000
    check.rows("points", "finite coordinates", (np.abs(points) < far).all(axis=1))
    check.rows("box", "x, y and a positive side", (np.abs(box) < far).all(axis=1) & (box[:, 2] > 0))
    enlarges = (to_file[:, [0, 4]] > 0).all(axis=1)
    check.rows("to_file", "a finite affine that enlarges", (np.abs(to_file) < far).all(axis=1) & enlarges)
    check.rows("file_size", "a positive width and height", ((sizes > 0) & (sizes < far)).all(axis=1))
    for name in attributes:
        if name == PHYSICAL:
            values = check.numbers(name, ())
            check.rows(
                name, "a positive size, or NaN", (np.isnan(values) | ((values > 0) & (values < far))).all(axis=1)
            )
            continue
        values = check.numbers(name, (), "integer")
        check.rows(name, "a class from 0 to 127", ((values >= 0) & (values < 128)).all(axis=1))


class _Checker:
    """Checks columns of one pyarrow.Table; each method raises InputError with the file, the column and the row."""

    def __init__(self, table: Any, where: str, first: int) -> None:
        self.table, self.where, self.first = table, where, first

    def fail(self, name: str, expected: str, got: object) -> InputError:
        return InputError(f"{self.where}: column {name}: expected {expected}, got {got}")

    def column(self, name: str, kind: str) -> Any:
        """Return a column as one array, if its type is `kind`."""
        found = self.table.schema.field(name).type
        if str(found) != kind:
            raise self.fail(name, kind, f"{found!s:.80}")
        whole = self.table[name].combine_chunks()
        self.no_nulls(name, whole)
        return whole

    def no_nulls(self, name: str, array: Any) -> None:
        if array.null_count:
            row = self.first + int(np.argmax(array.is_null().to_numpy(zero_copy_only=False)))
            raise self.fail(name, "a value in each row", f"none in row {row}")

    def numbers(self, name: str, shape: tuple[int, ...], kind: str = "number") -> np.ndarray:
        """Return a column of lists of this shape as (rows, numbers), if there is one number of the kind for each."""
        import pyarrow as pa
        import pyarrow.types as types

        values = self.table[name].combine_chunks()
        for length in shape:
            if not types.is_list(values.type):
                raise self.fail(name, f"lists of {' x '.join(map(str, shape))}", values.type)
            self.no_nulls(name, values)
            lengths = values.value_lengths().to_numpy(zero_copy_only=False)
            if (lengths != length).any():
                raise self.fail(
                    name, f"lists of {' x '.join(map(str, shape))}", f"one of {lengths[lengths != length][0]}"
                )
            values = values.flatten()
        fits = {
            "number": lambda t: types.is_integer(t) or types.is_floating(t), "integer": types.is_integer,
            "bool": types.is_boolean,
        }[kind](values.type)  # fmt: skip
        if not fits:
            raise self.fail(name, f"{kind}s", values.type)
        if values.null_count:
            raise self.fail(name, "a value in each row", "none")
        wide = values if kind == "bool" else values.cast(pa.float64(), safe=False)
        return wide.to_numpy(zero_copy_only=False).reshape(len(self.table), math.prod(shape))

    def rows(self, name: str, expected: str, good: Any) -> None:
        """Check a (rows,) condition."""
        if not good.all():
            row = int(np.argmin(good))
            raise self.fail(name, expected, f"another value in row {self.first + row}")
