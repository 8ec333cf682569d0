"""Measure how well faces are found in whole images, with the predictor that `load` gives.

Scenes are made from annotated photographs and from images without faces, by a seed. The size of a face is the side of
the square that the network sees: about three eye distances.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import SAMPLE_PHOTOGRAPH, read_image
from recombinator.data.table import load_table
from recombinator.evaluation.photographs import MATCH, evaluate_photographs, match
from recombinator.predict.crop import rotation
from recombinator.predict.detect import Detector, as_detections
from recombinator.predict.finder import OnnxFinder
from recombinator.predict.predictor import Predictor, load
from recombinator.predict.result import Face
from recombinator.study.scenes import (
    CUTS,
    PIECE,
    Photographs,
    Sample,
    annotated_faces,
    canvas,
    color,
    image_files,
    paste,
    place,
)
from recombinator.utils.console import report_part
from recombinator.utils.errors import InputError, check_choice

MOSAICS, MOSAIC_SIZE = 200, (1600, 1200)  # number, and width and height in pixels
FACES, SIDES, DEGREES = (2, 16), (24.0, 200.0), 30.0  # of a mosaic
SIZE_CLASSES = (24, 40, 80, 200)  # pixels
LARGE, SMALL_SIDES, FACES_PER_SIDE = (4000, 3000), (16, 20, 24, 32, 40, 48, 64, 96), 25
PORTRAIT_STEP = 15  # degrees
CUT_FACES = 200
WRONG, CONFIDENT = 0.1, 0.85  # error in eye distances, mean confidence
UPRIGHT = 20.0  # degrees; faces that lean more are not cut


@dataclass
class Finding:
    """Run the parts of the measurement.

    Args:
        predictor: The predictor to measure.
        samples: Annotated faces.
        empty: Images without faces.
        seed: Seed of the scenes.
        share: Share of the images of each part that are used.
        advance: Called with the share of the current part that is done.
    """

    predictor: Predictor
    samples: list[Sample]
    empty: list[Path]
    seed: int = 0
    share: float = 1.0
    advance: Callable[[float], None] = field(default=lambda share: None)

    def mosaics(self) -> dict[str, Any]:
        """Measure mosaics of several faces on an image without faces."""
        rng, count = self._generator(1), self._count(MOSAICS)
        sides: list[float] = []
        hits: list[bool] = []
        false, errors = 0, []
        for i in range(count):
            image, true = canvas(self.empty, rng, *MOSAIC_SIZE), []
            used: list[tuple[float, float, float]] = []
            low, high = np.log(SIDES)
            wanted = np.exp(rng.uniform(low, high, int(rng.integers(FACES[0], FACES[1] + 1))))
            for side in np.sort(wanted)[::-1]:
                center = place(rng, used, side, MOSAIC_SIZE)
                if center is not None:
                    used.append((*center, side))
                    true.append(paste(image, self._draw(rng), center, side, rng.uniform(-DEGREES, DEGREES)))
            matched, others = self._match(self.predictor.predict(image), true)
            sides += [s for _, _, s in used]
            hits += [e is not None for e in matched]
            errors += [e for e in matched if e is not None]
            false += others
            self.advance((i + 1) / count)
        bands = []
        for least, most in pairwise(SIZE_CLASSES):
            inside = [h for h, s in zip(hits, sides, strict=True) if least <= s < most]
            bands.append({"from": least, "to": most, "faces": len(inside), "found": sum(inside)})
        return {
            "images": count, "faces": len(hits), "found": sum(hits), "recall": float(np.mean(hits)),
            "false": false, "false_per_image": false / count, "nme": 100 * float(np.mean(errors)), "sizes": bands,
        }  # fmt: skip

    def turned(self) -> dict[str, Any]:
        """Measure whole photographs rotated by 90, 180 and 270 degrees."""
        rng, count = self._generator(2), self._count(len(self.samples))
        chosen = rng.permutation(len(self.samples))[:count]
        rows = []
        for quarter in (1, 2, 3):  # counterclockwise, as in numpy
            errors, others = [], 0
            for n, i in enumerate(chosen):
                face = self.samples[i]
                image, points = read_image(face.file), face.points
                for _ in range(quarter):
                    points = np.stack([points[:, 1], image.shape[1] - points[:, 0]], axis=1)
                    image = np.rot90(image)
                (error,), more = self._match(self.predictor.predict(np.ascontiguousarray(image)), [points])
                errors += [error] if error is not None else []
                others += more
                self.advance((quarter - 1 + (n + 1) / count) / 3)
            rows.append({
                "degrees": 360 - 90 * quarter, "photographs": count, "found": len(errors), "others": others,
                "nme": 100 * float(np.mean(errors)) if errors else None,
            })  # fmt: skip
        total = sum(int(r["found"] or 0) for r in rows)
        return {"photographs": 3 * count, "found": total, "share": total / (3 * count), "by_angle": rows}

    def without_faces(self) -> dict[str, Any]:
        """Count false detections in images without faces, before and after the localizer's confidence is used."""
        before = after = 0
        wrong = []
        files = self.empty[: self._count(len(self.empty))]
        for n, file in enumerate(files):
            photograph = self.predictor.open(file)
            detector = self.predictor.detector
            assert detector is not None  # of a face model
            before += len(as_detections(detector.detect(photograph.pixels)))
            faces = self.predictor.predict(photograph)
            after += len(faces)
            wrong += [{"file": file.name, "confidence": float(f.confidence.mean())} for f in faces]
            self.advance((n + 1) / len(files))
        return {"images": len(files), "false_before_confidence": before, "false": after, "false_detections": wrong}

    def portrait(self) -> dict[str, Any]:
        """Measure the sample portrait at every angle: distance of the points from those of the upright portrait."""
        import cv2

        image = color(read_image(SAMPLE_PHOTOGRAPH))
        height, width = image.shape[:2]
        upright = self.predictor.predict(image)[0]
        eyes = float(self.predictor.keypoints.scale(upright.points[None])[0])
        side = int(np.ceil(np.hypot(height, width)))
        rows = []
        angles = range(0, 360, PORTRAIT_STEP)
        for n, degrees in enumerate(angles):
            linear = rotation(degrees)
            shift = np.full(2, side / 2) - linear @ [width / 2, height / 2]
            matrix = np.concatenate([linear, (shift + linear @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
            faces = self.predictor.predict(cv2.warpAffine(image, matrix, (side, side), flags=cv2.INTER_CUBIC))
            distances = [np.linalg.norm(f.points - upright.points @ linear.T - shift, axis=1) for f in faces]
            best = min(distances, key=lambda d: float(d.mean()), default=None)
            if best is not None and best.mean() > MATCH * eyes:
                best = None
            rows.append({
                "degrees": degrees, "found": best is not None, "others": len(faces) - (best is not None),
                **({} if best is None else {"mean": float(best.mean()), "max": float(best.max())}),
            })  # fmt: skip
            self.advance((n + 1) / len(angles))
        means = [r["mean"] for r in rows if r["found"]]
        return {
            "eye_distance": eyes, "angles": len(rows), "found": len(means), "median": float(np.median(means)),
            "largest_mean": max(means), "largest_of_a_point": max(float(r["max"]) for r in rows if r["found"]),
            "rows": rows,
        }  # fmt: skip

    def smallest(self) -> dict[str, Any]:
        """Measure one small face in a large photograph."""
        rng, count = self._generator(3), self._count(FACES_PER_SIDE)
        rows = []
        for n, side in enumerate(SMALL_SIDES):
            found = others = 0
            for k in range(count):
                image = canvas(self.empty, rng, *LARGE)
                reach = PIECE * side / 2
                center = rng.uniform(reach, np.array(LARGE) - reach)
                true = paste(image, self._draw(rng), center, side, 0.0)
                (error,), more = self._match(self.predictor.predict(image), [true])
                found, others = found + (error is not None), others + more
                self.advance((n + (k + 1) / count) / len(SMALL_SIDES))
            rows.append({"side": side, "images": count, "found": found, "share": found / count, "others": others})
        return {"width": LARGE[0], "height": LARGE[1], "rows": rows}

    def cut(self) -> dict[str, Any]:
        """Measure faces that the border of the image cuts."""
        rng = self._generator(4)
        level = [s for s in self.samples if abs(s.square[3]) < UPRIGHT]
        chosen = [level[i] for i in rng.permutation(len(level))[: self._count(CUT_FACES)]]
        rows = {name: {"faces": 0, "found": 0, "rejected": 0, "unsure": 0, "wrong": 0} for name in CUTS}
        for n, face in enumerate(chosen):
            image = read_image(face.file)
            x, y, side = face.square[:3]
            around = [x - side, y - side, x + side, y + side]  # without most other people
            others = self._others(image, face.points)
            for name, limits in CUTS.items():
                box = limits(face, around)
                x0, y0 = np.maximum(np.rint(box[:2]).astype(int), 0)
                x1, y1 = np.minimum(np.rint(box[2:]).astype(int), image.shape[1::-1])
                part = np.ascontiguousarray(image[y0:y1, x0:x1])
                outcome = self._outcome(self.predictor.predict(part), face.points - [x0, y0], others - [x0, y0])
                rows[name]["faces"] += 1
                rows[name][outcome] += 1
            self.advance((n + 1) / len(chosen))
        return {"rows": [{"cut": name, **row} for name, row in rows.items()]}

    def _others(self, image: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Return (N, K, 2) points of the other people in a photograph: those centered an eye distance away or more."""
        eyes = float(self.predictor.keypoints.scale(true[None])[0])
        points = [face.points for face in self.predictor.predict(image)]
        away = [p for p in points if np.linalg.norm(p.mean(axis=0) - true.mean(axis=0)) >= eyes]
        return np.array(away).reshape(-1, *true.shape)

    def _outcome(self, faces: Sequence[Face], true: np.ndarray, others: np.ndarray) -> str:
        """Classify what was predicted for one cut face: found, rejected, unsure, or confident and wrong.

        A prediction that is within half an eye distance of one of the `others` is that person.
        """
        eyes, outcome = float(self.predictor.keypoints.scale(true[None])[0]), "rejected"
        for face in faces:
            near = np.linalg.norm(others - face.points, axis=2).mean(axis=1)
            if (near <= MATCH * self.predictor.keypoints.scale(face.points[None])).any():
                continue
            inside = np.asarray(face.inside)
            distance = np.linalg.norm(face.points - true, axis=1)[inside]
            right = len(distance) == 0 or float(distance.mean()) <= WRONG * eyes
            if not right and float(face.confidence.mean()) > CONFIDENT:
                return "wrong"
            outcome = "found" if right or outcome == "found" else "unsure"
        return outcome

    def _match(self, faces: Sequence[Face], true: Sequence[np.ndarray]) -> tuple[list[float | None], int]:
        """Return the error of each true face in eye distances, None if it is not found, and the number of others."""
        eyes = [float(self.predictor.keypoints.scale(points[None])[0]) for points in true]
        found, others = match([face.points for face in faces], true, eyes)
        errors = [
            None if i is None else float(np.linalg.norm(faces[i].points - points, axis=1).mean()) / scale
            for i, points, scale in zip(found, true, eyes, strict=True)
        ]
        return errors, others

    def _generator(self, part: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, part])

    def _count(self, of: int) -> int:
        return max(1, round(of * self.share))

    def _draw(self, rng: np.random.Generator) -> Sample:
        return self.samples[int(rng.integers(len(self.samples)))]


PARTS: dict[str, Callable[[Finding], dict[str, Any]]] = {
    "mosaics": Finding.mosaics, "turned": Finding.turned, "without_faces": Finding.without_faces,
    "portrait": Finding.portrait, "smallest": Finding.smallest, "cut": Finding.cut,
}  # fmt: skip
PASSES = "passes"


def run(
    sets: Sequence[Photographs], empty: Path, detector: Detector | None = None, *, seed: int = 0, share: float = 1.0,
    only: Sequence[str] = (), final: bool = False, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Measure how well faces are found.

    Args:
        sets: Photographs with their networks. The first network must have five keypoints; scenes are made of its
            validation photographs. Whole photographs of every set are measured with one and with two passes.
        empty: Folder of images without faces.
        detector: Finds the faces; None: as in `load`.
        seed: Seed of the scenes.
        share: Share of the images of each part that are used.
        only: Names of parts; empty: all of them.
        final: Also measure the test photographs, once, when nothing is chosen any more.
        progress: Called with (percent done, 100).

    Returns:
        A report with one entry per part.

    Raises:
        InputError: A network, a table or a folder cannot be used, or there is no such part.
    """
    for name in only:
        check_choice("part", name, (*PARTS, PASSES))
    parts = list(only) or [*PARTS, PASSES]
    weights = sets[0].networks[0]
    predictor = load(weights, detector)
    samples = annotated_faces(load_table(sets[0].data / "valid.parquet"), sets[0].folder)
    if samples[0].points.shape[0] != 5 or len(predictor.keypoints) != 5:
        raise InputError(f"{weights}: the first network and its table must have the five points of a face")
    finding = Finding(predictor, samples, image_files(empty), seed, share)
    stages = len(parts) + final
    report: dict[str, Any] = {
        "weights": weights, "min_confidence": predictor.min_confidence,
        "finder": _finder(predictor), "seed": seed, "share": share, "faces": len(samples),
    }  # fmt: skip
    for n, name in enumerate(parts):
        finding.advance = partial(report_part, progress, n, stages)
        if name in PARTS:
            report[name] = PARTS[name](finding)
        else:
            report[PASSES] = _whole(sets, "valid", (1, 2), detector, share, finding.advance)
    if final:
        report["final"] = _whole(sets, "test", (2,), detector, 1.0, partial(report_part, progress, len(parts), stages))
    return report


def _whole(
    sets: Sequence[Photographs], split: str, passes: Sequence[int], detector: Detector | None, share: float,
    advance: Callable[[float], None],
) -> list[dict[str, Any]]:  # fmt: skip
    """Measure whole photographs of each set; see evaluation.photographs."""
    rows = []
    for one in sets:
        table = one.data / f"{split}.parquet"
        limit = max(1, round(share * len(load_table(table)))) if share < 1 else None
        for weights, count in product(one.networks, passes):
            rows.append(evaluate_photographs(weights, table, one.folder, detector=detector, passes=count, limit=limit))
            advance(len(rows) / (sum(len(s.networks) for s in sets) * len(passes)))
    return rows


def _finder(predictor: Predictor) -> dict[str, Any]:
    """Describe the detector."""
    detector = predictor.detector
    engine = getattr(detector, "engine", None)
    report: dict[str, Any] = {"detector": type(detector).__name__}
    if engine is not None:
        report["threshold"] = getattr(detector, "threshold", None)
        report["sha256"] = engine.session.checksum if isinstance(engine, OnnxFinder) else None
    return report
