"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from recombinator.utils.errors import InputError
from recombinator.utils.files import write_json

DEFAULT_WEIGHTS = "rcn-6-mtfl"

Data = Annotated[Path, typer.Option("--data", help="folder that `prepare` wrote")]
Table = Annotated[Path, typer.Option("--data", help="one table that `prepare` wrote, such as OUT/test.parquet")]
Root = Annotated[Path, typer.Option(help="the checkout: results/ and the documents in it")]
JsonOut = Annotated[Path | None, typer.Option("--json", help="report")]
Limit = Annotated[int | None, typer.Option(min=1, help="only the first images")]
Occlude = Annotated[bool, typer.Option("--occlude", help="one black rectangle on each image, seeded")]


def check_not_overwriting(data: Path, *outputs: Path | None) -> None:
    """Raises InputError for an output that is the table itself, or a folder."""
    for path in outputs:
        if path and path.is_dir():
            raise InputError(f"{path}: is a folder; give a file's name")
        if path and path.resolve() == data.resolve():
            raise InputError(f"{path}: would overwrite the table {data}; choose another name")


def write_report(path: Path | None, kind: str, told: dict[str, Any]) -> None:
    """A result file, with where it comes from."""
    from recombinator.utils.provenance import provenance

    if path:
        write_json(path, {"kind": kind, **told, "provenance": provenance()})
        print(f"wrote {path}")
