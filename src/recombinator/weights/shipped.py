"""Networks inside the package, by name: weights, and graphs that need no torch."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

FOLDER = Path(str(resources.files("recombinator") / "weights_data"))


def shipped_weights() -> dict[str, Path]:
    """Weights by name; a .json names the weights it is made of."""
    return {p.stem: p for p in sorted([*FOLDER.glob("*.safetensors"), *FOLDER.glob("*.json")])}


def shipped_models() -> list[str]:
    """Names that `load` accepts without a file, sorted."""
    return sorted(shipped_weights() | shipped_graphs())


def shipped_graphs() -> dict[str, Path]:
    """Exported graphs by name."""
    return {p.stem: p for p in sorted(FOLDER.glob("*.onnx"))}


def is_graph(name_or_path: str | os.PathLike[str]) -> bool:
    """True for an .onnx file, and for a name that ships in that form only."""
    text = os.fspath(name_or_path)
    only = not Path(text).exists() and text in shipped_graphs() and text not in shipped_weights()
    return text.endswith(".onnx") or only
