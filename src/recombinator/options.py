"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.errors import InputError

Data = Annotated[Path, typer.Option("--data", help="folder that `prepare` wrote")]
Table = Annotated[Path, typer.Option("--data", help="one table that `prepare` wrote, such as OUT/test.parquet")]
Root = Annotated[Path, typer.Option(help="the checkout: results/ and the documents in it")]


def to_file(path: Path, *endings: str) -> None:
    """Raises InputError for an output file whose name is a folder's, or does not end so."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file's name that ends in {' or '.join(endings)}")
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: wants a name that ends in {' or '.join(endings)}")


def to_folder(path: Path) -> None:
    """Raises InputError for an output folder that is a file."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; give a folder's name")


def not_over(data: Path, *outputs: Path | None) -> None:
    for path in outputs:
        if path and path.resolve() == data.resolve():
            raise InputError(f"{path}: would overwrite the table {data}; choose another name")
