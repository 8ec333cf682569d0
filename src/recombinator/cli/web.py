"""`recombinator web`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from recombinator.utils.errors import InputError

MARK = "model.json"  # of a folder that holds a page


def web(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Shipped name, .onnx file, weights file or run folder.")
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder of the page, which is created.")],
    example: Annotated[
        Path | None,
        typer.Option(metavar="FILE", show_default="a portrait, for faces", help="Image to try the page on."),
    ] = None,
    runtime: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", show_default="download once", help="The dist folder of onnxruntime-web."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page that is in --out.")] = False,
) -> None:
    """Write a static page that runs a model in the browser.

    Visitors choose images, a folder, a video or their webcam; nothing is uploaded. Any web server can serve the folder.
    """
    from recombinator.deploy.web import write_page

    if out.is_dir() and any(out.iterdir()):
        if not (out / MARK).is_file():
            raise InputError(f"{out}: holds other files; choose a new folder for the page")
        if not overwrite:
            raise InputError(f"{out}: holds a page already; choose another folder, or give --overwrite to replace it")
    write_page(model, out, runtime=runtime, example=example)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"wrote {out}: {size / 1e6:.0f} MB; try it: python -m http.server --directory {out}")
