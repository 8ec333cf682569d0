"""`train --list-settings`: what `--set` can change, in the words of the docstrings."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

# defaults of the networks' options; each network's class has them
NETWORK_DEFAULTS = {
    "size": "80", "channels": "1", "mask": "all", "upsampling": "tile", "norm": "image", "width": "1.0", "alpha": "map",
    "fold": "1", "form": "code", "kernel": "45", "layers": "4", "heads": "4", "parts": "2",
}  # fmt: skip
WIDTH = 100  # characters per line

_TYPES = {"tuple[int, int]": "int,int", "tuple[int, ...]": "int,..."}


def _text(value: object) -> str:
    """Write a value as --set reads it; the empty text as -."""
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value) or "-"


def list_settings() -> Iterator[str]:
    """Yield the lines of a table of settings: name, type, default, meaning."""
    from recombinator.models import create_model
    from recombinator.training.recipe import FAST, Recipe, setting_types
    from recombinator.transforms.augment import Augment
    from recombinator.utils.text import described

    types = setting_types()
    meanings = described(Recipe, "Attributes") | described(Augment, "Attributes") | described(create_model, "Options")
    recipe = {n: _text(getattr(FAST, n, getattr(FAST.augment, n, ""))) for n in types if n not in NETWORK_DEFAULTS}
    for title, defaults in (
        ("Recipe and augmentation (defaults: those of the recipe fast)", recipe),
        ("Network (defaults: those of the network)", NETWORK_DEFAULTS),
    ):
        yield f"{title}:"
        for name, default in defaults.items():
            start = f"  {name:13} {_TYPES.get(types[name], types[name]):7} {default:9} "
            yield from textwrap.wrap(
                meanings[name], WIDTH, initial_indent=start, subsequent_indent=" " * len(start), break_long_words=False
            )
