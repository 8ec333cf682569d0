"""The cost of the plain `predict` and of `predict --ray`, on this machine."""

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
from recombinator.predict.ray import Settings, predict_with_ray, start_ray
from recombinator.utils.errors import import_optional


def measure(
    photographs: int, weights: str, *, rounds: int = 3, progress: Callable[[int, int], None] = lambda done, total: None
) -> dict[str, Any]:
    """Predict copies of the sample photograph in both ways, in turn. The start of Ray is not timed.

    CPU time and the ratio of the speeds are reported: other work on the machine changes them less than the speeds.

    Args:
        photographs: Number of copies, each shifted by other pixels.
        weights: Shipped name or path.
        rounds: Runs of each kind.
        progress: Called with the numbers of runs done and in all.

    Returns:
        A report: seconds of CPU time per photograph of each way, and the photographs per second with Ray divided by
        those without (median, lowest, highest of the rounds).
    """
    import cv2

    ray, cores = import_optional("ray", "study ray"), os.cpu_count() or 1
    cpu_seconds: dict[str, list[float]] = {"plain": [], "with Ray": []}
    ratios = []
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

        def plain() -> float:
            predict_all(predictor, names, out / "plain", formats=(), pictures=False, overwrite=True, workers=cores)
            return 0

        def with_ray() -> float:
            outcome = predict_with_ray([str(album)], str(out / "ray"), Settings(weights), overwrite=True)
            return float(outcome["cpu_seconds"])

        # Ray gives its actors a lower priority than the plain prediction has
        os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray reads this name
        start_ray("local")
        try:
            for i in range(rounds):
                seconds = []
                for j, (way, call) in enumerate({"plain": plain, "with Ray": with_ray}.items()):
                    began, cpu = time.perf_counter(), time.process_time()
                    actors = call()
                    seconds.append(time.perf_counter() - began)
                    cpu_seconds[way].append((time.process_time() - cpu + actors) / photographs)
                    progress(2 * i + j + 1, 2 * rounds)
                ratios.append(seconds[0] / seconds[1])
        finally:
            ray.shutdown()
    return {
        "photographs": photographs, "size": [*image.shape[1::-1]], "weights": weights, "rounds": rounds,
        "cores": cores, "ray": ray.__version__,
        "cpu_seconds": {way: _spread(values) for way, values in cpu_seconds.items()}, "speed": _spread(ratios),
    }  # fmt: skip


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": median(values), "low": min(values), "high": max(values)}
