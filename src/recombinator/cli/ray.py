"""`predict --ray`: many photographs on all cores of a machine, or on a cluster."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import typer

from recombinator.cli.options import Command
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError
from recombinator.utils.text import plural

_ADDRESS = re.compile(r"(auto|local|[\w.-]+:\d+)$")


class PredictCommand(Command):
    """`predict`, whose option --ray takes an address or none."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare --ray the address "local", which starts Ray on this machine."""
        new = []
        for argument, following in zip(args, [*args[1:], ""], strict=True):
            new.append(argument)
            if argument == "--ray" and (not _ADDRESS.match(following) or os.path.exists(following)):
                new.append("local")
        return super().parse_args(ctx, new)


def as_url(path: Path) -> str:
    """Return a path as text; a URL, whose slashes Path has merged, with all of them."""
    text = str(path)
    scheme = re.match(r"([a-z][a-z0-9+.-]+):/(?!/)", text)
    if not scheme:
        return text
    return f"{scheme[1]}:{'///' if scheme[1] == 'file' else '//'}{text[scheme.end() :]}"


def predict_with_ray(
    address: str, photos: list[str], out: Path, formats: list[str] | None, resume: bool, overwrite: bool,
    settings: dict[str, Any], **pictures: object,
) -> None:  # fmt: skip
    """Run `predict --ray`.

    Args:
        address: Where Ray runs.
        photos: Inputs.
        out: Folder or URL for the results.
        formats: What --format gave.
        resume: Skip finished parts.
        overwrite: Replace the results of an earlier run.
        settings: Fields of `predict.ray.Settings`.
        **pictures: Values of options that need all results on one machine.
    """
    from recombinator.predict import ray

    for name, value in pictures.items():
        if value:
            raise InputError(f"--ray writes points only; leave out --{name.replace('_', '-')}")
    kinds = {"jsonl" if f == "json" else f for f in formats or ["json"]}
    if len(kinds) > 1 or not kinds <= set(ray.WRITERS):
        raise InputError(f"--ray writes json (JSON lines) or parquet; got --format {', '.join(formats or [])}")
    target = as_url(out)
    if target == "-":
        raise InputError("--ray writes files; give a folder or a URL as --out")
    with progress("photographs") as step:
        outcome = ray.predict_with_ray(
            photos, target, ray.Settings(**{**settings, "threads": settings["threads"] or 1}), address=address,
            kind=kinds.pop(), resume=resume, overwrite=overwrite, progress=step,
        )  # fmt: skip
    before = f", {outcome['skipped']} done before" if outcome["skipped"] else ""
    print(f"{plural(outcome['faces'], 'face')} in {plural(outcome['photographs'], 'photograph')}{before}: {target}")
    if outcome["failed"]:
        warn(f"{plural(outcome['failed'], 'photograph')} could not be used: see {target}/failed-*.jsonl")
        raise typer.Exit(1 if outcome["photographs"] or outcome["skipped"] else 2)
