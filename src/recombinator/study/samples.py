"""Undamaged files of every kind, for `study fuzz`: tables, a small training, its weights, images, videos."""

from __future__ import annotations

import json
import pickle
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from recombinator.data.images import encode_image
from recombinator.data.readers.synthetic import draw_face, five_of, prepare_synthetic
from recombinator.evaluation.tables import evaluate
from recombinator.fit.plan import Plan
from recombinator.keypoints import FACE_5
from recombinator.models import RCN, create_model
from recombinator.predict.finder import FACE_FINDER
from recombinator.predict.result import Face
from recombinator.study.hdf5_samples import write_anno, write_sleap
from recombinator.study.point_samples import SIDE, write_points
from recombinator.training.recipe import Recipe, get_recipe
from recombinator.training.run import train
from recombinator.utils.files import copy_file, write_json, write_text
from recombinator.utils.provenance import provenance
from recombinator.weights.files import Weights, load_weights, save_weights, write_pair
from recombinator.weights.shipped import FOLDER

GRAPH = "rcn-6-fast-mtfl"  # the smallest graph whose tensors are in a neighboring file
GRAPHS = (f"{GRAPH}.onnx", f"{GRAPH}.safetensors", f"{GRAPH}-int8.onnx")
MODEL = "rcn-4"
OPTIONS = {"width": 0.1, "size": 32}
IMAGES = tuple(f"a.{e}" for e in ("png", "jpg", "bmp", "tif", "webp", "gif", "jp2", "ppm", "tga"))
VIDEOS = {"a.avi": "MJPG", "a.mp4": "mp4v"}  # codec by name


def make_samples(folder: Path) -> None:
    """Write the undamaged files."""
    rng = np.random.default_rng(0)
    prepare_synthetic(folder / "tables", faces=24, keypoints=5, seed=1, size=64)
    train(MODEL, folder / "tables", folder / "run", recipe=small_recipe(), options=OPTIONS, device="cpu")
    weights = load_weights(folder / "run")
    calibration = {"temperature": 1.2, "least": 0.1, "covered_below": [0.1] * 5}
    (folder / "weights").mkdir()
    save_weights(folder / "weights" / "image.safetensors", weights.calibrated(calibration))
    denoiser = create_model("denoiser-lite", 5, size=32, width=8, layers=1, heads=1, modes=4)
    template = [[0.3, 0.3], [0.7, 0.3], [0.5, 0.5], [0.35, 0.7], [0.65, 0.7]]
    rule = weights.crop_rule
    save_weights(folder / "weights" / "denoiser.safetensors", Weights(denoiser, FACE_5, rule, template, {}))
    network, other = (folder / "weights" / f"{name}.safetensors" for name in ("image", "denoiser"))
    write_pair(folder / "weights" / "pair.json", network, other, 0.5, 1, calibration)
    write_json(folder / "weights" / "shift.json", {"shifted": "image.safetensors", "by": 1, "calibration": calibration})
    for name in GRAPHS:
        copy_file(FOLDER / name, folder / "graph" / name)
    for file in FACE_FINDER.parent.iterdir():
        copy_file(file, folder / "finder" / file.name)
    report = evaluate(weights, folder / "tables" / "test.parquet")[1]
    result = {"kind": "evaluation", **report, "provenance": provenance()}
    write_json(folder / "results" / "rcn-6-mtfl.json", result)
    write_points(folder / "points", rng)
    _write_predictions(folder / "predictions", rng)
    _write_list(folder / "list", rng)
    _write_images(folder / "images", rng)
    _write_videos(folder / "videos", rng)
    _write_arrays(folder / "arrays" / "authors.pickle", weights)
    if find_spec("h5py"):
        _write_afw(folder / "afw", rng)
    if find_spec("sleap_io"):
        _write_sleap(folder / "sleap", folder / "videos" / "a.avi", rng)


def small_recipe() -> Recipe:
    """Return the recipe of the small training."""
    return get_recipe("fast", MODEL, epochs=2, batch=16, decay=0.5)


def _write_list(folder: Path, rng: np.random.Generator) -> None:
    """Write photographs and MTFL's list of them."""
    folder.mkdir()
    listing = []
    for name, quality in (("0.png", 0), ("1.jpg", 90), ("2.jpg", 90)):
        image, points = draw_face(rng)
        (folder / name).write_bytes(encode_image(image, quality))
        listing.append(" ".join([name, *(f"{v:.2f}" for v in five_of(points).T.reshape(-1)), "1 2 2 3"]))
    write_text(folder / "training.txt", "\n".join(listing) + "\n")


def _write_afw(folder: Path, rng: np.random.Generator) -> None:
    """Write photographs and AFW's list of them."""
    folder.mkdir()
    photographs = []
    for name in ("0.jpg", "1.jpg"):
        image, points = draw_face(rng)
        (folder / name).write_bytes(encode_image(image, 90))
        five = five_of(points)
        photographs.append((name, [np.insert(five, 4, five[3:].mean(axis=0), axis=0) + 0.5] * 2))
    write_anno(folder / "anno.mat", photographs)


def _write_sleap(folder: Path, video: Path, rng: np.random.Generator) -> None:
    """Write images and a video, and SLEAP's files for them."""
    folder.mkdir()
    faces = [draw_face(rng) for _ in range(3)]
    for i, (image, _) in enumerate(faces):
        (folder / f"{i}.png").write_bytes(encode_image(image[:SIDE, :SIDE], 0))
    copy_file(video, folder / video.name)
    write_sleap(folder, [five_of(points) % SIDE for _, points in faces], folder / video.name)


def _write_images(folder: Path, rng: np.random.Generator) -> None:
    """Write one small photograph in each format of IMAGES."""
    from PIL import Image

    folder.mkdir()
    image = Image.fromarray(draw_face(rng)[0]).convert("RGB").resize((48, 64))
    for name in IMAGES:
        image.convert("P" if name.endswith("gif") else "RGB").save(folder / name)


def _write_videos(folder: Path, rng: np.random.Generator) -> None:
    """Write a short video in each format of VIDEOS."""
    import cv2

    folder.mkdir()
    image = np.ascontiguousarray(draw_face(rng)[0][:SIDE, :SIDE])
    for name, codec in VIDEOS.items():
        writer = cv2.VideoWriter(str(folder / name), cv2.VideoWriter.fourcc(*codec), 25.0, image.shape[1::-1])
        for i in range(6):
            writer.write(np.roll(image, i, axis=1))
        writer.release()


def _write_arrays(path: Path, weights: Weights) -> None:
    """Write a network's parameters as the authors' release has them: one pickled array after the other."""
    net = weights.net
    assert isinstance(net, RCN)
    path.parent.mkdir()
    with open(path, "wb") as stream:
        for layer in (*net.trunk, *(conv for _, convs in net.branches() for conv in convs)):
            for parameter in layer.parameters():
                pickle.dump(parameter.detach().numpy(), stream, protocol=2)


def _write_predictions(folder: Path, rng: np.random.Generator) -> None:
    face = Face(five_of(draw_face(rng)[1]), np.full(5, 0.9), np.array([10.0, 10.0, 80.0]), FACE_5).to_dict()
    lines = [
        {"file": f"{i}.jpg", "weights": "w", "stem": str(i), "width": SIDE, "height": SIDE, "faces": [face] * i}
        for i in range(3)
    ]
    write_text(folder / "points.jsonl", "".join(json.dumps(line) + "\n" for line in lines))
    plan = Plan("image", 80, 2, 64, MODEL, "", 1, 40, 0.1, 0.1, False, 16, reasons=("one", "two"))
    write_json(folder / "plan.json", plan.to_dict())
