"""Choose and join rows of tables in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from recombinator.data.table import FaceTable

_ARRAYS = ("images", "points", "mask", "boxes", "to_file", "limits")


def take_rows(table: FaceTable, rows: np.ndarray) -> FaceTable:
    """Return a table of the given rows.

    Args:
        table: A table whose crops are in memory.
        rows: (R,) indices of rows, in any order; a row can be taken several times.
    """
    arrays: dict[str, Any] = {name: getattr(table, name)[rows] for name in _ARRAYS}
    return replace(
        table, **arrays, files=[table.files[i] for i in rows], subsets=[table.subsets[i] for i in rows],
        fingerprint=_fingerprint(table.fingerprint, rows.astype("<i8").tobytes().hex()),
        attributes={name: values[rows] for name, values in table.attributes.items()},
        mm_per_pixel=None if table.mm_per_pixel is None else table.mm_per_pixel[rows],
    )  # fmt: skip


def without_points(table: FaceTable, rows: np.ndarray) -> FaceTable:
    """Return the table with no known point in the given (R,) rows: unlabeled images."""
    mask = table.mask.copy()
    mask[rows] = False
    return replace(table, mask=mask, fingerprint=_fingerprint(table.fingerprint, mask.tobytes().hex()))


def join_tables(tables: Sequence[FaceTable]) -> FaceTable:
    """Return one table of the rows of several that have the same description and no attributes.

    Args:
        tables: Tables whose crops are in memory; the first one's description is kept.
    """
    arrays: dict[str, Any] = {name: np.concatenate([getattr(t, name) for t in tables]) for name in _ARRAYS}
    return replace(
        tables[0], **arrays, files=[f for t in tables for f in t.files], subsets=[s for t in tables for s in t.subsets],
        fingerprint=_fingerprint(*(t.fingerprint for t in tables)), attributes={}, mm_per_pixel=None,
    )  # fmt: skip


def _fingerprint(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()[:16]
