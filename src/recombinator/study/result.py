"""Result files: the JSON that `evaluate --json`, the studies and other measurements write."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from recombinator.utils.schema import Finite, Name, decode, parse_json

Percent = Annotated[float, Meta(ge=0, le=1e6)]
Interval = tuple[Finite, Finite]


class CurvePoint(msgspec.Struct):
    """An epoch of a training."""

    epoch: Annotated[int, Meta(ge=1, le=10**6)]
    valid: Percent
    clean: Percent = 0.0
    seconds: float = 0.0
    images_per_second: float = 0.0
    test: Percent | None = None


class Data(msgspec.Struct):
    """The table on which a network was measured."""

    dataset: str
    split: str
    images: int = 0
    fingerprint: str = ""


class Result(msgspec.Struct):
    """Fields that results of all kinds share; each may be missing. Errors are in percent."""

    kind: Name
    model: dict[str, Any] = {}
    training: dict[str, Any] = {}
    data: Data | None = None
    nme_paper: Percent = 0.0
    nme: Percent = 0.0
    nme_paper_ci95: Interval = (0.0, 0.0)
    nme_ci95: Interval = (0.0, 0.0)
    per_keypoint: list[Percent | dict[str, Any]] = []  # of `fit`: a row each
    keypoints: list[str] = []
    curve: list[CurvePoint] = []
    rows: list[dict[str, Any]] | dict[str, Any] = []
    provenance: dict[str, Any] = {}


def read_result(path: Path) -> dict[str, Any]:
    """Read a result file.

    Raises:
        InputError: It is not JSON, or a field has another type or range.
    """
    found = parse_json(path.read_bytes(), str(path))
    decode(Result, found, str(path))
    return dict(found)
