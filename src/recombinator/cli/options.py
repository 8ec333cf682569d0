"""What the commands share: options, help in sections, earlier option names, reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from recombinator.utils.errors import InputError
from recombinator.utils.files import check_writable, write_json

DEFAULT_WEIGHTS = "rcn-6-mtfl"
DAILY, RESEARCH = "Daily use", "Research"  # sections of the help

Data = Annotated[Path, typer.Option("--data", metavar="FOLDER", help="folder that `prepare` wrote")]
Table = Annotated[
    Path, typer.Option("--data", metavar="TABLE", help="table that `prepare` wrote, such as out/mtfl/test.parquet")
]
Root = Annotated[Path, typer.Option(metavar="FOLDER", help="repository folder, with results/ and docs/")]
JsonOut = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the report to this file")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", help="use only the first N images")]
Sample = Annotated[int | None, typer.Option(min=1, metavar="N", help="use only N images, drawn from the whole table")]
Occlude = Annotated[bool, typer.Option("--occlude", help="put one black rectangle on each image, seeded")]
Threads = Annotated[int | None, typer.Option(min=1, metavar="N", show_default="all cores", help="CPU threads of torch")]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="seed of all random numbers")]
NetworkArgument = Annotated[str, typer.Argument(metavar="WEIGHTS", help="RCN or SumNet: name, file or run folder")]
WeightsArgument = Annotated[str, typer.Argument(metavar="WEIGHTS", help="shipped name, weights file or run folder")]
WeightsOut = Annotated[Path, typer.Option(metavar="FILE", help="weights file to write, .safetensors")]

# earlier name -> today's, for commands that have today's
RENAMED = {"--plot": "--plots", "--points": "--keypoints"}


class Command(TyperCommand):
    """A command that also accepts the earlier names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        return super().parse_args(ctx, [_current_name(argument, known) for argument in args])


def _current_name(argument: str, known: set[str]) -> str:
    name, equals, value = argument.partition("=")
    current = RENAMED.get(name, name)
    return argument if name in known or current not in known else current + equals + value


class Group(TyperGroup):
    """A group whose help lists the commands in sections, as plain text, with whole sentences."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        names = self.list_commands(ctx)
        longest = max(map(len, names))
        sections: dict[str, list[tuple[str, str]]] = {}
        for name in names:
            command: Any = self.commands[name]
            text = command.get_short_help_str(200)  # the whole first sentence; the formatter wraps it
            sections.setdefault(command.rich_help_panel or "Commands", []).append((name.ljust(longest), text))
        for title, rows in sections.items():
            with formatter.section(title):
                formatter.write_dl(rows)


def check_not_overwriting(data: Path, *outputs: Path | None) -> None:
    """Raise InputError for an output that is the table itself or a folder, or whose folder cannot be written to."""
    for path in outputs:
        if path and path.is_dir():
            raise InputError(f"{path}: is a folder; give a file's name")
        if path and path.resolve() == data.resolve():
            raise InputError(f"{path}: would overwrite the table {data}; choose another name")
        if path:
            check_writable(path.parent)


def set_threads(threads: int | None) -> None:
    """Set the CPU threads of torch for the whole process, where a number is given."""
    if threads:
        import torch

        torch.set_num_threads(threads)


def write_report(path: Path | None, kind: str, report: dict[str, Any]) -> list[str]:
    """Write a result file with its provenance, where a path is given.

    Returns:
        The line that says so, to be printed once all files are written: a closed pipe stops the command at its first
        line.
    """
    from recombinator.utils.provenance import provenance

    if not path:
        return []
    write_json(path, {"kind": kind, **report, "provenance": provenance()})
    return [f"wrote {path}"]


def print_all(lines: list[str]) -> None:
    """Print each line."""
    for line in lines:
        print(line)
