"""Weights files: safetensors with everything needed to use them in the metadata. Nothing is ever unpickled."""

from __future__ import annotations

import copy
import json
import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import InputError
from recombinator.utils.files import write_atomically, write_json
from recombinator.weights.shipped import is_graph, shipped_weights, unknown_model

if TYPE_CHECKING:
    from torch import Tensor

    from recombinator.models import KeypointNet

FORMAT = "recombinator-1"


@dataclass
class Weights:
    """A network in memory with what its file says about it.

    Attributes:
        net: The network.
        keypoints: What it locates.
        crop_rule: Name of the rule that places its crop (data.crops.RULES).
        template: (K, 2) mean positions in the crop, as shares of its side.
        training: How it was trained.
        calibration: What `calibrate` found: `temperature`, `least`, `covered_below` (K confidences), on which data;
            empty if not calibrated. `net.temperature` is set where weights are loaded or calibrated, not here.
    """

    net: KeypointNet
    keypoints: KeypointSet
    crop_rule: str
    template: list[list[float]]
    training: dict[str, Any]
    calibration: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.temperature  # noqa: B018  raises for a damaged calibration

    @property
    def temperature(self) -> float:
        """The calibrated temperature; 1 without calibration. Raises InputError if the calibration is damaged."""
        if not self.calibration:
            return 1.0
        remedy = "`recombinator calibrate` makes a new one"
        try:
            temperature = float(self.calibration["temperature"])
            below = [float(v) for v in self.calibration["covered_below"]]
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"a damaged calibration ({error!r}); {remedy}") from None
        if not 0 < temperature < float("inf") or len(below) != len(self.keypoints):
            raise InputError(
                f"a damaged calibration (temperature {temperature}, {len(below)} thresholds for {len(self.keypoints)} "
                f"keypoints); {remedy}"
            )
        return temperature

    def calibrated(self, calibration: dict[str, Any]) -> Weights:
        """Return a copy with this calibration; the network is copied, so that this one keeps its temperature."""
        made = replace(self, net=copy.deepcopy(self.net), calibration=calibration)
        made.net.temperature = made.temperature
        return made


def resolve(name_or_path: str | os.PathLike[str]) -> Path:
    """A shipped name, a weights file, or a run's folder (its best weights). Raises InputError if it is none."""
    text = os.fspath(name_or_path)
    path = Path(text)
    if path.is_file() and path.suffix != ".onnx":
        return path
    if path.is_dir():
        if (path / "best.safetensors").is_file():
            return path / "best.safetensors"
        raise InputError(f"{text}: a folder without best.safetensors; has its training finished an epoch?")
    known = shipped_weights()
    if text in known:
        return known[text]
    if is_graph(text):
        raise InputError(f"{text}: an exported graph; this wants the weights it was exported from")
    raise unknown_model(text)


def write_tensors(path: Path, tensors: dict[str, Tensor], meta: dict[str, Any]) -> None:
    """One file, atomically: contiguous CPU tensors and JSON metadata."""
    from safetensors.torch import save_file

    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_atomically(path, lambda p: save_file(plain, p, metadata={"recombinator": json.dumps(meta)}))


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Raises InputError if the file is not one of ours or is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as stream:
            found = (stream.metadata() or {}).get("recombinator")
            if found is None:
                raise InputError(f"{path}: not written by recombinator (its metadata is missing)")
            return {k: stream.get_tensor(k) for k in stream.keys()}, json.loads(found)  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise InputError(f"{path}: not a readable safetensors file ({error})") from None


def save_weights(path: Path, weights: Weights, half: bool = False) -> None:
    """Write a weights file. half: floating-point tensors in half precision, for an archive."""
    meta = {
        "format": FORMAT, "model": weights.net.config, "keypoints": weights.keypoints.to_dict(),
        "crop_rule": weights.crop_rule, "template": weights.template, "training": weights.training,
        "calibration": weights.calibration,
    }  # fmt: skip
    tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in weights.net.state_dict().items()}
    write_tensors(path, tensors, meta)


def join(
    image: str | os.PathLike[str], denoiser: str | os.PathLike[str], weight: float = 1.0, iterations: int = 1,
    calibration: dict[str, Any] | None = None,
) -> Weights:  # fmt: skip
    """The joint model of two weights (names, files or run folders). Raises InputError where they do not fit."""
    from recombinator.models import Denoiser, Joint, ScoreMapNet

    first, second = load_weights(image), load_weights(denoiser)
    if not isinstance(first.net, ScoreMapNet) or not isinstance(second.net, Denoiser):
        raise InputError(f"{image} and {denoiser}: wants an image network's weights, then a denoiser's")
    if first.keypoints.names != second.keypoints.names or first.crop_rule != second.crop_rule:
        raise InputError(f"{image} and {denoiser}: have different keypoints or crop rules")
    net = Joint(first.net, second.net, weight, iterations).eval()
    training = {"image": first.training, "denoiser": second.training}
    made = Weights(net, first.keypoints, first.crop_rule, first.template, training, calibration or {})
    made.net.temperature = made.temperature
    return made


def score_map_weights(weights: str | os.PathLike[str]) -> Weights:
    """`load_weights` for an RCN's or a SumNet's. Raises InputError for others."""
    from recombinator.models import ScoreMapNet

    loaded = load_weights(weights)
    if not isinstance(loaded.net, ScoreMapNet):
        raise InputError(f"{weights}: wants the weights of an RCN or a SumNet")
    return loaded


def read_pair(path: Path) -> dict[str, Any]:
    """The arguments of `join` in a small JSON file; parts are named relative to it. Raises InputError."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        parts: dict[str, Any] = {"weight": float(found["weight"]), "iterations": int(found["iterations"])}
        parts["calibration"] = dict(found.get("calibration", {}))
        return parts | {part: path.parent / found[part] for part in ("image", "denoiser")}
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: wants a JSON object with image, denoiser, weight, iterations ({error!r})") from None


def write_pair(
    path: Path, image: Path, denoiser: Path, weight: float, iterations: int, calibration: dict[str, Any] | None = None
) -> None:
    """What `read_pair` reads: the parts' names are written relative to `path`."""
    parts = {"image": image, "denoiser": denoiser}
    names = {k: os.path.relpath(p.resolve(), path.parent.resolve()) for k, p in parts.items()}
    write_json(path, {**names, "weight": weight, "iterations": iterations, "calibration": calibration or {}})


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


def load_weights(name_or_path: str | os.PathLike[str]) -> Weights:
    """The network in evaluation mode, on the CPU. Raises InputError for anything that is not such a file."""
    from recombinator.models import create_model

    path = resolve(name_or_path)
    if path.suffix == ".json":  # made of weights that have files of their own
        return _read_shifted(path) or join(**read_pair(path))
    tensors, meta = read_tensors(path)
    if "position" in meta:
        raise InputError(f"{path}: a state of training, not weights; use the best.safetensors beside it")
    if meta.get("format") != FORMAT:
        raise InputError(f"{path}: format {meta.get('format')!r}, this version reads {FORMAT!r}")
    config = dict(meta["model"])
    net = create_model(config.pop("name"), config.pop("keypoints"), **config)
    try:
        net.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path}: the tensors do not fit the model it names ({error})") from None
    keypoints = KeypointSet.from_dict(meta["keypoints"])
    made = Weights(
        net.eval(), keypoints, meta["crop_rule"], meta["template"], meta["training"], meta.get("calibration", {})
    )
    made.net.temperature = made.temperature
    return made
