"""Photographs per second of the plain `predict` and of `predict --ray`, on this machine."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from recombinator.data.images import SAMPLE_PHOTOGRAPH, encode_image, read_image
from recombinator.predict.batch import predict_all
from recombinator.predict.predictor import load
from recombinator.predict.ray import Settings, predict_with_ray
from recombinator.utils.errors import import_optional


def measure(
    photographs: int, weights: str, *, rounds: int = 3, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Predict copies of the sample photograph in both ways, in turn. The start of Ray is not timed.

    Args:
        photographs: Number of copies, each shifted by other pixels.
        weights: Shipped name or path.
        rounds: Runs of each kind.
        progress: Called with the numbers of runs done and in all.

    Returns:
        A report: photographs per second of each way, median, lowest and highest.
    """
    import cv2

    ray, cores = import_optional("ray", "study ray"), os.cpu_count() or 1
    rates: dict[str, list[float]] = {"plain": [], "with Ray": []}
    with tempfile.TemporaryDirectory() as name:
        album, out = Path(name) / "album", Path(name) / "out"
        album.mkdir()
        image = read_image(SAMPLE_PHOTOGRAPH)
        for i in range(photographs):
            moved = np.roll(image, (i % 7 - 3, i % 11 - 5), axis=(0, 1))
            (album / f"{i:06}.jpg").write_bytes(encode_image(moved, 95))
        names = [str(p) for p in sorted(album.iterdir())]
        cv2.setNumThreads(1)
        predictor = load(weights, threads=1)
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(log_to_driver=False, logging_level="error")
        try:
            calls: dict[str, Callable[[], object]] = {
                "plain": lambda: predict_all(
                    predictor, names, out / "plain", formats=(), pictures=False, overwrite=True, workers=cores
                ),
                "with Ray": lambda: predict_with_ray([str(album)], str(out / "ray"), Settings(weights), overwrite=True),
            }
            for i in range(rounds):
                for j, (way, call) in enumerate(calls.items()):
                    began = time.perf_counter()
                    call()
                    rates[way].append(photographs / (time.perf_counter() - began))
                    progress(2 * i + j + 1, 2 * rounds)
        finally:
            ray.shutdown()
    rows = {way: {"median": median(r), "low": min(r), "high": max(r)} for way, r in rates.items()}
    return {
        "photographs": photographs, "weights": weights, "rounds": rounds, "cores": cores, "ray": ray.__version__,
        "rows": rows,
    }  # fmt: skip
