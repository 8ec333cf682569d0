"""Read and write weights files: safetensors, with everything needed to use them in the metadata.

Nothing is ever unpickled.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from recombinator.keypoints import KeypointSet, check_same_keypoints, decode_described
from recombinator.utils.errors import InputError, first_line
from recombinator.utils.files import check_regular, read_file, write_atomically, write_json
from recombinator.utils.schema import decode, parse_json
from recombinator.weights.schema import (
    FORMAT,
    Pair,
    Shifted,
    WeightsMetadata,
    check_calibration,
)
from recombinator.weights.shipped import is_graph, shipped_weights, unknown_model

if TYPE_CHECKING:
    from torch import Tensor

    from recombinator.models import Denoiser, KeypointNet, ScoreMapNet

FINDER_PREFIX = "finder/"  # of the names of the finder's tensors


@dataclass
class Weights:
    """A network in memory, with what its file says about it.

    Attributes:
        net: The network.
        keypoints: The keypoint set that it locates.
        crop_rule: Name of the rule that places its crop (a key of data.crops.RULES).
        template: (K, 2) mean positions of the keypoints in the crop, as shares of its side.
        training: How it was trained.
        calibration: The result of `calibrate`: `temperature`, `least`, `covered_below` (K confidences) and the data
            they were fitted on; empty if not calibrated. `net.temperature` is set where weights are loaded or
            calibrated, not here.
        name: The name or path that `load_weights` was given, for reports and messages; "" for weights made in memory.
        finder: Weights of the finder in front of this network, if it has one of its own.
    """

    net: KeypointNet
    keypoints: KeypointSet
    crop_rule: str
    template: list[list[float]]
    training: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)
    name: str = ""
    finder: Weights | None = None

    def __post_init__(self) -> None:
        check_calibration(self.calibration, len(self.keypoints))

    def __str__(self) -> str:
        return self.name or f"{self.net.config.get('name', type(self.net).__name__)} in memory"

    @property
    def temperature(self) -> float:
        """The calibrated temperature; 1 without calibration."""
        return float(self.calibration.get("temperature", 1.0))

    def calibrated(self, calibration: dict[str, Any]) -> Weights:
        """Return a copy with this calibration; the network is copied too, so this one keeps its temperature."""
        made = replace(self, net=copy.deepcopy(self.net), calibration=calibration)
        made.net.temperature = made.temperature
        return made


WeightsLike: TypeAlias = str | os.PathLike[str] | Weights  # a shipped name, a file, a run folder, or loaded weights


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """Return the weights file of a shipped name, of a path, or of a run folder (its best weights).

    Args:
        name_or_path: A shipped name, a weights file, or the folder of a training run.

    Raises:
        InputError: There are no weights of that name.
    """
    text = os.fspath(name_or_path)
    path = Path(text)
    check_regular(text)
    if os.path.isfile(text) and path.suffix != ".onnx":  # False too for a name that no file can have
        return path
    if os.path.isdir(text):
        for name in ("model.safetensors", "best.safetensors"):  # of `fit`, of `train`
            if (path / name).is_file():
                return path / name
        raise InputError(f"{text}: the folder has no best.safetensors; training writes it after the first epoch")
    known = shipped_weights()
    if text in known:
        return known[text]
    if is_graph(text):
        raise InputError(f"{text}: an exported graph; give the weights it was exported from")
    raise unknown_model(text)


def checksum(tensors: dict[str, Tensor]) -> str:
    """Return the SHA-256 of tensors on the CPU: of their names, types, shapes and values, in the order of the names."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON metadata into one safetensors file, atomically.

    Args:
        path: File to write.
        tensors: Tensors by name; they are stored contiguous, from the CPU.
        meta: Metadata that JSON can hold. The checksum of the tensors is added.

    Raises:
        InputError: The file cannot be written.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    text = json.dumps({**meta, "checksum": checksum(plain)})

    def write(temporary: Path) -> None:
        try:
            save_file(plain, temporary, metadata={"recombinator": text})
        except SafetensorError as error:  # its own name for a full disk
            raise OSError(0, str(error)) from None

    write_atomically(path, write)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote.

    Args:
        path: A safetensors file.

    Returns:
        The tensors by name, and the metadata.

    Raises:
        InputError: The file was not written by Recombinator, or is damaged.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            text = (stream.metadata() or {}).get("recombinator")
            if text is None:
                raise InputError(f"{path}: not written by recombinator (its metadata is missing)")
            meta = decode(dict[str, Any], parse_json(text, f"{path}: metadata"), f"{path}: metadata")
            tensors = {k: stream.get_tensor(k) for k in stream.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({first_line(error)})") from None
    expected = meta.pop("checksum", None)  # earlier versions wrote none
    if expected is not None and expected != checksum(tensors):
        raise InputError(f"{path}: damaged: its tensors do not have the checksum in its metadata; copy the file again")
    return tensors, meta


def save_weights(path: Path, weights: Weights, half: bool = False) -> None:
    """Write weights to a file.

    Args:
        path: File to write, .safetensors.
        weights: The network with its metadata.
        half: Store floating-point tensors in half precision, for an archive.
    """
    meta, tensors = _described(weights), dict(weights.net.state_dict())
    if weights.finder is not None:
        meta["finder"] = _described(weights.finder)
        tensors |= {FINDER_PREFIX + k: v for k, v in weights.finder.net.state_dict().items()}
    tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in tensors.items()}
    write_tensors(path, tensors, meta)


def _described(weights: Weights) -> dict[str, Any]:
    """Return the metadata of a weights file."""
    return {
        "format": FORMAT, "model": weights.net.config, "keypoints": weights.keypoints.to_dict(),
        "crop_rule": weights.crop_rule, "template": weights.template, "training": weights.training,
        "calibration": weights.calibration,
    }  # fmt: skip


def load_weights(name_or_path: WeightsLike) -> Weights:
    """Load a network in evaluation mode, on the CPU.

    Args:
        name_or_path: A shipped name, a weights file, the .json of a joint model, or a run folder (its best weights).
            Weights that are loaded already are returned as they are.

    Returns:
        The network with its metadata; `net.temperature` is the calibrated one.

    Raises:
        InputError: There is no such file, or it does not hold weights.
    """
    if isinstance(name_or_path, Weights):
        return name_or_path
    path = resolve(name_or_path)
    if path.suffix == ".json":  # made of weights that have files of their own
        try:
            made = _read_shifted(path) or join(**read_pair(path))
        except RecursionError:
            raise InputError(f"{path}: refers to itself") from None
        made.net.temperature = made.temperature
        return replace(made, name=os.fspath(name_or_path))
    tensors, meta = read_tensors(path)
    if "position" in meta:
        raise InputError(f"{path}: a training checkpoint, not weights; use best.safetensors in the same folder")
    parts = {k.removeprefix(FINDER_PREFIX): tensors.pop(k) for k in list(tensors) if k.startswith(FINDER_PREFIX)}
    finder = meta.pop("finder", None)
    loaded = _made(path, tensors, meta, str(path), os.fspath(name_or_path))
    if finder is not None:
        loaded.finder = _made(path, parts, finder, f"{path}: finder", f"the finder in {os.fspath(name_or_path)}")
    return loaded


def _made(path: Path, tensors: dict[str, Tensor], meta: Any, where: str, name: str) -> Weights:
    """Return the weights that tensors and metadata of a file describe."""
    about = decode_described(WeightsMetadata, meta, where)
    loaded = Weights(
        _make_network(about, tensors, path), about.keypoints, about.crop_rule, about.template, about.training,
        about.calibration, name,
    )  # fmt: skip
    loaded.net.temperature = loaded.temperature
    return loaded


def _make_network(about: WeightsMetadata, tensors: dict[str, Tensor], path: Path) -> KeypointNet:
    """Make the network that the metadata names, with the tensors of the file, in evaluation mode.

    Raises:
        InputError: There is no such network, or the tensors differ from its own in name, shape or type, or are not
            finite.
    """
    import torch

    from recombinator.models import create_model

    config = dict(about.model)
    name, keypoints = config.pop("name"), config.pop("keypoints")
    try:
        with torch.device("meta"):  # without memory: the file may name a network that is larger than its tensors
            expected = create_model(name, keypoints, **config).state_dict()
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    problem = "the tensors do not fit the model that the file names"
    for key in expected.keys() ^ tensors.keys():
        raise InputError(f"{path}: {problem}: {key} is {'missing' if key in expected else 'not a part of it'}")
    for key, tensor in tensors.items():
        own = expected[key]
        if own.shape != tensor.shape or own.is_floating_point() != tensor.is_floating_point():
            raise InputError(
                f"{path}: {problem}: {key}: expected {tuple(own.shape)} {own.dtype}, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
    net = create_model(name, keypoints, **config)
    net.load_state_dict(tensors)
    for key, tensor in net.named_parameters():  # a buffer may be infinite: the best loss before the first epoch
        if not bool(torch.isfinite(tensor).all()):
            raise InputError(f"{path}: {key}: expected finite numbers, got NaN or infinity")
    return net.eval()


def score_map_weights(weights: WeightsLike) -> Weights:
    """Load the weights of a network that maps images to score maps.

    Args:
        weights: A name, file, run folder, or loaded weights.

    Raises:
        InputError: The network is of another kind, such as a denoiser.
    """
    loaded = load_weights(weights)
    if loaded.net.task != "score_maps":
        raise InputError(f"{weights}: expected the weights of a network with score maps, such as an RCN or a SumNet")
    return loaded


def join(
    image: WeightsLike, denoiser: WeightsLike, weight: float = 1.0, iterations: int = 1,
    calibration: dict[str, Any] | None = None,
) -> Weights:  # fmt: skip
    """Make the joint model of an image network and a denoiser (section 4, Fig. 2).

    Args:
        image: Weights of a network with score maps: name, file, run folder, or loaded weights.
        denoiser: Weights of a denoiser, in the same forms.
        weight: Factor on the denoiser's scores.
        iterations: Passes through the denoiser.
        calibration: A calibration of the joint model.

    Raises:
        InputError: The networks are of other kinds, or differ in keypoints, crop rule or input size.
    """
    from recombinator.models import Joint

    first, second = load_weights(image), load_weights(denoiser)
    if first.net.task != "score_maps" or second.net.task != "denoising":
        raise InputError(f"{image} and {denoiser}: expected the weights of a network for images, then a denoiser's")
    check_same_keypoints(first.keypoints, second.keypoints, f"{denoiser}, for {image}")
    for what, one, other in (
        ("crop rule", first.crop_rule, second.crop_rule), ("input size", first.net.size, second.net.size),
    ):  # fmt: skip
        if one != other:
            raise InputError(f"{image} and {denoiser}: cannot be joined, their {what}s differ: {one} and {other}")
    net = Joint(cast("ScoreMapNet", first.net), cast("Denoiser", second.net), weight, iterations).eval()
    training = {"image": first.training, "denoiser": second.training}
    joined = Weights(net, first.keypoints, first.crop_rule, first.template, training, calibration or {})
    joined.net.temperature = joined.temperature
    return joined


def read_pair(path: Path) -> dict[str, Any]:
    """Read the arguments of `join` from a small JSON file, in which the parts are named relative to the file.

    Args:
        path: A file that `write_pair` wrote.

    Raises:
        InputError: The file cannot be read, or a field is missing.
    """
    pair = decode(Pair, _read_json(path), str(path))
    return {
        "weight": pair.weight, "iterations": pair.iterations, "calibration": pair.calibration,
        "image": path.parent / pair.image, "denoiser": path.parent / pair.denoiser,
    }  # fmt: skip


def _read_json(path: Path) -> Any:
    return parse_json(read_file(path), str(path))


def _read_shifted(path: Path) -> Weights | None:
    """Return the network that a JSON file derives by shifting another's input, or None if the file derives none."""
    from recombinator.weights.derive import shifted

    fields = _read_json(path)
    if not isinstance(fields, dict) or "shifted" not in fields:
        return None  # `read_pair` says what is wrong
    source = decode(Shifted, fields, str(path))
    return shifted(path.parent / source.shifted, source.by).calibrated(source.calibration)


def write_pair(
    path: Path, image: Path, denoiser: Path, weight: float, iterations: int, calibration: dict[str, Any] | None = None
) -> None:
    """Write what `read_pair` reads.

    Args:
        path: File to write, .json.
        image: Weights file of the image network; it is named relative to `path`.
        denoiser: Weights file of the denoiser, named in the same way.
        weight: Factor on the denoiser's scores.
        iterations: Passes through the denoiser.
        calibration: A calibration of the joint model.
    """
    parts = {"image": image, "denoiser": denoiser}
    names = {k: os.path.relpath(p.resolve(), path.parent.resolve()) for k, p in parts.items()}
    write_json(path, {**names, "weight": weight, "iterations": iterations, "calibration": calibration or {}})
