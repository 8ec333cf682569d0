"""Read and write weights files: safetensors, with everything needed to use them in the metadata.

Nothing is ever unpickled.
"""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from recombinator.keypoints import KeypointSet, check_same_keypoints
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_atomically, write_json
from recombinator.weights.shipped import is_graph, shipped_weights, unknown_model

if TYPE_CHECKING:
    from torch import Tensor

    from recombinator.models import Denoiser, KeypointNet, ScoreMapNet

FORMAT = "recombinator-1"
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
        self.temperature  # noqa: B018  raises for a damaged calibration

    def __str__(self) -> str:
        return self.name or f"{self.net.config.get('name', type(self.net).__name__)} in memory"

    @property
    def temperature(self) -> float:
        """The calibrated temperature; 1 without calibration.

        Raises:
            InputError: The calibration is damaged.
        """
        if not self.calibration or self.net.task == "finding":
            return 1.0
        remedy = "`recombinator calibrate` makes a new one"
        try:
            temperature = float(self.calibration["temperature"])
            thresholds = [float(v) for v in self.calibration["covered_below"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"damaged calibration ({error!r}); {remedy}") from None
        if not 0 < temperature < float("inf") or len(thresholds) != len(self.keypoints):
            raise InputError(
                f"damaged calibration (temperature {temperature}, {len(thresholds)} thresholds for "
                f"{len(self.keypoints)} keypoints); {remedy}"
            )
        return temperature

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
    if path.is_file() and path.suffix != ".onnx":
        return path
    if path.is_dir():
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


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """Write tensors and JSON metadata into one safetensors file, atomically.

    Args:
        path: File to write.
        tensors: Tensors by name; they are stored contiguous, from the CPU.
        meta: Metadata that JSON can hold.
    """
    from safetensors.torch import save_file

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(plain, p, metadata={"recombinator": json.dumps(meta)}))


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
            meta = (stream.metadata() or {}).get("recombinator")
            if meta is None:
                raise InputError(f"{path}: not written by recombinator (its metadata is missing)")
            return {k: stream.get_tensor(k) for k in stream.keys()}, json.loads(meta)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


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
        made = _read_shifted(path) or join(**read_pair(path))
        made.net.temperature = made.temperature
        return replace(made, name=os.fspath(name_or_path))
    tensors, meta = read_tensors(path)
    if "position" in meta:
        raise InputError(f"{path}: a training checkpoint, not weights; use best.safetensors in the same folder")
    if meta.get("format") != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT!r}, got {meta.get('format')!r}")
    own = {k: v for k, v in tensors.items() if not k.startswith(FINDER_PREFIX)}
    loaded = _made(path, own, meta, os.fspath(name_or_path))
    if "finder" in meta:
        parts = {k.removeprefix(FINDER_PREFIX): v for k, v in tensors.items() if k not in own}
        loaded.finder = _made(path, parts, meta["finder"], f"the finder in {os.fspath(name_or_path)}")
    return loaded


def _made(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any], name: str) -> Weights:
    """Return the weights that tensors and metadata of a file describe."""
    from recombinator.models import create_model

    config = dict(meta["model"])
    net = create_model(config.pop("name"), config.pop("keypoints"), **config)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: the tensors do not fit the model that the file names ({error})") from None
    loaded = Weights(
        net.eval(), KeypointSet.from_dict(meta["keypoints"]), meta["crop_rule"], meta["template"], meta["training"],
        meta.get("calibration", {}), name,
    )  # fmt: skip
    loaded.net.temperature = loaded.temperature
    return loaded


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
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {"weight": float(values["weight"]), "iterations": int(values["iterations"])}
        parts["calibration"] = dict(values.get("calibration", {}))
        return parts | {part: path.parent / values[part] for part in ("image", "denoiser")}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: expected a JSON object with image, denoiser, weight and iterations ({error!r})"
        ) from None


def _read_shifted(path: Path) -> Weights | None:
    """Return the network that a JSON file derives by shifting another's input, or None if the file derives none.

    Its fields: shifted (a weights file, relative to this one), by (pixels), calibration.
    """
    from recombinator.weights.derive import shifted

    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if "shifted" not in fields:
            return None
    except (OSError, ValueError, TypeError):
        return None  # `read_pair` says what is wrong
    try:
        made = shifted(path.parent / fields["shifted"], fields["by"])
        return made.calibrated(dict(fields["calibration"]))
    except (KeyError, TypeError) as error:
        raise InputError(f"{path}: expected a JSON object with shifted, by and calibration ({error!r})") from None


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
