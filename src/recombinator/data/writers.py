"""Write predicted points in the formats of labeling tools, to correct them there.

Each writer is the inverse of a reader in `recombinator.data.readers` and uses that reader's `ORIGIN`. A record is one
photograph: file, stem, width, height, and faces with box (x, y, side), confidence and keypoints (name, x, y,
confidence) in the package's coordinates.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import quote
from xml.etree import ElementTree

import numpy as np

from recombinator.data.readers import deeplabcut, labelme, labelstudio, sleap, tps, xml_points
from recombinator.keypoints import KeypointSet
from recombinator.utils.errors import import_optional
from recombinator.utils.files import write_atomically, write_json, write_text

Record = dict[str, Any]
SCORER = "recombinator"


def _relative(file: str, folder: Path) -> str:
    """Return an image's path from a folder, with forward slashes; the whole path if it is on another drive."""
    try:
        return PurePath(os.path.relpath(file, folder)).as_posix()
    except ValueError:
        return PurePath(os.path.abspath(file)).as_posix()


def _moved(keypoint: dict[str, Any], origin: float) -> tuple[float, float]:
    return round(keypoint["x"] + origin, 3), round(keypoint["y"] + origin, 3)


def write_labelme(records: Iterable[Record], out: Path, keypoints: KeypointSet) -> None:
    """Write labelme/STEM.json for each photograph; each of several faces has a group id."""
    folder = out / "labelme"
    for record in records:
        many = len(record["faces"]) > 1
        shapes = [
            {
                "label": p["name"], "points": [list(_moved(p, labelme.ORIGIN))], "group_id": number if many else None,
                "shape_type": "point", "flags": {},
            }
            for number, face in enumerate(record["faces"], 1) for p in face["keypoints"]
        ]  # fmt: skip
        value = {
            "version": "5.4.1", "flags": {}, "shapes": shapes, "imagePath": _relative(record["file"], folder),
            "imageData": None, "imageHeight": record["height"], "imageWidth": record["width"],
        }  # fmt: skip
        write_json(folder / f"{record['stem']}.json", value)


def write_labelstudio(records: Iterable[Record], out: Path, keypoints: KeypointSet) -> None:
    """Write points.labelstudio.json: tasks with predictions. Images are local files (?d=PATH) of Label Studio.

    The labeling configuration needs RectangleLabels and KeyPointLabels with the keypoints' names, both of `image`.
    """
    tasks = []
    for number, record in enumerate(records, 1):
        size = (record["width"], record["height"])
        common = {"original_width": size[0], "original_height": size[1], "image_rotation": 0, "to_name": "image"}
        results: list[dict[str, Any]] = []
        for i, face in enumerate(record["faces"], 1):
            x, y, side = face["box"]
            corner = {"x": x / size[0] * 100, "y": y / size[1] * 100, "rotation": 0}
            extent = {"width": side / size[0] * 100, "height": side / size[1] * 100, "rectanglelabels": ["object"]}
            results.append({
                **common, "id": f"object{i}", "type": "rectanglelabels", "from_name": "box", "value": corner | extent,
            })  # fmt: skip
            for j, p in enumerate(face["keypoints"], 1):
                x, y = (v / s * 100 for v, s in zip(_moved(p, labelstudio.ORIGIN), size, strict=True))
                results.append({
                    **common, "id": f"object{i}point{j}", "parentID": f"object{i}", "type": "keypointlabels",
                    "from_name": "keypoints", "score": p["confidence"],
                    "value": {"x": x, "y": y, "width": 0.5, "keypointlabels": [p["name"]]},
                })  # fmt: skip
        score = float(np.mean([f["confidence"] for f in record["faces"]])) if record["faces"] else 0.0
        url = f"/data/local-files/?d={quote(PurePath(record['file']).as_posix(), errors='surrogateescape')}"
        prediction = {"model_version": SCORER, "score": score, "result": results}
        tasks.append({"id": number, "data": {"image": url}, "predictions": [prediction]})
    write_json(out / "points.labelstudio.json", tasks)


def write_cvat(records: Iterable[Record], out: Path, keypoints: KeypointSet) -> None:
    """Write points.cvat.xml, "CVAT for images 1.1": a skeleton `object` for each face."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    for number, record in enumerate(records):
        name = PurePath(record["file"]).as_posix().encode(errors="backslashreplace").decode()
        size = {"width": str(record["width"]), "height": str(record["height"])}
        image = ElementTree.SubElement(root, "image", {"id": str(number), "name": name, **size})
        for face in record["faces"]:
            skeleton = ElementTree.SubElement(image, "skeleton", {"label": "object", "source": "auto", "z_order": "0"})
            for p in face["keypoints"]:
                x, y = _moved(p, xml_points.CVAT_ORIGIN)
                fields = {"label": p["name"], "source": "auto", "outside": "0", "occluded": "0"}
                ElementTree.SubElement(skeleton, "points", {**fields, "points": f"{x},{y}"})
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    write_text(out / "points.cvat.xml", f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n')


def write_deeplabcut(records: Iterable[Record], out: Path, keypoints: KeypointSet) -> None:
    """Write CollectedData_recombinator.csv; several faces in an image become individuals.

    `deeplabcut.convertcsv2h5` makes the .h5 that DeepLabCut reads.
    """
    listed = list(records)
    animals = max((len(r["faces"]) for r in listed), default=1)
    names = [f"individual{i}" for i in range(1, animals + 1)] if animals > 1 else []
    parts = [n for n in keypoints.names for _ in "xy"]
    rows: list[list[Any]] = [["scorer", *[SCORER] * len(parts) * max(1, animals)]]
    if names:
        rows.append(["individuals", *(n for n in names for _ in parts)])
    rows.append(["bodyparts", *parts * max(1, animals)])
    rows.append(["coords", *["x", "y"] * len(keypoints) * max(1, animals)])
    for record in listed:
        cells = [v for face in record["faces"] for p in face["keypoints"] for v in _moved(p, deeplabcut.ORIGIN)]
        rows.append([_in_project(record["file"]), *cells, *[""] * (len(rows[0]) - 1 - len(cells))])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    encoded = text.getvalue().encode(errors="backslashreplace")
    write_atomically(out / f"CollectedData_{SCORER}.csv", lambda path: path.write_bytes(encoded))


def _in_project(file: str) -> str:
    """Return a frame's path as a DeepLabCut project has it: labeled-data/VIDEO/FRAME."""
    parts = PurePath(os.path.abspath(file)).parts
    return "/".join(("labeled-data", *parts[-2:]))


def write_tps(records: Iterable[Record], out: Path, keypoints: KeypointSet) -> None:
    """Write points.tps, with y from the image's bottom: a specimen for each face, landmarks in the keypoints' order."""
    lines: list[str] = []
    specimens = ((record, face) for record in records for face in record["faces"])
    for number, (record, face) in enumerate(specimens):
        lines.append(f"LM={len(keypoints)}")
        for p in face["keypoints"]:
            x, y = _moved(p, tps.ORIGIN)
            lines.append(f"{x:.5f} {record['height'] - y:.5f}")
        lines += [f"IMAGE={_relative(record['file'], out)}", f"ID={number}"]
    encoded = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")
    write_atomically(out / "points.tps", lambda path: path.write_bytes(encoded))


def write_sleap(records: Iterable[Record], out: Path, keypoints: KeypointSet) -> None:
    """Write points.slp with predicted instances, through sleap-io. Images of one size are one video of SLEAP's."""
    sio = import_optional("sleap_io", "writing points.slp")
    edges = sorted({(keypoints.names[a], keypoints.names[b]) for path in keypoints.lines for a, b in pairwise(path)})
    skeleton = sio.Skeleton(list(keypoints.names), edges=edges)
    for a, b in keypoints.mirror:
        skeleton.add_symmetry(keypoints.names[a], keypoints.names[b])
    listed = list(records)
    by_size: dict[tuple[int, int], list[Record]] = {}
    for record in listed:
        by_size.setdefault((record["width"], record["height"]), []).append(record)
    frames = []
    for group in by_size.values():
        video = sio.Video.from_filename([os.path.abspath(r["file"]) for r in group])
        for i, record in enumerate(group):
            instances = [
                sio.PredictedInstance.from_numpy(
                    np.array([_moved(p, sleap.ORIGIN) for p in face["keypoints"]]), skeleton,
                    point_scores=np.array([p["confidence"] for p in face["keypoints"]]), score=face["confidence"],
                )
                for face in record["faces"]
            ]  # fmt: skip
            frames.append(sio.LabeledFrame(video=video, frame_idx=i, instances=instances))
    labels = sio.Labels(frames)
    write_atomically(out / "points.slp", lambda path: labels.save(str(path)))


ToolWriter = Callable[[Iterable[Record], Path, KeypointSet], None]


class Writer(NamedTuple):
    """How a tool's format is written.

    Attributes:
        write: Takes the records, the folder for results, and the keypoint set.
        file: What it writes in that folder.
        needs: The module that it imports, if it is not always installed.
    """

    write: ToolWriter
    file: str
    needs: str = ""


WRITERS = {
    "labelme": Writer(write_labelme, "labelme"),
    "labelstudio": Writer(write_labelstudio, "points.labelstudio.json"),
    "cvat": Writer(write_cvat, "points.cvat.xml"),
    "dlc": Writer(write_deeplabcut, f"CollectedData_{SCORER}.csv"),
    "tps": Writer(write_tps, "points.tps"),
    "slp": Writer(write_sleap, "points.slp", needs="sleap_io"),
}
