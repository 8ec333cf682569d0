"""Drawn faces with 5 or 68 known keypoints, so that tests and a first training need no download.

A 3D mesh of 68 points is deformed, rotated, projected and drawn with OpenCV. Light, noise, blur, glasses and occluding
rectangles vary. The result depends only on the seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from recombinator.data.crops import GRID, RULES
from recombinator.data.rows import crop_row
from recombinator.data.table import Row, TableInfo, write_splits
from recombinator.keypoints import FACE_5, FACE_68, KeypointSet
from recombinator.utils.errors import InputError

CANVAS = 240
_SETS: dict[int, tuple[KeypointSet, str]] = {5: (FACE_5, "mtfl"), 68: (FACE_68, "300w")}


def _ellipse(center: tuple[float, float], radii: tuple[float, float], degrees: list[float]) -> np.ndarray:
    a = np.deg2rad(degrees)
    return np.stack([center[0] + radii[0] * np.cos(a), center[1] - radii[1] * np.sin(a)], axis=1)


def _mesh(rng: np.random.Generator) -> np.ndarray:
    """Draw a random face: (68, 3) points, half-width 1, x right, y down, z towards the viewer."""
    jaw = _ellipse((0, -0.05), (1.0, 1.15 + 0.1 * rng.random()), list(np.linspace(180, 360, 17)))
    raise_brow, smile, opening = rng.normal(0, 0.04), rng.normal(0, 0.05), abs(rng.normal(0, 0.05))
    arch = 0.07 * np.sin(np.linspace(0.3, np.pi - 0.1, 5))
    brow = np.stack([np.linspace(-0.78, -0.2, 5), -0.46 - raise_brow - arch], axis=1)
    bridge = np.stack([np.zeros(4), np.linspace(-0.2, 0.2, 4)], axis=1)
    nostrils = np.stack([np.linspace(-0.2, 0.2, 5), 0.32 - 0.05 * np.cos(np.linspace(-np.pi, np.pi, 5))], axis=1)
    lid = 0.06 + 0.03 * rng.random()
    eye = _ellipse((-0.43, -0.2), (0.17, lid), [180, 120, 60, 0, -60, -120])
    width = 0.36 + smile
    outer = _ellipse((0, 0.63), (width, 0.13 + opening), [180, *np.linspace(150, 30, 5), 0, *np.linspace(-30, -150, 5)])
    inner = _ellipse((0, 0.63), (0.85 * width, 0.02 + opening), [180, 135, 90, 45, 0, -45, -90, -135])
    outer[[0, 6], 1] -= smile
    inner[[0, 4], 1] -= smile
    mirror = np.array([-1, 1])
    flat = np.concatenate(
        [jaw, brow, brow[::-1] * mirror, bridge, nostrils, eye, (eye * mirror)[[3, 2, 1, 0, 5, 4]], outer, inner]
    )
    flat = flat * [1 + rng.normal(0, 0.05), 1 + rng.normal(0, 0.05)] + rng.normal(0, 0.008, flat.shape)
    depth = np.sqrt(np.clip(1.1 - 0.9 * flat[:, 0] ** 2 - 0.3 * flat[:, 1] ** 2, 0, None))
    depth[27:31] += np.linspace(0.05, 0.3, 4)
    depth[31:36] += 0.12
    return np.concatenate([flat, depth[:, None]], axis=1)


def _project(mesh: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Rotate in 3D (yaw +-35, pitch +-15, roll +-30 degrees), scale and place on the canvas: (N, 3) -> (N, 2)."""
    yaw, pitch, roll = np.deg2rad(rng.uniform(-1, 1, 3) * [35, 15, 30])
    cos, sin = np.cos, np.sin
    turn_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
    turn_x = np.array([[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]])
    turn_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
    flat = (mesh - [0, 0.1, 0.5]) @ (turn_z @ turn_x @ turn_y).T
    return flat[:, :2] * rng.uniform(44, 62) + CANVAS / 2 + rng.uniform(-14, 14, 2)


def draw_face(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw one face.

    Args:
        rng: Random generator of everything that varies.

    Returns:
        (240, 240, 3) RGB uint8 image, and (68, 2) x, y in its pixels; the center of a pixel is at its integer + 0.5.
    """
    import cv2

    mesh = _mesh(rng)
    forehead = np.concatenate(
        [_ellipse((0, -0.1), (1.0, 1.05), list(np.linspace(0, 180, 16))), np.full((16, 1), 0.3)], axis=1
    )
    projected = _project(np.concatenate([mesh, forehead]), rng)
    points, head = projected[:68], np.concatenate([projected[:17], projected[68:]])
    image = np.empty((CANVAS, CANVAS, 3), np.float32)
    image[:] = cv2.resize(rng.uniform(20, 235, (5, 5, 3)).astype(np.float32), (CANVAS, CANVAS), interpolation=3)
    skin = rng.uniform(90, 225) * np.array([1.0, 0.82, 0.7])

    def shape(p: np.ndarray) -> np.ndarray:  # OpenCV has pixel centers at integers; the unit is 1/16 pixel
        return np.round((p - 0.5) * 16).astype(np.int32)

    def fill(p: np.ndarray, color: np.ndarray) -> None:
        cv2.fillPoly(image, [shape(p)], tuple(map(float, color)), cv2.LINE_AA, 4)

    def line(p: np.ndarray, color: np.ndarray, thickness: int) -> None:
        cv2.polylines(image, [shape(p)], False, tuple(map(float, color)), thickness, cv2.LINE_AA, 4)

    fill(head, skin)
    hair = rng.uniform(10, 120) * np.array([1.0, 0.9, 0.8])
    line(projected[68:], hair, int(rng.integers(8, 26)))
    for brow in (points[17:22], points[22:27]):
        line(brow, hair * 0.8, int(rng.integers(2, 6)))
    for eye in (points[36:42], points[42:48]):
        fill(eye, np.full(3, rng.uniform(180, 250)))
        iris = tuple(int(v) for v in shape(eye.mean(axis=0)))
        cv2.circle(image, iris, 16 * 4, tuple(rng.uniform(10, 90, 3)), -1, cv2.LINE_AA, 4)
        line(np.concatenate([eye, eye[:1]]), skin * 0.4, 1)
    line(points[27:31], skin * 0.8, 2)
    line(points[31:36], skin * 0.55, 2)
    lips = skin * [0.85, 0.55, 0.55]
    fill(points[48:60], lips)
    fill(points[60:68], lips * rng.uniform(0.2, 0.7))
    if rng.random() < 0.2:
        for eye in (points[36:42], points[42:48]):
            ring = tuple(int(v) for v in shape(eye.mean(axis=0)))
            cv2.circle(image, ring, 16 * 15, (20.0, 20.0, 20.0), 2, cv2.LINE_AA, 4)
    if rng.random() < 0.3:
        x, y = (points.mean(axis=0) + rng.uniform(-60, 40, 2)).astype(int)
        w, h = rng.integers(15, 45, 2)
        cv2.rectangle(image, (int(x), int(y)), (int(x + w), int(y + h)), tuple(rng.uniform(0, 255, 3)), -1)
    direction = rng.uniform(0, 2 * np.pi)
    ys, xs = np.mgrid[0:CANVAS, 0:CANVAS] / CANVAS - 0.5
    light = 1 + rng.uniform(0, 1.0) * (np.cos(direction) * xs + np.sin(direction) * ys)
    image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.4)) * light[..., None].astype(np.float32)
    image += rng.normal(0, rng.uniform(1, 9), image.shape).astype(np.float32)
    return np.clip(image, 0, 255).astype(np.uint8), points


def five_of(points: np.ndarray) -> np.ndarray:
    """Return the points of face-5 from those of face-68, (68, 2) -> (5, 2): eye centers, nose tip, mouth corners."""
    return np.stack([points[36:42].mean(axis=0), points[42:48].mean(axis=0), points[30], points[48], points[54]])


def synthetic_row(index: int, seed: int, keypoints: int, size: int, gray: bool, quality: int) -> Row:
    """Draw face number `index` for a seed. The image is the same for 5 and for 68 keypoints."""
    image, points = draw_face(np.random.default_rng([seed, index]))
    points = five_of(points) if keypoints == 5 else points
    rule = RULES[_SETS[keypoints][1]]
    return crop_row(image, points, f"synthetic/{index:06d}", rule, size=size, gray=gray, quality=quality)


def prepare_synthetic(
    out: Path, *, faces: int = 1000, keypoints: int = 5, seed: int = 0, size: int = GRID, gray: bool = True,
    quality: int = 95, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, int]:  # fmt: skip
    """Write OUT/{train,valid,test}.parquet with 80 %, 10 % and 10 % of the drawn faces.

    Args:
        out: Folder for the tables.
        faces: Number of faces, 10 or more.
        keypoints: 5 (face-5) or 68 (face-68).
        seed: Seed of all random numbers.
        size: Side of the stored crops in pixels.
        gray: Store gray crops.
        quality: JPEG quality; 0 stores PNG, without loss.
        progress: Called with the number of faces done and the total.

    Returns:
        Rows written per split.

    Raises:
        InputError: `keypoints` is not 5 or 68, or `faces` is below 10.
    """
    if keypoints not in _SETS:
        raise InputError(f"expected 5 or 68 keypoints, got {keypoints}")
    if faces < 10:
        raise InputError(f"expected 10 or more faces for three splits, got {faces}")
    keypoint_set, rule = _SETS[keypoints]
    tenth = faces // 10
    bounds = {
        "train": (0, faces - 2 * tenth),
        "valid": (faces - 2 * tenth, faces - tenth),
        "test": (faces - tenth, faces),
    }

    counts = write_splits(
        out, {split: range(*bound) for split, bound in bounds.items()},
        lambda i: synthetic_row(i, seed, keypoints, size, gray, quality),
        lambda split: TableInfo("synthetic", split, keypoint_set, rule, size, gray), strict=True, progress=progress,
    )  # fmt: skip
    counts.pop("dropped")
    return counts
