"""`recombinator models`: the networks by name."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from recombinator.utils.errors import explain_missing


def models(
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list instead of the table.")] = False,
    keypoints: Annotated[
        int | None, typer.Option(min=1, metavar="K", show_default="5 or 68, by network", help="Number of keypoints.")
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", show_default="80, 128 for the finder", help="Side of the input image."),
    ] = None,
) -> None:
    """List the networks, with parameters and multiply-adds.

    Multiply-adds are those of one image. The table lists architectures, for `train NAME`. The last line lists
    shipped weights, for `predict --weights NAME`.
    """
    from recombinator.weights.shipped import shipped_models

    trained = f"shipped weights: {', '.join(shipped_models())}"
    try:
        from recombinator.models import catalogue, model_names
    except ModuleNotFoundError as error:
        sentence = explain_missing(error, "the table of architectures, with parameters and multiply-adds,")
        if sentence is None or as_json:
            raise
        print(f"{trained}\n{sentence}")
        return
    rows = catalogue(keypoints, size)
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    print(f"{'name':14}{'parameters':>12}{'multiply-adds':>16}{'input':>9}{'keypoints':>11}")
    for r in rows:
        side = f"{r['input']}x{r['input']}"
        print(f"{r['name']:14}{r['parameters']:>12,}{r['multiply_adds']:>16,}{side:>9}{r['keypoints']:>11}")
    names = {r["name"] for r in rows}
    impossible = [name for name in model_names() if name not in names]
    if impossible:
        print(f"not available with this input: {', '.join(impossible)}")
    print(f"\n{trained}")
