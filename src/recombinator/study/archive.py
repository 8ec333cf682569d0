"""Keep the weights of a study's runs, so that a row of a table can be evaluated again in seconds."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from recombinator.evaluation.sources import TableLike
from recombinator.evaluation.tables import evaluate
from recombinator.utils.errors import InputError
from recombinator.weights.files import load_weights, save_weights

FOLDER = Path("results") / "weights"
LARGEST_CHANGE = 0.002  # share of the error that half precision may change it by; at least LEAST_CHANGE points
LEAST_CHANGE = 0.02


def file_fingerprint(path: Path) -> str:
    """Return the first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def largest_change(nme: float) -> float:
    """Return by how much half precision may change an error of `nme` percent."""
    return max(LEAST_CHANGE, LARGEST_CHANGE * nme)


def archive_weights(
    root: Path, place: str, weights: str | os.PathLike[str], test: TableLike, nme_paper: float
) -> dict[str, Any]:
    """Write a run's best weights in half precision under results/weights/ and check that the error stays.

    Args:
        root: The checkout.
        place: "STUDY/RUN".
        weights: The run's folder.
        test: The study's test table: a file, or loaded.
        nme_paper: The error of the full-precision weights in percent.

    Returns:
        Their entry in the result file: path, fingerprint, error in percent.

    Raises:
        InputError: Half precision changes the error by more than is allowed; nothing is kept then.
    """
    path = root / FOLDER / f"{place}.safetensors"
    save_weights(path, load_weights(weights), half=True)
    error = float(evaluate(path, test)[1]["nme_paper"])
    if abs(error - nme_paper) > largest_change(nme_paper):
        path.unlink()
        raise InputError(f"{place}: half precision changes the error from {nme_paper:.3f} to {error:.3f} %")
    return {"file": path.relative_to(root).as_posix(), "fingerprint": file_fingerprint(path), "nme_paper": error}
