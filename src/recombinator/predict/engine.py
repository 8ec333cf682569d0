"""What turns crops into points: an exported graph by ONNX Runtime, or the network by torch. Same answers, two costs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError, remedy
from recombinator.weights.shipped import shipped_graphs

ENGINES = ("onnx", "torch")
GRAPH_FORMAT = "recombinator-graph-3"
OUTPUTS = ("points", "highest", "within", "covariance")


@dataclass(frozen=True)
class Description:
    """What a network wants and gives: keypoint set, crop rule by name, template (K mean positions in the crop, as
    shares of its side), input side in pixels, channels (1 gray, 3 RGB), what `calibrate` found, the model's
    configuration and how it was trained (weights.Weights), and for an 8-bit graph which images gave its ranges."""

    keypoints: KeypointSet
    crop_rule: str
    template: list[list[float]]
    size: int
    channels: int
    calibration: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    int8: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """Answers in crop pixels. points, highest (the highest cells' centers): (N, K, 2); within: (N, K, 5),
    probabilities of the squares metrics.RADII around the highest cells; covariance: (N, K, 3): xx, xy, yy."""

    points: np.ndarray
    highest: np.ndarray
    within: np.ndarray
    covariance: np.ndarray


class Engine(Protocol):
    about: Description

    def run(self, crops: np.ndarray) -> Found:
        """(N, channels, size, size) uint8 -> answers. Thread-safe."""
        ...


class OnnxEngine:
    """A file that `recombinator export` wrote. threads: 0 leaves the number to ONNX Runtime."""

    def __init__(self, path: Path, threads: int = 0) -> None:
        try:
            import onnxruntime as ort
        except ImportError:
            raise InputError("ONNX Runtime is not installed: pip install onnxruntime, or use engine='torch'") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        try:
            self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            found = self.session.get_modelmeta().custom_metadata_map.get("recombinator")
        except Exception as error:  # ONNX Runtime has its own exceptions for each kind of damage
            raise InputError(f"{path}: not a readable ONNX file ({str(error).splitlines()[0]})") from None
        if found is None:
            raise InputError(f"{path}: not written by `recombinator export` (its metadata is missing)")
        meta = json.loads(found)
        if meta.pop("format", None) != GRAPH_FORMAT:
            raise InputError(f"{path}: written by another version of `recombinator export`; export it again")
        self.about = Description(**{**meta, "keypoints": KeypointSet.from_dict(meta["keypoints"])})

    def run(self, crops: np.ndarray) -> Found:
        return Found(*self.session.run(OUTPUTS, {"image": crops}))


class TorchEngine:
    """Weights of any kind, by torch."""

    def __init__(self, weights: Any, threads: int = 0) -> None:
        import torch

        from recombinator.models.base import check_takes_images

        check_takes_images(weights.net, "these weights")
        if threads:
            torch.set_num_threads(threads)
        self.net = weights.net.eval().to(memory_format=torch.channels_last)
        said = json.loads(json.dumps([weights.calibration, self.net.config, weights.training]))
        self.about = Description(
            weights.keypoints, weights.crop_rule, weights.template, self.net.size, self.net.channels, *said
        )

    def run(self, crops: np.ndarray) -> Found:
        import torch

        from recombinator.models.decode import answers

        with torch.inference_mode():
            found = answers(self.net, torch.from_numpy(crops))
        return Found(*(getattr(found, name).numpy() for name in OUTPUTS))


def load_engine(name_or_path: str | os.PathLike[str], engine: str | None = None, threads: int = 0) -> Engine:
    """An engine for a shipped name, an .onnx file, a weights file or a run's folder.

    engine: "onnx" or "torch"; by default ONNX Runtime where there is a graph, torch otherwise. Raises InputError where
    there is nothing of that name, or not in that form.
    """
    if engine not in (None, *ENGINES):
        raise InputError(f"engine={engine!r} is not known: use one of {', '.join(ENGINES)}")
    text = os.fspath(name_or_path)
    graph = Path(text) if text.endswith(".onnx") else shipped_graphs().get(text)
    if Path(text).exists() and not text.endswith(".onnx"):
        graph = None  # a file or folder of that name comes before what ships
    if text.endswith(".onnx") and not Path(text).is_file():
        raise InputError(f"{text}: no such file")
    if graph and engine != "torch":
        return OnnxEngine(graph, threads)
    if text.endswith(".onnx"):
        raise InputError(f"{text}: an exported graph; torch wants the weights it was exported from")
    if engine == "onnx":
        raise InputError(f"{text}: has no exported graph; `recombinator export {text} --onnx FILE` writes one")
    if find_spec("torch") is None:
        known = ", ".join(shipped_graphs())
        raise InputError(f"{text}: needs torch, or an exported graph ({known}); {remedy('train')}")
    from recombinator.weights.files import load_weights

    return TorchEngine(load_weights(name_or_path), threads)
