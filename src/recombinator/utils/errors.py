"""Errors that the user can correct: unusable input, and optional packages that are not installed."""

from __future__ import annotations

import difflib
import importlib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

# extra of the distribution -> the packages it installs; prediction with exported graphs needs none of them
EXTRAS = {
    "train": ("torch", "pyarrow", "safetensors", "matplotlib", "yaml"), "onnx": ("onnx", "onnxscript"),
    "afw": ("h5py",), "hub": ("huggingface_hub",), "tensorboard": ("tensorboard",), "heif": ("pillow_heif",),
    "formats": ("sleap_io",), "ray": ("ray", "fsspec"),
}  # fmt: skip


_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LONGEST = 1500  # characters of a message


def one_line(text: str) -> str:
    """Return a text from a file as one line that is safe for a terminal or a log.

    Control characters, such as line breaks and a terminal's commands, become escapes. The middle of a long text is left
    out.
    """
    if len(text) > _LONGEST:
        text = f"{text[: _LONGEST - 500]} ... {text[-500:]}"
    return _CONTROLS.sub(lambda match: repr(match[0])[1:-1], text)


class InputError(ValueError):
    """Input that cannot be used; the message names it and the remedy. The command line exits with status 2."""

    def __str__(self) -> str:
        return one_line(super().__str__())


class MissingPackageError(InputError, ImportError):
    """An optional package is not installed; the message gives the command that installs it."""


def first_line(error: Exception) -> str:
    """Return the first line of an error's message, or its type if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].strip()


SHORT = 12  # names; a message lists as many, and suggests the most similar one of a longer list


def unknown(what: str, value: object, known: Iterable[str]) -> InputError:
    """Return the error for a name that is not one of the known ones.

    Args:
        what: What has the name, such as "engine".
        value: What the user gave.
        known: The names that can be used.
    """
    names = list(known)
    near = difflib.get_close_matches(str(value), names, n=1) if len(names) > SHORT else []
    hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(names)}"
    return InputError(f"unknown {what} {value!r:.60}; {hint}")


def check_choice(what: str, value: object, known: Iterable[str]) -> None:
    """Raise InputError unless `value` is one of the known names; see `unknown`."""
    names = tuple(known)
    if value not in names:
        raise unknown(what, value, names)


def remedy(extra: str) -> str:
    """Return the command that installs an extra: from the checkout where there is one, else from the package index."""
    # a repository's src/recombinator is two folders below its pyproject.toml; an installed package has none there
    if (Path(__file__).resolve().parents[3] / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]'"
    return f"pip install 'recombinator-networks[{extra}]'"


def explain_missing(error: ModuleNotFoundError, what: str) -> str | None:
    """Say how to install the package that an import did not find.

    Args:
        error: As the import raised it.
        what: What needs the package, the beginning of the sentence.

    Returns:
        One sentence, or None for a module that no extra installs.
    """
    missing = (error.name or "").split(".")[0]
    extra = next((extra for extra, names in EXTRAS.items() if missing in names), None)
    return extra and f"{what} needs {missing}; {remedy(extra)}"


def import_optional(module: str, what: str) -> Any:
    """Import a module that needs an extra.

    Args:
        module: Full name of the module.
        what: What needs it, the beginning of the error's sentence.

    Raises:
        MissingPackageError: A package of an extra is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        sentence = explain_missing(error, what)
        if sentence is None:
            raise
        raise MissingPackageError(sentence) from None
