"""Undamaged points files of four photographs in the formats of `recombinator.data.formats`, for `study fuzz`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.data.images import encode_image
from recombinator.data.readers.synthetic import draw_face, five_of
from recombinator.keypoints import FACE_5
from recombinator.utils.files import copy_file

SIDE = 160  # of the photographs, in pixels


def write_points(folder: Path, rng: np.random.Generator) -> None:
    """Write the points of four photographs in the formats of `recombinator.data.formats`."""
    folder.mkdir()
    faces = {f"{i}.png": np.round(five_of(draw_face(rng)[1]) % SIDE, 2).tolist() for i in range(4)}
    named = {file: dict(zip(FACE_5.names, points, strict=True)) for file, points in faces.items()}
    for file in faces:
        (folder / file).write_bytes(encode_image(np.full((SIDE, SIDE), 99, np.uint8), 0))
    rows = ["file,face,keypoint,x,y,confidence"]
    rows += [f"{file},1,{n},{x},{y},0.9" for file, points in named.items() for n, (x, y) in points.items()]
    wide = ["file," + ",".join(f"{n}_x,{n}_y" for n in FACE_5.names)]
    wide += [f"{file}," + ",".join(f"{x},{y}" for x, y in points) for file, points in faces.items()]
    objects = [
        {"file": file, "keypoints": [{"name": n, "x": x, "y": y} for n, (x, y) in points.items()]}
        for file, points in named.items()
    ]
    texts = {
        "rows.csv": "\n".join(rows), "wide.csv": "\n".join(wide), "objects.json": json.dumps(objects),
        "lines.jsonl": "\n".join(map(json.dumps, objects)), "minimal.json": json.dumps(_label_studio_minimal(named)),
        "coco.json": json.dumps(_coco(faces)),
        "boxes.csv": "file,x,y,width,height\n0.jpg,10,10,60,60\n1.jpg,5,5,80,80",
        "face.pts": "\n".join(f"{x:.1f} {y:.1f}" for x, y in rng.uniform(0, 99, (68, 2))),
        "labelme.json": json.dumps(_labelme(named)), "labelstudio.json": json.dumps(_label_studio(named)),
        "via.json": json.dumps(_via(named)), "cvat.xml": _cvat(named), "dlib.xml": _dlib(named),
        "face.tps": _tps(faces), "CollectedData_a.csv": _deeplabcut(faces),
        "data.yaml": "path: .\ntrain: images\nkpt_shape: [5, 3]\nnames:\n  0: face\n",
    }  # fmt: skip
    for name, text in texts.items():
        (folder / name).write_text(text + "\n", encoding="utf-8")
    for part in ("images", "labels"):
        (folder / part).mkdir()
    for file, points in faces.items():
        copy_file(folder / file, folder / "images" / file)
        line = " ".join(["0 0.5 0.5 1 1", *(f"{x / SIDE} {y / SIDE} 2" for x, y in points)])
        (folder / "labels" / f"{Path(file).stem}.txt").write_text(line + "\n", encoding="utf-8")


Faces = dict[str, list[list[float]]]
Named = dict[str, dict[str, list[float]]]


def _coco(faces: Faces) -> dict[str, Any]:
    flat = [[v for x, y in points for v in (x, y, 2)] for points in faces.values()]
    return {
        "images": [{"id": i, "file_name": file, "width": SIDE, "height": SIDE} for i, file in enumerate(faces)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "keypoints": k} for i, k in enumerate(flat)],
        "categories": [{"id": 1, "name": "face", "keypoints": list(FACE_5.names)}],
    }


def _labelme(named: Named) -> dict[str, Any]:
    file, points = next(iter(named.items()))
    shapes = [{"label": n, "points": [p], "shape_type": "point", "group_id": None} for n, p in points.items()]
    return {"shapes": shapes, "imagePath": file, "imageWidth": SIDE, "imageHeight": SIDE}


def _label_studio(named: Named) -> list[dict[str, Any]]:
    tasks = []
    for i, (file, points) in enumerate(named.items()):
        size = {"original_width": SIDE, "original_height": SIDE, "image_rotation": 0, "type": "keypointlabels"}
        results = [
            {**size, "value": {"x": 100 * x / SIDE, "y": 100 * y / SIDE, "width": 0.4, "keypointlabels": [n]}}
            for n, (x, y) in points.items()
        ]
        image = {"image": f"/data/upload/3/0a1b2c3d-{file}"}
        tasks.append({"id": i, "data": image, "annotations": [{"result": results}]})
    return tasks


def _label_studio_minimal(named: Named) -> list[dict[str, Any]]:
    size = {"original_width": SIDE, "original_height": SIDE}
    return [
        {**task["data"], "id": task["id"], "kp": [{**r["value"], **size} for r in task["annotations"][0]["result"]]}
        for task in _label_studio(named)
    ]


def _via(named: Named) -> dict[str, Any]:
    images = {}
    for file, points in named.items():
        regions = [
            {"shape_attributes": {"name": "point", "cx": x, "cy": y}, "region_attributes": {"name": n}}
            for n, (x, y) in points.items()
        ]
        images[f"{file}123"] = {"filename": file, "size": 123, "regions": regions, "file_attributes": {}}
    return {"_via_img_metadata": images}


def _cvat(named: Named) -> str:
    text = "<annotations><version>1.1</version>"
    for i, (file, points) in enumerate(named.items()):
        marks = "".join(
            f'<points label="{n}" occluded="0" outside="0" points="{x},{y}"/>' for n, (x, y) in points.items()
        )
        text += (
            f'<image id="{i}" name="{file}" width="{SIDE}" height="{SIDE}"><skeleton label="face">{marks}</skeleton>'
        )
        text += "</image>"
    return text + "</annotations>"


def _dlib(named: Named) -> str:
    text = "<dataset><images>"
    for file, points in named.items():
        parts = "".join(f'<part name="{n}" x="{x}" y="{y}"/>' for n, (x, y) in points.items())
        text += f'<image file="{file}"><box top="1" left="2" width="9" height="9">{parts}</box></image>'
    return text + "</images></dataset>"


def _tps(faces: Faces) -> str:
    return "".join(
        "LM=5\n" + "".join(f"{x} {y}\n" for x, y in points) + f"IMAGE={file}\nID={i}\n"
        for i, (file, points) in enumerate(faces.items())
    )


def _deeplabcut(faces: Faces) -> str:
    rows = [["scorer"], ["bodyparts"], ["coords"]]
    for name in FACE_5.names:
        for axis in "xy":
            for row, cell in zip(rows, ("a", name, axis), strict=True):
                row.append(cell)
    rows += [[file, *(str(v) for point in points for v in point)] for file, points in faces.items()]
    return "\n".join(",".join(row) for row in rows)
