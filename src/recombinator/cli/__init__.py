"""The command line: its commands, and how errors are printed."""

from __future__ import annotations

import io
import os
import signal
import sys
from typing import Annotated, Any

import typer

from recombinator.cli import evaluation, models, photographs, tools, training, weights
from recombinator.cli.fit import fit
from recombinator.cli.labeling import unlabeled as _unlabeled  # noqa: F401 (adds its command to `study`)
from recombinator.cli.labels import check_labels, suggest
from recombinator.cli.options import DAILY, RESEARCH, Command, Group
from recombinator.cli.prepare import prepare
from recombinator.cli.ray import PredictCommand
from recombinator.cli.study import study
from recombinator.cli.web import web
from recombinator.utils.console import log_to_console
from recombinator.utils.errors import InputError, explain_missing
from recombinator.utils.version import __version__

app = typer.Typer(
    help="Recombinator Networks: train, compare and use small, precise keypoint localizers.",
    cls=Group, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
_DAILY: tuple[Any, ...] = (
    photographs.demo, photographs.predict, photographs.track, fit, suggest, check_labels, training.train,
    evaluation.evaluate, weights.export, web, models.models,
)  # fmt: skip
_RESEARCH: tuple[Any, ...] = (
    evaluation.compare, weights.calibrate, weights.reliability, weights.join, weights.average, weights.mirror,
    weights.shift, weights.smooth, weights.convert, weights.denoise, evaluation.bench,
)  # fmt: skip
for _section, _commands in ((DAILY, _DAILY), (RESEARCH, _RESEARCH)):
    for _command in _commands:
        _class = {training.train: training.TrainCommand, photographs.predict: PredictCommand}.get(_command, Command)
        app.command(cls=_class, rich_help_panel=_section)(_command)
app.add_typer(prepare, name="prepare", rich_help_panel=DAILY)
study.command("tools", cls=Command)(tools.tools)
study.command("negatives", cls=Command)(tools.negatives)
study.command("framing", cls=Command)(tools.framing)
app.add_typer(study, name="study", rich_help_panel=RESEARCH)


def _print_version(value: bool) -> None:
    if value:
        print(f"recombinator {__version__}")
        raise typer.Exit


@app.callback()
def _prepare_process(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    context.with_resource(log_to_console())


def _end(number: int, frame: object) -> None:
    sys.exit(128 + number)


def main() -> None:
    """Entry point: an InputError is one sentence and exit status 2.

    SIGTERM and SIGHUP end the process by an exception, so that temporary files are removed.
    """
    for name in ("SIGTERM", "SIGHUP"):  # Windows has no SIGHUP; `nohup` has it ignored
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _end)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # file names that are not UTF-8 are printed with escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        try:
            app()
        finally:
            sys.stdout.flush()  # here, where a closed pipe is handled
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        sentence = explain_missing(error, "this command")
        if sentence is None:
            raise
        print(f"error: {sentence}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `recombinator models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
