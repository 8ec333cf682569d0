"""Measure how fast a page of `recombinator web` runs in a headless Chromium on one processor core."""

from __future__ import annotations

import os
import statistics
import tempfile
from pathlib import Path
from typing import Any

from recombinator.deploy.web import RUNTIME, RUNTIME_VERSION, write_page
from recombinator.study.browser import Browser, served

WIDTH, HEIGHT = 640, 480  # of the frames, as of a webcam
FRAMES, WARM = 150, 30  # frames per round, and those before that are not counted

# one face of a usual size in a frame; drawing and predicting run in turn, as they must on one core
SCRIPT = """(async () => {
  const { draw } = await import('./draw.js');
  const about = await (await fetch('model.json')).json();
  const picture = await createImageBitmap(await (await fetch(about.example)).blob());
  const frame = new OffscreenCanvas(%(width)d, %(height)d);
  const height = %(height)d, width = height * picture.width / picture.height;
  frame.getContext('2d').drawImage(picture, (%(width)d - width) / 2, 0, width, height);
  const canvas = document.createElement('canvas');
  [canvas.width, canvas.height] = [%(width)d, %(height)d];
  const context = canvas.getContext('2d');
  const worker = new Worker('worker.js', { type: 'module' });
  const answer = () => new Promise((resolve, reject) => {
    worker.onmessage = ({ data }) => (data.error ? reject(new Error(data.error)) : resolve(data));
  });
  worker.postMessage({ gpu: false });
  await answer();
  const rows = [];
  for (let i = 0; i < %(warm)d + %(frames)d; i++) {
    const began = performance.now();
    const bitmap = await createImageBitmap(frame);
    worker.postMessage({ id: i, bitmap, video: true }, [bitmap]);
    const result = await answer();
    const drawing = performance.now();
    draw(context, result.bitmap, result.objects, about.keypoints.lines, 1, 1);
    result.bitmap.close();
    const now = performance.now();
    const { total, ...times } = result.times;
    rows.push({ ...times, draw: now - drawing, frame: now - began, objects: result.objects.length });
  }
  worker.terminate();
  return rows.slice(%(warm)d);
})()"""


def measure(model: str, rounds: int, runtime: Path | None = None) -> dict[str, Any]:
    """Measure frames per second of a model's page, with the parts of the time.

    Args:
        model: A face model: shipped name, .onnx file, weights file or run folder.
        rounds: Repetitions, each in a browser of its own.
        runtime: Folder with the files of onnxruntime-web; by default `deploy.web.runtime_folder()`.

    Returns:
        `frames_per_second` (median over the rounds, and its range), `milliseconds` (mean per frame by part, median over
        the rounds), and what was measured.
    """
    rates, parts = [], []
    with tempfile.TemporaryDirectory() as name:
        site = Path(name) / "site"
        write_page(model, site, runtime=runtime)
        size = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "warm": WARM}
        with served(site) as address:
            for _ in range(rounds):
                with Browser(cores=1, timeout=300) as browser:
                    version = browser.send("Browser.getVersion")["product"]
                    browser.open(address)
                    rows = browser.evaluate(SCRIPT % size)
                mean = {k: sum(row.get(k, 0.0) for row in rows) / len(rows) for k in
                        ("pixels", "finder", "crop", "localizer", "draw", "frame", "objects")}  # fmt: skip
                parts.append(mean)
                rates.append(1000 / mean["frame"])
    typical = {k: round(statistics.median(one[k] for one in parts), 3) for k in parts[0]}
    objects = typical.pop("objects")
    return {
        "weights": model, "browser": version, "runtime": f"{RUNTIME} {RUNTIME_VERSION}", "provider": "WASM, one thread",
        "cores": 1, "size": [WIDTH, HEIGHT], "frames": FRAMES, "rounds": rounds, "objects": objects,
        "frames_per_second": {
            "median": round(statistics.median(rates), 1), "lowest": round(min(rates), 1),
            "highest": round(max(rates), 1),
        },
        "milliseconds": typical, "load": list(os.getloadavg()),
    }  # fmt: skip


def as_text(report: dict[str, Any]) -> str:
    """Return a report as text for a terminal."""
    rate, parts = report["frames_per_second"], report["milliseconds"]
    return (
        f"{report['weights']}: {rate['median']} frames per second ({rate['lowest']} to {rate['highest']}) on one core, "
        f"load {report['load'][0]:.1f}\nms per frame: " + ", ".join(f"{k} {v:.2f}" for k, v in parts.items())
    )
