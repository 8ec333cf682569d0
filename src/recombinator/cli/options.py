"""What the commands share: options, the form of the help, earlier option names, output files."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from recombinator.utils.errors import InputError
from recombinator.utils.files import check_output_folder, write_json

DEFAULT_WEIGHTS = "rcn-6-mtfl"
DETECTOR_FILES = "yunet:FILE|finder:FILE"  # detectors that are files, in the help of commands
DAILY, RESEARCH = "Daily use", "Research"  # sections of the help

Data = Annotated[Path, typer.Option("--data", metavar="FOLDER", help="Folder that `prepare` wrote.")]
Table = Annotated[
    Path, typer.Option("--data", metavar="TABLE", help="Table that `prepare` wrote, such as out/mtfl/test.parquet.")
]
Root = Annotated[Path, typer.Option(metavar="FOLDER", help="Repository folder, with results/ and docs/.")]
JsonOut = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Also write the report to this file.")]
Limit = Annotated[int | None, typer.Option(min=1, metavar="N", show_default="all", help="Use only the first N images.")]
Sample = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", show_default="all", help="Use only N images, sampled from the whole table."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace output files that exist.")]
AllowOutside = Annotated[
    bool, typer.Option("--allow-outside", help="Allow images outside the folders of the points file and --images.")
]
Occlude = Annotated[bool, typer.Option("--occlude", help="Put one black rectangle on each image, with a fixed seed.")]
Threads = Annotated[
    int | None, typer.Option(min=1, metavar="N", show_default="all cores", help="CPU threads of PyTorch.")
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Random seed.")]
NetworkArgument = Annotated[
    str, typer.Argument(metavar="WEIGHTS", help="RCN or SumNet: shipped name, weights file or run folder.")
]
WeightsArgument = Annotated[
    str, typer.Argument(metavar="WEIGHTS", help="Shipped name, weights file or run folder of a network.")
]
WeightsOut = Annotated[Path, typer.Option(metavar="FILE", help="Weights file to write, .safetensors.")]

# earlier name -> today's, for commands that have today's
RENAMED = {"--plot": "--plots", "--points": "--keypoints"}


class Command(TyperCommand):
    """A command whose help has one form, and which also accepts the earlier names of its options."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        known = {name for parameter in self.params for name in (*parameter.opts, *parameter.secondary_opts)}
        return super().parse_args(ctx, [_current_name(argument, known) for argument in args])

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write one line per argument and option: its name, what it is, and its default or whether it is required."""
        records: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": []}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record:
                section = "Arguments" if parameter.param_type_name == "argument" else "Options"
                records[section].append(_in_one_form(*record))
        for title, rows in records.items():
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def _in_one_form(name: str, text: str) -> tuple[str, str]:
    """Return an entry of the help without Python's types, ranges, and parentheses around a default."""
    name = re.sub(r" <.*>$", "", name)  # the type of an argument
    body, bracket, extra = text.partition("  [")
    facts = [f for f in extra.removesuffix("]").split("; ") if f and not re.search(r"x[<>]=", f)]
    facts = [re.sub(r"^default: \((.*)\)$", r"default: \1", f) for f in facts]
    return name, f"{body}  [{'; '.join(facts)}]" if bracket and facts else body


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


def check_outputs(*outputs: Path | None, overwrite: bool, source: Path | None = None) -> None:
    """Check output files before the work.

    Args:
        *outputs: The files to be written; None for one that is not.
        overwrite: Whether they may replace existing files.
        source: A file that is read, and must not be replaced.

    Raises:
        InputError: One is the source or a folder, exists and must not be replaced, or its folder cannot be made
            or written to.
    """
    for path in (p for p in outputs if p):
        if path.is_dir():
            raise InputError(f"{path}: is a folder; expected a file name")
        check_output_folder(path.parent)
        if source and path.resolve() == source.resolve():
            raise InputError(f"{path}: would overwrite the input; choose another name")
        if path.exists() and not overwrite:
            raise InputError(f"{path}: exists already; choose another name, or give --overwrite to replace it")


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


def passes_option(text: str) -> Any:
    """Return the option for the number of passes of a prediction, with this help."""
    return typer.Option(min=1, metavar="N", show_default="2, or 1 for 68 points", help=text)
