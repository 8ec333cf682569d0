"""Hard negatives for a face finder: parts of photographs where it sees a face and the localizer sees none."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from recombinator.data.images import encode_image, read_image, to_gray
from recombinator.data.table import load_table
from recombinator.predict.finder import FinderDetector, OnnxFinder, face_finder, resized
from recombinator.predict.predictor import Predictor, load
from recombinator.study.scenes import annotated_faces, image_files
from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_folder, write_atomically
from recombinator.utils.threads import in_order

LEAST = 0.15  # score of a false alarm
NO_FACE, FACE = 0.62, 0.72  # mean confidence of the points below which it is no face, and from which it may be one
SMALLEST = 14.0  # pixels
REACH = (1.3, 3.5)  # sides of a patch, in sides of the false alarm
SHRINK, LEAST_REACH = 0.85, 0.9  # a patch that touches a face is made smaller, down to this many sides
STORED = 256  # longest side of a patch in pixels


def write_negatives(
    weights: str | os.PathLike[str], out: Path, *, data: Path | None, photographs: Path,
    finder: Path | None = None, seed: int = 0, progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:  # fmt: skip
    """Write gray patches with false alarms and without faces, for `prepare mtfl --whole --backgrounds`.

    Args:
        weights: Localizer for faces.
        out: Folder for the patches, PNG.
        data: Table of training faces, whose photographs are searched and whose faces are avoided. None: `photographs`
            is a folder of images without faces.
        photographs: Folder of the photographs.
        finder: The finder's .onnx file; by default the shipped one.
        seed: Seed of sizes and positions.
        progress: Called with (photographs done, photographs in all).

    Returns:
        The number of patches.

    Raises:
        InputError: A file cannot be used, or `out` holds files.
    """
    if out.is_dir() and any(out.iterdir()):
        raise InputError(f"{out}: holds files; choose another folder")
    check_output_folder(out)
    detector = FinderDetector(OnnxFinder(finder)) if finder else face_finder()
    detector.threshold = LEAST
    predictor = load(weights, detector, threads=1)
    squares: dict[Path, list[np.ndarray]] = {}
    if data:
        for face in annotated_faces(load_table(data), photographs):
            squares.setdefault(face.file, []).append(face.square)
    else:
        squares = {file: [] for file in image_files(photographs)}
    out.mkdir(parents=True, exist_ok=True)
    count = 0

    def job(file: str, number: int) -> list[np.ndarray]:
        known = np.array(squares[Path(file)])
        return patches(predictor, read_image(file), known, np.random.default_rng((seed, number)))

    jobs = [(str(file), number) for number, file in enumerate(squares)]
    for file, number, found in in_order(job, jobs, os.cpu_count() or 1):
        for i, patch in enumerate(found):
            target = out / f"{number:05}-{i}-{Path(file).stem}.png"
            write_atomically(target, partial(_write_png, patch))
        count += len(found)
        progress(number + 1, len(jobs))
    return count


def patches(
    predictor: Predictor, image: np.ndarray, faces: np.ndarray, generator: np.random.Generator
) -> list[np.ndarray]:
    """Return gray patches around the false alarms of a predictor's finder.

    Args:
        predictor: Finder and localizer.
        image: (H, W) gray or (H, W, 3) RGB, uint8.
        faces: (N, 4) squares of the annotated faces; see Sample.
        generator: Draws sizes and positions.
    """
    found = predictor.predict(image, passes=1, min_confidence=0.0, search=False)
    sides, centers = np.array([f.box[2] for f in found]), np.array([f.box[:2] + f.box[2] / 2 for f in found])
    # where the border of the image has decided, there may be a face that is cut off
    seen = [float(f.confidence.mean()) if f.confidence.all() else 1.0 for f in found]
    likely = np.array(seen) >= FACE
    avoided = np.concatenate([faces.reshape(-1, 4)[:, :3], np.column_stack([centers.reshape(-1, 2), sides])[likely]])
    kept = []
    for center, own, confidence in zip(centers, sides, seen, strict=True):
        if confidence >= NO_FACE or own < SMALLEST:
            continue
        side = own * generator.uniform(*REACH)
        middle = center + 0.15 * side * generator.uniform(-1, 1, 2)

        def touches(side: float, middle: np.ndarray = middle) -> bool:
            gap = np.abs(avoided[:, :2] - middle).max(axis=1)
            return bool((gap < (avoided[:, 2] + side) / 2).any())

        while side > LEAST_REACH * own and touches(side):
            side *= SHRINK
        if touches(side):
            continue
        low = np.maximum(middle - side / 2, 0).astype(int)
        high = np.minimum(middle + side / 2, image.shape[1::-1]).astype(int)
        if (high - low).min() >= SMALLEST:
            patch = to_gray(image[low[1] : high[1], low[0] : high[0]])
            kept.append(resized(patch, patch.shape, min(1.0, STORED / max(patch.shape))))
    return kept


def _write_png(patch: np.ndarray, path: Path) -> None:
    path.write_bytes(encode_image(patch, 0))
