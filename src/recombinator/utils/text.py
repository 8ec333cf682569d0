"""Texts for people: plurals, and the descriptions in a docstring."""

from __future__ import annotations

import inspect
import re


def plural(n: int, noun: str) -> str:
    """Return a number with its noun, such as "1 face" or "2,995 faces"."""
    if n == 1:
        return f"1 {noun}"
    return f"{n:,} {noun}{'es' if noun.endswith(('s', 'x', 'ch', 'sh')) else 's'}"


def described(documented: object, section: str) -> dict[str, str]:
    """Return the descriptions in one section of a docstring in Google style.

    Args:
        documented: A class or function.
        section: Name of the section, such as "Attributes".

    Returns:
        One line of text by name.
    """
    text = inspect.getdoc(documented) or ""
    body = re.search(rf"^{section}:\n((?:    .*\n?|\n)*)", text, re.MULTILINE)
    entries = re.findall(r"^    (\w+): (.*(?:\n      .*)*)", body[1] if body else "", re.MULTILINE)
    return {name: " ".join(description.split()) for name, description in entries}
