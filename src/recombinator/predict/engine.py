"""Engines that turn crops into keypoints: an exported graph with ONNX Runtime, or a network with torch."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from recombinator.keypoints import RADII, KeypointSet, decode_described
from recombinator.predict.finder import OnnxFinder, TorchFinder
from recombinator.predict.session import ForkCheck, Session, check_finite
from recombinator.utils.errors import InputError, check_choice, remedy, unknown
from recombinator.weights.schema import Channels, Position, Size, check_network
from recombinator.weights.shipped import shipped_graphs, shipped_models, unknown_model

ENGINES = ("onnx", "torch")
GRAPH_FORMAT = "recombinator-graph-3"
OUTPUTS = ("points", "highest", "within", "covariance")


@dataclass(frozen=True)
class Description:
    """Describe the input and output of a network.

    Args:
        keypoints: The keypoint set, K names.
        crop_rule: Name of the rule that cuts the network's input from a photograph (data.crops.RULES).
        template: K mean positions (x, y) in the crop, in units of the crop's side.
        size: Side of the square input in pixels.
        channels: 1 for gray, 3 for RGB.
        calibration: What `calibrate` fitted; empty if the weights are not calibrated.
        model: Configuration of the network, with its `name`.
        training: How the network was trained (weights.files.Weights).
        int8: For an 8-bit graph, the images that the quantization ranges come from.
    """

    keypoints: KeypointSet
    crop_rule: str
    template: list[Position]
    size: Size
    channels: Channels
    calibration: dict[str, Any]
    model: dict[str, Any]
    training: dict[str, Any]
    int8: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_network(self.keypoints, self.crop_rule, self.template, self.calibration)
        if not isinstance(self.model.get("name"), str):
            raise InputError("model: expected the network's name, got none")


@dataclass(frozen=True)
class Predictions:
    """Hold the predictions for N crops, in pixels of the crop; a pixel's center is at its integer + 0.5.

    Args:
        points: (N, K, 2) keypoints x, y.
        highest: (N, K, 2) centers of the highest cells of the score maps.
        within: (N, K, 5) probabilities of the squares that reach keypoints.RADII cells from the highest cell.
        covariance: (N, K, 3) covariance of the error of `points`: xx, xy, yy.
    """

    points: np.ndarray
    highest: np.ndarray
    within: np.ndarray
    covariance: np.ndarray


class Engine(Protocol):
    """What a Predictor needs of an engine.

    It may also have `finder`, a FinderEngine: the finder that was trained together with the network, or None.
    """

    about: Description

    def run(self, crops: np.ndarray) -> Predictions:
        """Predict the keypoints of (N, channels, size, size) uint8 crops. Thread-safe."""
        ...


class OnnxEngine:
    """Run a graph that `recombinator export` wrote, on the CPU.

    Args:
        path: The .onnx file.
        threads: Number of threads; 0 leaves the choice to ONNX Runtime.

    Raises:
        InputError: If ONNX Runtime is not installed or the file cannot be used.
    """

    name, device = "onnx", "cpu"

    def __init__(self, path: Path, threads: int = 0) -> None:
        self.session, self.threads = Session(path, threads, GRAPH_FORMAT), threads
        self.about = decode_described(Description, self.session.metadata, str(path))
        about, k = self.about, len(self.about.keypoints)
        crop = (about.channels, about.size, about.size)
        shapes = {"points": (k, 2), "highest": (k, 2), "within": (k, len(RADII)), "covariance": (k, 3)}
        self.session.check_interface(
            {"image": ("tensor(uint8)", crop)} | {n: ("tensor(float)", s) for n, s in shapes.items()}
        )
        try:
            outputs = self.run(np.zeros((1, *crop), np.uint8))
        except InputError as error:
            raise InputError(f"{path}: {error}") from None
        for name, shape in shapes.items():
            if (found := getattr(outputs, name).shape) != (1, *shape):
                raise InputError(f"{path}: {name}: expected shape {(1, *shape)}, got {found}")
        packed = self.session.properties.get("recombinator_finder")
        self.finder = OnnxFinder(path, packed, threads) if packed else None

    def run(self, crops: np.ndarray) -> Predictions:
        """Predict the keypoints of (N, channels, size, size) uint8 crops.

        Raises:
            InputError: The graph fails, or its output is not finite.
        """
        return Predictions(*self.session.run(OUTPUTS, crops))


class TorchEngine:
    """Run a network with torch.

    Args:
        weights: A network in memory (weights.files.Weights). Its network is moved to the device.
        threads: Number of CPU threads, in force during `run` only; 0 leaves torch's setting alone. Calls with a limit
            run one after the other.
        device: "cpu", "cuda" or "cuda:N".

    Raises:
        InputError: If the weights are a denoiser's, or the device is unknown or not available.
    """

    name = "torch"

    def __init__(self, weights: Any, threads: int = 0, device: str = "cpu") -> None:
        import torch

        from recombinator.models.base import check_takes_images

        check_takes_images(weights.net, str(weights))
        weights.net.check_locates(str(weights))
        self.finder = TorchFinder(weights.finder) if weights.finder is not None else None
        _check_device(device)
        if device != "cpu" and not torch.cuda.is_available():
            raise InputError(f"device {device!r}: torch finds no CUDA GPU on this machine; use device 'cpu'")
        _, _, index = device.partition(":")
        if index and int(index) >= torch.cuda.device_count():
            raise InputError(f"device {device!r}: this machine has {torch.cuda.device_count()} GPU(s), counted from 0")
        self.device, self.threads, self._check_process = device, threads, ForkCheck()
        self.net = weights.net.eval().to(device=device, memory_format=torch.channels_last)
        # as JSON holds them, so that both engines describe a network in the same way
        plain = json.loads(json.dumps([weights.calibration, self.net.config, weights.training]))
        self.about = Description(
            weights.keypoints, weights.crop_rule, weights.template, self.net.size, self.net.channels, *plain
        )

    def run(self, crops: np.ndarray) -> Predictions:
        """Predict the keypoints of (N, channels, size, size) uint8 crops.

        Raises:
            InputError: The output is not finite, or the process is a fork of the one that loaded the network.
        """
        import torch

        self._check_process()
        with _limit_torch_threads(self.threads), torch.inference_mode():
            decoded = self.net.decode(self.net(torch.from_numpy(crops).to(self.device)))
        outputs = [getattr(decoded, name).cpu().numpy() for name in OUTPUTS]
        check_finite(outputs, self.about.model["name"])
        return Predictions(*outputs)


_TORCH_THREADS = threading.Lock()


@contextmanager
def _limit_torch_threads(threads: int) -> Iterator[None]:
    """Set torch's number of threads, which belongs to the whole process, and restore it afterwards. 0: do nothing."""
    import torch

    if not threads:
        yield
        return
    with _TORCH_THREADS:
        before = torch.get_num_threads()
        if threads != before:  # setting it drops torch's cache of prepared kernels
            torch.set_num_threads(threads)
        try:
            yield
        finally:
            if threads != before:
                torch.set_num_threads(before)


def _check_device(device: str) -> None:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", device):
        raise unknown("device", device, ("cpu", "cuda", "cuda:N"))


def load_engine(
    name_or_path: str | os.PathLike[str], engine: str | None = None, threads: int = 0, device: str = "cpu"
) -> Engine:
    """Load the engine for a model.

    Args:
        name_or_path: A shipped name, an .onnx file, a weights file or a run's folder. An existing file or folder
            takes precedence over a shipped name.
        engine: "onnx" or "torch". By default ONNX Runtime if there is a graph and `device` is "cpu", torch otherwise.
        threads: Number of CPU threads; 0 leaves the choice to the engine.
        device: "cpu", or for the torch engine "cuda" or "cuda:N".

    Returns:
        An OnnxEngine or a TorchEngine.

    Raises:
        InputError: If there is no such model, or not for this engine or device.
    """
    if engine is not None:
        check_choice("engine", engine, ENGINES)
    _check_device(device)
    if device != "cpu":
        if engine == "onnx":
            raise InputError(f"device {device!r}: ONNX Runtime runs on the CPU here; use the torch engine")
        engine = "torch"
    text = os.fspath(name_or_path)
    is_onnx_file, exists = text.endswith(".onnx"), os.path.exists(text)
    if is_onnx_file and not os.path.isfile(text):
        raise InputError(f"{text}: no such file")
    if not exists and text not in shipped_models():
        raise unknown_model(text)
    graph = Path(text) if is_onnx_file else None if exists else shipped_graphs().get(text)
    if graph and engine != "torch":
        return OnnxEngine(graph, threads)
    if is_onnx_file:
        raise InputError(f"{text}: an exported graph; the torch engine needs the weights that it was exported from")
    if engine == "onnx":
        raise InputError(f"{text}: has no exported graph; `recombinator export {text} --onnx FILE` writes one")
    if find_spec("torch") is None:
        other = "leave out the torch engine and the device" if graph else f"use one of {', '.join(shipped_graphs())}"
        raise InputError(f"{text}: needs torch; {remedy('train')}, or {other}")
    from recombinator.weights.files import load_weights

    return TorchEngine(load_weights(name_or_path), threads, device)
