"""What several commands ask for in the same words."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.errors import InputError

Data = Annotated[Path, typer.Option("--data", help="folder that `prepare` wrote")]
Table = Annotated[Path, typer.Option("--data", help="one table that `prepare` wrote, such as OUT/test.parquet")]
Root = Annotated[Path, typer.Option(help="the checkout: results/ and the documents in it")]


def not_over(data: Path, *outputs: Path | None) -> None:
    for path in outputs:
        if path and path.resolve() == data.resolve():
            raise InputError(f"{path}: would overwrite the table {data}; choose another name")
