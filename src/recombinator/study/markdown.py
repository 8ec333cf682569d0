"""Build Markdown tables. A result is the content of results/NAME.json; results are keyed by NAME."""

from __future__ import annotations

from typing import Any

Result = dict[str, Any]
Results = dict[str, Result]
TEST_SETS = {"mtfl": "AFLW", "300w": "300-W Common"}  # by the dataset's name in a test table
DATASETS = {"mtfl": "MTFL", "300w": "300-W"}  # by the name in other tables
POSES = ("left profile", "left", "frontal", "right", "right profile")  # MTFL's classes of the head's pose


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def link(name: str, text: str = "") -> str:
    """Return a link to a result file, from the repository's root."""
    return f"[{text or name}](results/{name}.json)"


def table_name(data: dict[str, Any]) -> str:
    """Return the name of a table in documents, such as "AFLW" or "MTFL validation"."""
    dataset, split = data["dataset"], data["split"]
    if split == "test" and dataset in TEST_SETS:
        return TEST_SETS[dataset]
    return f"{DATASETS.get(dataset, dataset)} {'validation' if split == 'valid' else split}"


def figure(r: Result, key: str) -> str:
    """Return an error in percent with two digits, or "-" where the result has none of that name."""
    return f"{r[key]:.2f}" if key in r else "-"


def interval(r: Result, key: str, bold: bool = False, unit: str = "") -> str:
    """Return a figure with its 95 % interval, such as "5.47 [5.37, 5.59]"."""
    low, high = r[f"{key}_ci95"]
    figure = f"{r[key]:.2f}{unit}"
    return f"{f'**{figure}**' if bold else figure} [{low:.2f}, {high:.2f}]"
