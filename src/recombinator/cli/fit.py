"""`recombinator fit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recombinator.cli.options import AllowOutside, JsonOut, Threads, print_all, set_threads, write_report
from recombinator.utils.console import progress, warn
from recombinator.utils.errors import InputError

if TYPE_CHECKING:
    from recombinator.fit.plan import Plan


def _settings(texts: list[str]) -> dict[str, Any]:
    changes = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise InputError(f"--set {text}: expected NAME=VALUE")
        changes[name] = value
    return changes


def _show(plan: Plan) -> None:
    for reason in plan.reasons:
        print(f"- {reason}", flush=True)


def fit(
    points: Annotated[Path, typer.Argument(metavar="POINTS", help="Points file, in a format of `prepare points`.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the run, which is created.")],
    images: Annotated[
        Path | None, typer.Option(metavar="FOLDER", show_default="that of POINTS", help="Folder of the images.")
    ] = None,
    test: Annotated[Path | None, typer.Option(metavar="POINTS2", help="Points of additional test images.")] = None,
    minutes: Annotated[float, typer.Option(min=0.1, metavar="N", help="Minutes for the whole run.")] = 30.0,
    plan: Annotated[bool, typer.Option("--plan", help="Print the decisions and train nothing.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, with its plan.")] = False,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 2, metavar="N", help="Random seed.")] = 0,
    boxes: Annotated[
        bool, typer.Option("--boxes", help="Fit a model that needs a box per object at prediction.")
    ] = False,
    folds: Annotated[
        int, typer.Option(min=0, metavar="N", help="Cross-validate with N folds instead; --minutes is per fold.")
    ] = 0,
    fold: Annotated[
        list[int] | None, typer.Option(min=1, metavar="I", help="With --folds: only this fold (repeatable).")
    ] = None,
    unlabeled: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Also train on images and videos without points; not with --boxes."),
    ] = None,
    allow_outside: AllowOutside = False,
    json_out: JsonOut = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Replace a decision, such as size=128 (repeatable)."),
    ] = None,
    threads: Threads = None,
) -> None:
    """Fit a localizer to your annotated images: plan, training, calibration and report.

    Writes model.safetensors (for `predict`, `track` and `load`), report.html and report.json.
    """
    from recombinator.fit import folds as cross_validation
    from recombinator.fit import run
    from recombinator.fit.measure import finding_sentence
    from recombinator.utils.allocator import keep_freed_memory

    keep_freed_memory()
    set_threads(threads)
    chosen = _settings(settings or [])
    try:
        with progress("fit, percent") as advance:
            if folds:
                if plan or resume or test or unlabeled:
                    raise InputError(
                        "--folds excludes --plan, --resume, --test and --unlabeled; it skips finished folds by itself"
                    )
                only = [f - 1 for f in fold or []]
                if any(f >= folds for f in only):
                    raise InputError(f"--fold must be from 1 to {folds}")
                report = cross_validation.fit_folds(
                    points, out, folds, images=images, minutes=minutes, seed=seed, boxes=boxes, settings=chosen,
                    only=only, allow_outside=allow_outside, on_plan=_show, progress=advance,
                )  # fmt: skip
            else:
                report = run.fit(
                    points, out, images=images, test=test, minutes=minutes, seed=seed, boxes=boxes, resume=resume,
                    plan_only=plan, settings=chosen, unlabeled=unlabeled, allow_outside=allow_outside,
                    on_plan=_show, progress=advance,
                )  # fmt: skip
    except KeyboardInterrupt:
        warn(f"stopped; finished epochs are in {out}: the same command with --resume continues")
        raise typer.Exit(130) from None
    if plan:
        return
    if folds:
        print_all(write_report(json_out, "fit-folds", report))
    for name, part in ({"all folds": report} if folds else report).items():
        if isinstance(part, dict) and "finding" in part:
            print(f"{name}: {finding_sentence(part['finding'])}")
        if isinstance(part, dict) and "median" in part:
            shares = ", ".join(f"{100 * v:.1f} % within {r}" for r, v in part["within"].items())
            print(f"{name}: median error {part['median']:.2f} pixels, mean {part['mean']:.2f}, {shares}")
            if "mean_mm" in part:
                shares = ", ".join(f"{100 * v:.1f} % within {r} mm" for r, v in part["within_mm"].items())
                print(f"{name}: mean error {part['mean_mm']:.2f} mm, {shares}")
    if not folds:
        print(f"{out / 'model.safetensors'}, {out / 'report.html'}")
        print(f"share it: recombinator web {out} --out site")
