"""The kinds of files that `study fuzz` damages, and how the commands read each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import decode_reduced, read_image
from recombinator.data.points import read_points
from recombinator.data.readers.afw import prepare_afw
from recombinator.data.readers.mtfl import prepare_mtfl
from recombinator.data.readers.own import prepare_points
from recombinator.data.table import load_table
from recombinator.evaluation.tables import evaluate
from recombinator.fit.plan import Plan
from recombinator.fit.samples import read_samples
from recombinator.keypoints import FACE_5
from recombinator.predict.batch import Lines, read_boxes
from recombinator.predict.engine import load_engine
from recombinator.predict.finder import FinderDetector, OnnxFinder
from recombinator.predict.output import FORMATS, records
from recombinator.predict.predictor import load
from recombinator.predict.repair import repair
from recombinator.predict.track import Tracker
from recombinator.predict.video import write_track
from recombinator.study import mutate
from recombinator.study.collect import collect_runs
from recombinator.study.render import render_text
from recombinator.study.result import read_result
from recombinator.study.samples import GRAPH, GRAPHS, IMAGES, MODEL, OPTIONS, VIDEOS, small_recipe
from recombinator.training.run import train
from recombinator.utils.errors import InputError
from recombinator.weights.convert import convert
from recombinator.weights.files import load_weights
from recombinator.weights.shipped import FOLDER


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        samples: Undamaged files, relative to the folder of samples; one is damaged.
        damage: The function that damages it.
        read: Reads a damaged file as the commands do, and returns numbers, which must be finite.
    """

    samples: tuple[str, ...]
    damage: mutate.Mutation
    read: Callable[[Path], Any]


def kinds(samples: Path) -> dict[str, Kind]:
    """Return the kinds of files, by name. anno.mat needs h5py; SLEAP's files need sleap-io.

    Args:
        samples: The folder that `samples.make_samples` wrote.
    """
    denoiser, network = (load_weights(samples / "weights" / f"{n}.safetensors") for n in ("denoiser", "image"))
    predictor = load(FOLDER / f"{GRAPH}.onnx", threads=1)
    blank = np.full((99, 99), 99, np.uint8)

    def read_network(path: Path) -> Any:
        engine = load_engine(path, threads=1)
        crop = np.zeros((1, engine.about.channels, engine.about.size, engine.about.size), np.uint8)
        return [v.tolist() for v in vars(engine.run(crop)).values()]

    def read_finder(path: Path) -> Any:
        found = FinderDetector(OnnxFinder(path)).detect(np.zeros((64, 64), np.uint8))
        return [[*one.box, one.angle, one.score] for one in found]

    def read_run(path: Path) -> Any:
        collect_runs([path.parent])
        summary = train(MODEL, samples / "tables", path.parent, resume=True, recipe=small_recipe(), device="cpu")
        return [summary, read_network(path.parent)]

    def read_table(path: Path) -> Any:
        if path.stem == "train":
            return train(MODEL, path.parent, path.parent / "run", recipe=small_recipe(), options=OPTIONS, device="cpu")
        return evaluate(network, load_table(path))[1]

    def read_any_points(path: Path) -> Any:
        with contextlib.suppress(InputError):
            prepare_points(path, path.parent / "out", size=32)
        with contextlib.suppress(InputError):
            read_samples(path, None)
        faces = read_points(path, FACE_5, lambda error: None)
        return [repair(denoiser, face.points).points.tolist() for face in faces[:2]]

    def read_any_boxes(path: Path) -> Any:
        faces = [face for boxes in read_boxes(path).values() for face in predictor.predict(blank, boxes, passes=1)]
        return [face.points.tolist() for face in faces]

    def read_result_file(path: Path) -> Any:
        text = "<!-- results: card-rcn-6-mtfl -->\n<!-- end -->"
        return len(render_text(text, {"rcn-6-mtfl": read_result(path)}, "README.md"))

    def read_predictions(path: Path) -> Any:
        lines = Lines(path.parent, resume=True, overwrite=False, weights="w")
        kept = list(records(path))
        for name in ("json", "csv", "coco", "pts"):
            FORMATS[name](path, path.parent / "out", "w", FACE_5)
        return [len(lines.done), kept]

    def read_any_image(path: Path) -> Any:
        reduced, _ = decode_reduced(path.read_bytes(), path.name, 8, 10**6)
        faces = predictor.predict(path, [(8, 8, 30, 30)])
        return [int(read_image(path).max()), int(reduced.max()), [face.points.tolist() for face in faces]]

    def read_video(path: Path) -> Any:
        return write_track(Tracker(predictor, 100), str(path), path.parent / "out" / "points.jsonl", limit=20)

    tables = tuple(f"tables/{s}.parquet" for s in ("test", "valid", "train"))
    tools = ("labelme", "labelstudio", "minimal", "via")
    texts, trees, lines = mutate.damage_lines, mutate.damage_json, mutate.damage_json_lines
    found = {
        "weights": Kind(("weights/image.safetensors",), mutate.damage_weights, read_network),
        "derived weights": Kind(("weights/pair.json", "weights/shift.json"), trees, read_network),
        "graph": Kind(tuple(f"graph/{n}" for n in GRAPHS if n.endswith(".onnx")), mutate.damage_graph, read_network),
        "graph's tensors": Kind((f"graph/{GRAPH}.safetensors",), mutate.damage_bytes,
                                lambda p: read_network(p.with_suffix(".onnx"))),
        "finder": Kind(("finder/faces.onnx",), mutate.damage_graph, read_finder),
        "authors' arrays": Kind(("arrays/authors.pickle",), mutate.damage_bytes,
                                lambda p: convert(p, MODEL, 5, **OPTIONS).net.size),
        "table": Kind(tables, mutate.damage_table, read_table),
        "run's state": Kind(("run/last.safetensors", "run/best.safetensors"), mutate.damage_weights, read_run),
        "run.json": Kind(("run/run.json", "run/summary.json"), trees, read_run),
        "metrics": Kind(("run/metrics.jsonl",), lines, read_run),
        "result": Kind(("results/rcn-6-mtfl.json",), trees, read_result_file),
        "CSV points": Kind(("points/rows.csv", "points/wide.csv", "points/CollectedData_a.csv"), texts,
                           read_any_points),
        "JSON points": Kind(("points/objects.json", "points/coco.json"), trees, read_any_points),
        "JSON lines": Kind(("points/lines.jsonl",), lines, read_any_points),
        "tools' JSON": Kind(tuple(f"points/{name}.json" for name in tools), trees, read_any_points),
        "tools' texts": Kind(("points/cvat.xml", "points/dlib.xml", "points/face.tps", "points/data.yaml",
                              "points/face.pts"), texts, read_any_points),
        "YOLO labels": Kind(("points/labels/0.txt",), texts,
                            lambda p: read_any_points(p.parent.parent / "data.yaml")),
        "predictions": Kind(("predictions/points.jsonl",), lines, read_predictions),
        "plan": Kind(("predictions/plan.json",), trees, lambda p: Plan.read(p).size),
        "boxes": Kind(("points/boxes.csv",), texts, read_any_boxes),
        "list": Kind(("list/training.txt",), texts, lambda p: prepare_mtfl(p.parent, p.parent / "out", size=32)),
        "image": Kind(tuple(f"images/{name}" for name in IMAGES), mutate.damage_bytes, read_any_image),
        "video": Kind(tuple(f"videos/{name}" for name in VIDEOS), mutate.damage_bytes, read_video),
        "anno.mat": Kind(("afw/anno.mat",), mutate.damage_hdf5,
                         lambda p: prepare_afw(p.parent, p.parent / "out", size=32)),
        "SLEAP": Kind(("sleap/images.slp", "sleap/video.slp"), mutate.damage_hdf5, read_any_points),
    }  # fmt: skip
    # samples that need a package which is not installed have not been made
    return {name: kind for name, kind in found.items() if all((samples / s).is_file() for s in kind.samples)}
