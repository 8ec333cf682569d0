"""Models that ship inside the package, by name: weights for torch, and exported graphs that need no torch."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

from recombinator.utils.errors import InputError

FOLDER = Path(str(resources.files("recombinator") / "weights_data"))


def shipped_weights() -> dict[str, Path]:
    """Return the shipped weights files by name. A .json file names the weights that it is made of."""
    return {p.stem: p for p in sorted([*FOLDER.glob("*.safetensors"), *FOLDER.glob("*.json")])}


def shipped_graphs() -> dict[str, Path]:
    """Return the shipped ONNX graphs by name."""
    return {p.stem: p for p in sorted(FOLDER.glob("*.onnx"))}


def shipped_models() -> list[str]:
    """Return the sorted names of all shipped models, which `load` accepts in place of a file."""
    return sorted(shipped_weights() | shipped_graphs())


def is_graph(name_or_path: str | os.PathLike[str]) -> bool:
    """Return whether this is an .onnx file, or the name of a model that ships as a graph only."""
    text = os.fspath(name_or_path)
    only = not Path(text).exists() and text in shipped_graphs() and text not in shipped_weights()
    return text.endswith(".onnx") or only


def _weights_of(architecture: str) -> list[str] | None:
    """Return the shipped models of an architecture, or None where there is no such one, or no torch to know it."""
    try:
        from recombinator.models import MODELS
    except ImportError:
        return None
    if architecture not in MODELS:
        return None
    # a shipped name begins with that of its architecture: rcn-6-fast-mtfl is no rcn-6
    built = {
        name: max((m for m in MODELS if name.startswith(f"{m}-")), key=len, default="") for name in shipped_models()
    }
    return [name for name, model in built.items() if model == architecture]


def unknown_model(name_or_path: str | os.PathLike[str]) -> InputError:
    """Return the error for something that is neither a file or folder nor a shipped name.

    Args:
        name_or_path: What the user gave.

    Returns:
        An InputError that suggests the most similar shipped name, or lists all of them. Something that can only be a
        path is reported as missing.
    """
    text, names = os.fspath(name_or_path), shipped_models()
    if os.sep in text or Path(text).suffix in (".safetensors", ".json"):
        return InputError(f"{text}: no such file or folder")
    users = _weights_of(text)
    if users is not None:
        hint = f"its shipped weights: {', '.join(users)}" if users else "no weights of it are shipped; train it"
        return InputError(f"{text!r} is an architecture, not trained weights; {hint}")
    near = difflib.get_close_matches(text, names, n=1)
    if near:
        return InputError(f"unknown model {text!r}; did you mean {near[0]!r}?")
    return InputError(
        f"unknown model {text!r}: neither a weights file, nor a run folder, nor a shipped name ({', '.join(names)})"
    )
