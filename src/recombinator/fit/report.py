"""The report of a fit: report.json, and report.html with pictures of the user's own images inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import encode_image, read_image
from recombinator.evaluation import metrics
from recombinator.fit.measure import RADII_PIXELS, Measured
from recombinator.fit.plan import Plan
from recombinator.fit.samples import Sample
from recombinator.keypoints import KeypointSet
from recombinator.utils.files import write_json, write_text
from recombinator.utils.provenance import provenance

PICTURE = 480  # longer side of a picture in pixels
WORST = 8  # pictures of objects with the largest errors
TITLES = {"test": "Test images", "held_out": "Held-out images", "training": "Training images"}
NOTES = {
    "test": "Not used in the training, and not to choose anything.",
    "held_out": "Not trained on; they chose between one and two networks and calibrated the probabilities.",
    "training": "Trained on: expect larger errors on new images.",
}
TRUE, PREDICTED = (0, 158, 115), (213, 94, 0)  # of the palette for color-blind readers by Okabe and Ito
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem}
table{border-collapse:collapse;margin:.5rem 0}td,th{padding:.15rem .7rem;text-align:right;border-bottom:1px solid #ccc}
td:first-child,th:first-child{text-align:left}figure{display:inline-block;margin:.4rem}figcaption{font-size:13px}
.t{color:#009e73}.p{color:#d55e00}"""

Parts = dict[str, tuple[list[Sample], Measured]]


def write_reports(
    out: Path, source: str, keypoints: KeypointSet, plan: Plan, parts: Parts, seconds: float, chosen: dict[str, float]
) -> dict[str, Any]:
    """Write OUT/report.json and OUT/report.html.

    Args:
        out: Folder of the run.
        source: The points file.
        keypoints: The keypoint set.
        plan: The decisions.
        parts: Objects and their results by part: "test", "held_out", "training".
        seconds: Duration of the fit.
        chosen: Mean held-out error of each alternative, in pixels.

    Returns:
        What report.json holds.
    """
    names = keypoints.names
    report: dict[str, Any] = {
        "kind": "fit", "points": source, "keypoints": list(names), "plan": plan.to_dict(), "chosen": chosen,
        "seconds": seconds,
        **{
            part: {"note": _note(part, seen), **seen.summary(), "per_keypoint": seen.per_keypoint(names)}
            for part, (_, seen) in parts.items()
        },
    }  # fmt: skip
    suspects = []
    for part, (samples, seen) in parts.items():
        suspects += [{**row, "part": part, "where": samples[row["object"]].where} for row in seen.suspects(names)]
    suspects.sort(key=lambda row: -row["ratio"] * row["confidence"])
    report["suspected_label_errors"] = suspects
    report["provenance"] = provenance()
    write_json(out / "report.json", report)
    write_text(out / "report.html", _page(source, keypoints, plan, parts, report))
    return report


def _note(part: str, seen: Measured) -> str:
    if seen.finding is None:
        return NOTES[part]
    sentence = seen.finding.sentence()
    return f"{NOTES[part]} In whole images: {sentence}. The errors are those of the objects that were found."


def _page(source: str, keypoints: KeypointSet, plan: Plan, parts: Parts, report: dict[str, Any]) -> str:
    names = keypoints.names
    body = [f"<h1>Fit of {html.escape(Path(source).name)}</h1>", "<p>Errors are in pixels of your images.</p>"]
    rows = [
        [TITLES[part], f"{row['objects']}", f"{row['median']:.2f}", f"{row['mean']:.2f}", f"{row['p95']:.1f}",
         *(f"{100 * row['within'][str(r)]:.0f} %" for r in RADII_PIXELS)]
        for part, row in ((p, report[p]) for p in TITLES if p in report) if row["points"]
    ]  # fmt: skip
    body.append(
        _table(["", "objects", "median", "mean", "95th percentile", *(f"within {r}" for r in RADII_PIXELS)], rows)
    )
    body += [
        f"<p>{TITLES[part]}: mean {report[part]['mean_mm']:.2f} mm, "
        + ", ".join(f"{100 * v:.0f} % within {r} mm" for r, v in report[part]["within_mm"].items()) + "</p>"
        for part in TITLES if part in parts and "mean_mm" in report[part]
    ]  # fmt: skip
    body += [f"<p>{TITLES[part]}: {_note(part, parts[part][1])}</p>" for part in TITLES if part in parts]
    measured = next(part for part in TITLES if part in parts and len(parts[part][0]))
    samples, seen = parts[measured]
    body.append(f"<h2>Keypoints, {TITLES[measured].lower()}</h2>")
    rows = [
        [row["keypoint"], str(row["points"]), *(f"{row[key]:.2f}" if key in row else "" for key in ("median", "mean"))]
        for row in seen.per_keypoint(names)
    ]  # fmt: skip
    body.append(_table(["keypoint", "points", "median", "mean"], rows))
    body.append(
        f"<h2>Largest errors, {TITLES[measured].lower()}</h2>"
        '<p><span class="t">ring: annotated</span>, <span class="p">cross: predicted</span></p>'
    )
    order = np.argsort(-np.nan_to_num(np.nanmax(seen.errors, axis=1)))[:WORST]
    for i in order:
        k = int(np.nanargmax(seen.errors[i]))
        caption = f"{samples[i].file}: {names[k]} {seen.errors[i, k]:.1f} pixels"
        body.append(_figure(_picture(samples[i], seen, int(i)), caption))
    body.append("<h2>Suspected label errors</h2>")
    suspects = report["suspected_label_errors"]
    if not suspects:
        body.append("<p>None: no point is far from a prediction that the model is sure of.</p>")
    for row in suspects[:WORST]:
        chosen, results = parts[row["part"]]
        picture = _picture(chosen[row["object"]], results, row["object"], names.index(row["keypoint"]))
        caption = f"{row['where']}: {row['keypoint']} is {row['error']:.1f} pixels from the prediction ({row['part']})"
        body.append(_figure(picture, caption))
    body.append("<h2>Probabilities</h2><p>Share of points that were right, by the confidence that the model gave.</p>")
    curve, gap = metrics.reliability(seen.confidence[seen.known], seen.correct[seen.known], 5)
    body.append(
        _table(
            ["confidence", "right", "points"],
            [[f"{100 * r['confidence']:.0f} %", f"{100 * r['right']:.0f} %", f"{r['points']:.0f}"] for r in curve],
        )
        + f"<p>Mean difference: {100 * gap:.1f} %.</p>"
    )
    body.append("<h2>Decisions</h2><ul>" + "".join(f"<li>{html.escape(r)}</li>" for r in plan.reasons) + "</ul>")
    title = html.escape(f"Fit of {Path(source).name}")
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title><style>{STYLE}</style>'
        + "".join(body) + "</html>\n"
    )  # fmt: skip


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(c)}</{tag}>" for c in cells) + "</tr>"

    return "<table>" + line(header, "th") + "".join(line(row, "td") for row in rows) + "</table>"


def _figure(image: np.ndarray, caption: str) -> str:
    data = base64.b64encode(encode_image(image, 85)).decode()
    source = f"data:image/jpeg;base64,{data}"
    return f'<figure><img alt="" src="{source}"><figcaption>{html.escape(caption)}</figcaption></figure>'


def _picture(sample: Sample, seen: Measured, i: int, only: int | None = None) -> np.ndarray:
    """Draw annotated and predicted points on the part of the image around them."""
    import cv2

    image = read_image(sample.path)
    known = seen.known[i]
    shown = np.concatenate([seen.true[i][known], seen.predicted[i][known]])
    if only is not None:
        shown = np.stack([seen.true[i][only], seen.predicted[i][only]])
        known = np.arange(len(known)) == only
    low, high = shown.min(axis=0), shown.max(axis=0)
    margin = max(0.25 * float((high - low).max()), 0.04 * max(image.shape[:2]))
    x0, y0 = (max(0, int(v - margin)) for v in low)
    x1, y1 = (min(side, int(v + margin) + 1) for v, side in zip(high, image.shape[1::-1], strict=True))
    x0, y0 = min(x0, image.shape[1] - 2), min(y0, image.shape[0] - 2)
    part = image[y0 : max(y1, y0 + 2), x0 : max(x1, x0 + 2)]
    scale = PICTURE / max(part.shape[:2])
    way = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas = cv2.resize(part, [max(1, round(s * scale)) for s in part.shape[1::-1]], interpolation=way)
    for k in np.flatnonzero(known):
        true, predicted = ([round(float(v)) for v in (p[i, k] - [x0, y0]) * scale] for p in (seen.true, seen.predicted))
        cv2.line(canvas, true, predicted, (240, 228, 66), 1, cv2.LINE_AA)
        cv2.circle(canvas, true, 5, TRUE, 2, cv2.LINE_AA)
        cv2.drawMarker(canvas, predicted, PREDICTED, cv2.MARKER_TILTED_CROSS, 9, 2, cv2.LINE_AA)
    return canvas
