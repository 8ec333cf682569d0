"""`recombinator train`."""

from __future__ import annotations

import os
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from recombinator.cli.options import Command, Data, Sample, Threads, set_threads
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError

# options of earlier versions, and the names that --set has for them
NOW_SET = {
    f"--{name.replace('_', '-')}": name
    for name in (
        "batch", "learning_rate", "loss", "sigma", "outside", "precision", "patience", "mask", "alpha", "upsampling",
        "norm", "size", "form", "width", "fold", "channels",
    )
}  # fmt: skip


class TrainCommand(Command):
    """`train`, which says how to write the options that it had in earlier versions."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        old, new = [], []
        for i, argument in enumerate(args):
            name, equals, value = argument.partition("=")
            if name in NOW_SET:
                value = value if equals else next(iter(args[i + 1 : i + 2]), "VALUE")
                old.append(argument if equals else f"{name} {value}")
                new.append(f"--set {NOW_SET[name]}={value}")
        if old:
            raise InputError(f"{' '.join(old)} {'are' if len(old) > 1 else 'is'} now {' '.join(new)}")
        return super().parse_args(ctx, args)


def _list_settings(value: bool) -> None:
    if value:
        from recombinator.cli.settings import list_settings

        for line in list_settings():
            print(line)
        raise typer.Exit


def train(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Architecture: a name from `recombinator models`.")],
    data: Data,
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the run, which is created.")],
    epochs: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", show_default="fast: 60, paper: 300", help="Passes over the training images."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, max=2**31 - 1, metavar="N", show_default="0", help="Random seed."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out, with its settings; --epochs may grow.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="[fast|paper]", show_default="fast", help="Settings to start from; paper: the authors'."),
    ] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", show_default="no-flip", help="Mirror half of the images.")
    ] = None,
    occlusion: Annotated[
        bool | None,
        typer.Option(
            "--occlusion/--no-occlusion", show_default="occlusion", help="Put one black rectangle on each image."
        ),
    ] = None,
    rotation: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=180,
            metavar="DEGREES",
            show_default="40",
            help="Rotate each image by up to DEGREES to either side.",
        ),
    ] = None,
    start: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="Start from these weights, where names and shapes match.")
    ] = None,
    teacher: Annotated[
        str | None,
        typer.Option(metavar="WEIGHTS", help="Also learn the score maps of this trained network (distillation)."),
    ] = None,
    errors_of: Annotated[
        str | None, typer.Option(metavar="WEIGHTS", help="For a denoiser: network whose errors it learns to repair.")
    ] = None,
    limit: Sample = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any other setting of the recipe or network (repeatable)."),
    ] = None,
    list_settings: Annotated[
        bool,
        typer.Option(
            "--list-settings", callback=_list_settings, is_eager=True, help="List the settings for --set and exit."
        ),
    ] = False,
    device: Annotated[str, typer.Option(metavar="[auto|cpu|cuda]", help="Device to train on.")] = "auto",
    threads: Threads = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Also write the metrics to OUT/tensorboard.")
    ] = False,
) -> None:
    """Train a network; the epoch with the lowest error is kept.

    Each epoch prints the mean loss; "valid", the error on jittered validation images, which decides which epoch is
    kept; and "plain", the error on the unchanged images. Errors are in % of the normalizing distance. After an
    interruption, the same command with --resume continues.
    """
    from recombinator.training import run
    from recombinator.training.recipe import parse_settings
    from recombinator.utils.allocator import keep_freed_memory

    keep_freed_memory()
    set_threads(threads)
    own = {
        "epochs": epochs, "degrees": rotation, "flip": flip,
        "occlude": None if occlusion is None else ((20, 50) if occlusion else (0, 0)),
    }  # fmt: skip
    changes, options = parse_settings(settings or [])
    changes |= {k: v for k, v in own.items() if v is not None}
    first = os.environ.get("RANK", "0") == "0"  # of several processes under torchrun, one reports
    with progress(f"{model}, steps") if first else nullcontext(lambda done, total: None) as advance:
        try:
            summary = run.train(
                model, data, out, recipe=recipe, seed=seed, resume=resume, device=device, start=start, limit=limit,
                errors_of=errors_of, teacher=teacher, options=options, tensorboard=tensorboard, progress=advance,
                **changes,
            )  # fmt: skip
        except KeyboardInterrupt:
            warn(f"stopped; finished epochs are in {out}: the same command with --resume continues")
            raise typer.Exit(130) from None
    if not first:
        return
    print(
        f"best epoch {summary['best_epoch']} of {summary['epochs']}: validation error {summary['best_valid']:.2f} %; "
        f"{out / 'best.safetensors'}"
    )
