"""The command line: its commands, and what becomes of errors."""

from __future__ import annotations

import os
import sys

import typer

from recombinator.cli import photographs, training, weights
from recombinator.cli.prepare import prepare
from recombinator.cli.study import study
from recombinator.utils.errors import InputError, remedy

# extra -> what it brings; prediction with exported graphs needs none of them
EXTRAS = {"train": ("torch", "pyarrow", "safetensors", "matplotlib"), "onnx": ("onnx", "onnxscript"), "afw": ("h5py",)}

app = typer.Typer(
    help="Recombinator Networks: train, compare and use small, precise keypoint localizers.",
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
app.add_typer(prepare, name="prepare")
app.add_typer(study, name="study")
for _command in (
    training.models, training.train, training.evaluate, training.compare, photographs.predict, photographs.track,
    photographs.demo, weights.export, weights.convert, weights.join, weights.average, weights.mirror,
    weights.shift, weights.calibrate, weights.reliability, weights.denoise, training.bench,
):  # fmt: skip
    app.command()(_command)


def main() -> None:
    """Entry point: an InputError is one sentence and exit status 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        extra = next((e for e, names in EXTRAS.items() if missing in names), None)
        if extra is None:
            raise
        print(f"error: this command needs {missing}; {remedy(extra)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `recombinator models | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a folder that cannot be written, a full disk
        print(f"error: {error.filename or 'file system'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
