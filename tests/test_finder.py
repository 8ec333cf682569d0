"""The finder: its squares, scenes, loss, decoding, training on drawn objects, and files with a finder inside."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torch import Generator

from recombinator.data.crops import RULES
from recombinator.data.rows import crop_row
from recombinator.data.table import FaceTable, TableInfo, file_limits, write_table
from recombinator.deploy.onnx import export
from recombinator.evaluation.relation import FIVE_OF_68, relation
from recombinator.keypoints import FACE_5, FACE_68, KeypointSet
from recombinator.models import create_model
from recombinator.models.finder import OUTPUTS, REFERENCE, STRIDE
from recombinator.predict.detect import detector_by_name
from recombinator.predict.engine import load_engine
from recombinator.predict.finder import (
    FinderDescription,
    FinderDetector,
    Found,
    OnnxFinder,
    TorchFinder,
    as_input,
    decode_maps,
    resized,
    suppressed,
)
from recombinator.predict.predictor import Predictor
from recombinator.training import finder_task
from recombinator.training.finder_task import finding_loss, group, matched
from recombinator.training.loop import Trainer
from recombinator.training.recipe import get_recipe
from recombinator.transforms.augment import Augment
from recombinator.transforms.scenes import Album, draw_scenes
from recombinator.transforms.squares import oriented_squares
from recombinator.utils.errors import InputError
from recombinator.weights.files import Weights, load_weights, save_weights

ARROW = KeypointSet("arrow", ("tip", "left", "right"), mirror=((1, 2),))
SHAPE = np.array([(0.0, -1.0), (-0.7, 0.8), (0.7, 0.8)])  # of the drawn objects, upright
PLAIN = Augment(shift=0, zoom=0, degrees=30, turned=0, occlude=(0, 0))


def turned(points, degrees):
    a = np.radians(degrees)
    return points @ np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])


def draw(image, points, value=230):
    """Draw a filled arrow; OpenCV counts from pixel centers, with 4 bits of fraction here."""
    cv2.fillPoly(image, [np.round((points - 0.5) * 16).astype(np.int32)], value, shift=4)


def whole_images(n, objects=1, size=96, seed=0, empty=0):
    """A table of whole images with arrows of random place, size and rotation; some images have none."""
    rng = np.random.default_rng(seed)
    images, points, mask, files = [], [], [], []
    for i in range(n):
        image = np.full((size, size), 40, np.uint8) + rng.integers(0, 30, (size, size)).astype(np.uint8)
        count = 0 if i < empty else objects
        for _ in range(max(count, 1)):
            scale, center = rng.uniform(10, 16), rng.uniform(30, size - 30, 2)
            own = turned(SHAPE * scale, rng.uniform(-40, 40)) + center
            if count:
                draw(image, own)
            points.append(own)
            mask.append([count > 0] * 3)
            files.append(f"{i}.png")
        images += [image] * max(count, 1)
    frame = np.tile(np.eye(2, 3), (len(images), 1, 1))
    return FaceTable(
        info=TableInfo("arrows", "train", ARROW, "image", size, True), images=np.stack(images)[:, None],
        points=np.stack(points).astype(np.float32), mask=np.array(mask),
        boxes=np.tile(np.array([0, 0, size], np.float32), (len(images), 1)), to_file=frame,
        limits=file_limits(frame, np.full((len(images), 2), size)), files=files, subsets=[""] * len(images),
        fingerprint="0" * 16,
    )  # fmt: skip


def test_squares_follow_their_objects():
    rng = np.random.default_rng(0)
    face = np.array([(-20.0, 0), (20, 0), (0, 22), (-16, 44), (16, 44)])
    faces = np.stack([face + rng.normal(0, 0.5, face.shape) for _ in range(40)])
    mask = np.ones((40, 5), bool)
    before = oriented_squares(faces, mask, RULES["mtfl"])
    assert np.abs(before[:, 3]).max() < 5 and abs(before[:, 3].mean()) < 1
    for degrees, scale in ((70, 2.0), (-130, 0.5)):
        moved = faces.copy()
        moved[:5] = turned(faces[:5], degrees) * scale + [30, -900]
        after = oriented_squares(moved, mask, RULES["mtfl"])
        expected = turned(before[:5, :2], degrees) * scale + [30, -900]
        middle = np.median(after[5:, 3])  # the mean orientation moves a little with the turned ones
        assert np.abs((after[:5, 3] - middle) - degrees - (before[:5, 3] - np.median(before[5:, 3]))).max() < 2
        assert np.abs(after[:5, :2] - expected).max() < 0.06 * 130 * scale
        assert after[:5, 2] == pytest.approx(before[:5, 2] * scale, rel=0.05)
    upright = RULES["mtfl"].box(faces[0] + 500, 0.95, 4000, 4000)
    assert before[0, 2] == pytest.approx(upright[2], rel=0.03)


def test_scenes_show_objects_where_they_say():
    table = whole_images(48, empty=4)
    album = Album.of(*group(table, "object"))
    assert len(album) == 48 and album.empty.tolist() == [0, 1, 2, 3]
    scenes = draw_scenes(album, torch.arange(48), 96, replace(PLAIN, flip=True), Generator().manual_seed(3))
    again = draw_scenes(album, torch.arange(48), 96, replace(PLAIN, flip=True), Generator().manual_seed(3))
    assert torch.equal(scenes.pixels, again.pixels) and scenes.pixels.shape == (48, 1, 96, 96)
    base, tip = np.array([(0.2, 0.3), (-0.2, 0.3)]), np.array([(0.2, -0.3), (-0.2, -0.3)])  # beside, in sides
    checked = 0
    for image, objects in zip(scenes.pixels[:, 0].numpy(), scenes.objects.numpy(), strict=True):
        for x, y, side, angle in objects[np.isfinite(objects).all(axis=1)]:
            edge = 0.55 * side
            if side < 20 or not (edge < x < 96 - edge and edge < y < 96 - edge) or np.isfinite(objects).sum() > 4:
                continue
            seen = [image[tuple(np.floor(turned(p * side, angle) + [x, y])[::-1].astype(int))] for p in (*base, *tip)]
            assert min(seen[:2]) > 150 > max(seen[2:]), (x, y, side, angle)
            checked += 1
    assert checked >= 3


def perfect(objects, size):
    """The maps that a perfect finder would give."""
    cells = size // STRIDE
    maps = torch.zeros(1, len(OUTPUTS), cells, cells)
    maps[:, 0] = -8
    for x, y, side, angle in objects:
        for j in range(cells):
            for i in range(cells):
                dx, dy = x / STRIDE - (i + 0.5), y / STRIDE - (j + 0.5)
                if max(abs(dx), abs(dy)) <= 1.5:
                    a = np.radians(angle)
                    maps[0, 1:, j, i] = torch.tensor([dx, dy, np.log(side / REFERENCE), np.cos(a), np.sin(a)])
                if max(abs(dx), abs(dy)) <= 0.5:
                    maps[0, 0, j, i] = 8
    return maps


def test_loss_and_decoding_agree():
    objects = np.array([(21.3, 50.2, 30.0, 35.0), (70.0, 33.7, 18.0, -120.0)])
    maps = perfect(objects, 96)
    padded = torch.cat([torch.tensor(objects).float(), torch.full((1, 4), torch.nan)])[None]
    best = float(finding_loss(maps, padded, None))
    assert best < 0.05
    for change in range(len(OUTPUTS)):
        worse = maps.clone()
        worse[:, change] += 1 if change else -12
        assert float(finding_loss(worse, padded, None)) > best + 0.1
    found = decode_maps(maps[0].numpy(), 0.5)
    order = np.argsort(found.squares[:, 0])
    assert found.squares[order] == pytest.approx(objects, abs=1e-3) and (found.scores > 0.99).all()
    nothing = torch.full((1, 2, 4), torch.nan)
    assert torch.isfinite(finding_loss(maps, nothing, None))
    # where objects may be unlabeled, a confident detection costs less
    assert finding_loss(maps, nothing, torch.ones(1, 96, 96) > 0) < 0.2 * finding_loss(maps, nothing, None)


def test_suppression_equals_the_obvious_version():
    rng = np.random.default_rng(1)
    squares = np.column_stack([rng.uniform(0, 100, (60, 2)), rng.uniform(10, 60, 60), np.zeros(60)])
    found = Found(squares, rng.uniform(0, 1, 60))
    kept: list[int] = []
    for i in np.argsort(-found.scores):
        overlaps = []
        for k in kept:
            low = np.maximum(squares[i, :2] - squares[i, 2] / 2, squares[k, :2] - squares[k, 2] / 2)
            high = np.minimum(squares[i, :2] + squares[i, 2] / 2, squares[k, :2] + squares[k, 2] / 2)
            shared = np.clip(high - low, 0, None).prod()
            overlaps.append(shared / (squares[i, 2] ** 2 + squares[k, 2] ** 2 - shared))
        if all(o <= 0.4 for o in overlaps):
            kept.append(i)
    assert suppressed(found).scores.tolist() == found.scores[kept].tolist()
    hit, right = matched(suppressed(found), squares)
    assert hit.any() and right.all()


def test_the_network_takes_any_size_and_moves_with_its_input():
    net = create_model("finder", 3, size=64).eval()
    image = torch.rand(1, 1, 512, 544, generator=Generator().manual_seed(0)) * 255
    with torch.no_grad():
        here, moved = net(image), net(image.roll((32, 32), dims=(2, 3)))
    assert here.shape == (1, 6, 128, 136)
    assert torch.allclose(here[..., 60:68, 60:76], moved[..., 68:76, 68:84], atol=1e-4)
    macs = create_model("finder", 3, size=128).multiply_adds()
    assert macs == 4 * net.multiply_adds()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finder after a short training on arrows."""
    out = tmp_path_factory.mktemp("finder")
    recipe = get_recipe("fast", "finder", epochs=25, batch=16, ema=0.9)
    recipe = replace(recipe, warmup_steps=10, learning_rate=4e-3, augment=PLAIN)
    options = {"size": 64, "width": 0.5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finder_task, "VALIDATION_SCENES", 64)  # for speed
        trainer = Trainer("finder", whole_images(96, empty=12), whole_images(16, seed=1), out, recipe, options=options)
    trainer.fit()
    return out


def test_a_finder_learns_to_find(trained):
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["valid"] < 60 < lines[0]["valid"]
    weights = load_weights(trained)
    assert weights.crop_rule == "object" and 0 < float(weights.net.threshold) < 1
    assert np.abs(np.array(weights.template).mean(axis=0) - 0.5).max() < 0.2
    image = np.full((200, 260), 50, np.uint8)
    true = turned(SHAPE * 26, 20) + [150, 90]
    draw(image, true)
    detections = FinderDetector(TorchFinder(weights)).detect(image)
    best = max(detections, key=lambda d: d.score)
    x, y, side, _ = best.box
    assert np.hypot(x + side / 2 - 150, y + side / 2 - 90) < 20 and abs(best.angle - 20) < 40


def test_a_file_holds_the_finder_of_its_localizer(trained, tmp_path):
    finder = load_weights(trained)
    net = create_model("rcn-4", 3, size=32).eval()
    template = (SHAPE / 4 + 0.5).tolist()
    save_weights(tmp_path / "both.safetensors", Weights(net, ARROW, "object", template, {}, finder=finder))
    loaded = load_weights(tmp_path / "both.safetensors")
    assert loaded.finder is not None and loaded.finder.template == finder.template
    for (name, a), b in zip(finder.net.state_dict().items(), loaded.finder.net.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    image = np.full((120, 160), 50, np.uint8)
    draw(image, SHAPE * 20 + [80, 60])
    predictors = [Predictor(load_engine(tmp_path / "both.safetensors"))]
    if pytest.importorskip("onnxscript"):
        export(tmp_path / "both.safetensors", tmp_path / "both.onnx")
        predictors.append(Predictor(load_engine(tmp_path / "both.onnx")))
        predictors.append(pickle.loads(pickle.dumps(predictors[1].detector)) and predictors[1])
    found = [p.predict(image, min_confidence=0.0) for p in predictors]
    assert len(found[0]) >= 1
    for other in found[1:]:
        assert [f.points for f in other] == [pytest.approx(f.points, abs=0.02) for f in found[0]]


def test_an_exported_finder_equals_the_network(trained, tmp_path):
    pytest.importorskip("onnxscript")
    export(trained, tmp_path / "f.onnx")
    exported, weights = OnnxFinder(tmp_path / "f.onnx"), load_weights(trained)
    assert exported.about.rule == "object" and exported.about.threshold == pytest.approx(float(weights.net.threshold))
    for shape in ((1, 1, 64, 96), (2, 1, 128, 32)):
        image = (np.random.default_rng(0).random(shape) * 255).astype(np.float32)
        assert np.abs(exported.run(image) - TorchFinder(weights).run(image)).max() < 1e-3
    copy = pickle.loads(pickle.dumps(exported))
    assert np.array_equal(copy.run(image), exported.run(image))
    assert detector_by_name(f"finder:{tmp_path / 'f.onnx'}").detect(np.zeros((50, 70), np.uint8)) == []


def test_a_finder_in_8_bits_finds_the_same(trained, tmp_path):
    pytest.importorskip("onnxscript")
    table = whole_images(24)
    rows = [
        crop_row(image[0], points, file, RULES["image"], size=96, gray=True, quality=0)
        for image, points, file in zip(table.images, table.points, table.files, strict=True)
    ]
    write_table(tmp_path / "whole.parquet", table.info, rows)
    export(trained, tmp_path / "8.onnx", int8=tmp_path / "whole.parquet")
    whole, eighth = TorchFinder(load_weights(trained)), OnnxFinder(tmp_path / "8.onnx")
    assert (tmp_path / "8.onnx").stat().st_size < 2 * sum(p.numel() for p in whole.net.parameters())
    images = whole_images(8, seed=5).images.astype(np.float32)
    a, b = whole.run(images), eighth.run(images)
    assert np.abs(a - b)[:, 0].mean() < 0.1 * a[:, 0].std() and not np.array_equal(a, b)
    with pytest.raises(InputError, match="has no score maps"):
        export(trained, tmp_path / "x.onnx", maps=True)


def test_the_input_of_an_image():
    image = np.arange(60 * 100, dtype=np.uint8).reshape(60, 100)
    pixels = as_input(image, 1)
    assert pixels.shape == (1, 1, 64, 128)
    assert np.array_equal(pixels[0, 0, :60, :100], image) and (pixels[0, 0, 60:] == 128).all()
    assert as_input(np.zeros((128, 64, 3), np.uint8), 3).shape == (1, 3, 128, 64)
    assert np.array_equal(as_input(image, 3)[0, 2], pixels[0, 0])  # a gray image fills all channels


def test_each_size_is_made_of_the_larger_one():
    image = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (400, 600), np.uint8), (0, 0), 4)
    half = resized(image, image.shape, 0.5)
    assert half.shape == (200, 300) and resized(half, image.shape, 0.5) is half
    both = [resized(x, image.shape, 0.2).astype(int) for x in (image, half)]
    assert both[0].shape == (80, 120) and np.abs(both[0] - both[1]).max() <= 2
    assert resized(image, image.shape, 1.5).shape == (600, 900)


class Fixed:
    """An engine that sees one object of 40 pixels wherever a bright pixel is."""

    about = FinderDescription("mtfl", 1, 0.5, {"300w": (0.9, 0.1)})

    def run(self, images):
        maps = np.full((1, 6, images.shape[2] // 4, images.shape[3] // 4), -9, np.float32)
        _, _, y, x = np.unravel_index(images.argmax(), images.shape)
        maps[0, :, y // 4, x // 4] = [5, 0, 0, np.log(40 / REFERENCE), 1, 0]
        return maps


def test_detections_are_in_pixels_of_the_image():
    image = np.zeros((600, 800), np.uint8)
    image[296:304, 396:404] = 255
    detector = FinderDetector(Fixed())
    found = detector.detect(image)
    assert detector.relation == {"mtfl": (1.0, 0.0), "300w": (0.9, 0.1)}
    sides = sorted(d.box[2] for d in found)
    # seen at 128, 400 and 800 pixels: squares of 40 pixels there
    assert sides == pytest.approx([40, 80, 250], rel=0.02)
    assert all(np.hypot(d.box[0] + d.box[2] / 2 - 400, d.box[1] + d.box[3] / 2 - 300) < 30 for d in found)


def test_a_search_looks_for_less_certain_larger_and_smaller_objects():
    class Doubtful(Fixed):
        """An engine that is less certain of the bright pixel, and sees one more object in one size of the image."""

        def __init__(self, rows=None):
            self.rows = rows

        def run(self, images):
            maps = super().run(images)
            maps[0, 0][maps[0, 0] > 0] = np.log(0.3 / 0.7)
            if images.shape[2] == self.rows:
                maps[0, :, 1, 2] = [5, 0, 0, np.log(40 / REFERENCE), 1, 0]
            return maps

    image = np.zeros((1200, 1600), np.uint8)
    image[592:608, 792:808] = 255
    found = list(FinderDetector(Doubtful()).search(image))
    assert FinderDetector(Doubtful()).detect(image) == [] == found[0] and found[2:] == []
    # seen at 64, 128, 400 and 1250 pixels
    assert [d.box[2] for d in found[1]] == pytest.approx([1000, 500, 160, 51.2], rel=0.02)
    assert all(d.score == pytest.approx(0.3) for d in found[1])
    large = cv2.resize(image, (2000, 1500))
    found = list(FinderDetector(Doubtful(rows=1504)).search(large))
    assert [len(f) for f in found] == [0, 4, 1]  # only a longer side of 2000 pixels has 1504 rows
    assert found[2][0].box == pytest.approx([-10, -14, 40, 40])
    twice = np.repeat(np.repeat(large, 2, 0), 2, 1)  # shrunk first
    assert list(FinderDetector(Doubtful(rows=1504)).search(twice)) == [[d.scaled(2) for d in f] for f in found]


def test_relation_of_two_rules():
    rng = np.random.default_rng(2)
    points = rng.uniform(40, 120, (1, 68, 2)) + rng.normal(0, 0.5, (6, 68, 2))
    five = [(45, 60), (85, 60), (65, 80), (50, 100), (80, 100)]
    for place, indices in zip(five, FIVE_OF_68, strict=True):
        points[:, list(indices)] = np.array(place) + rng.normal(0, 0.1, (6, 1, 2))
    base = whole_images(6, size=160)
    table = replace(
        base, info=replace(base.info, keypoints=FACE_68, crop_rule="300w"), points=points.astype(np.float32),
        mask=np.ones((6, 68), bool),
    )  # fmt: skip
    side, below = relation("mtfl", FACE_5, table)
    own = oriented_squares(np.tile(np.array(five, float), (6, 1, 1)), np.ones((6, 5), bool), RULES["mtfl"])[0]
    wanted = RULES["300w"].box(points[0] + 500, 1.3, 4000, 4000)
    assert side == pytest.approx(wanted[2] / own[2], rel=0.05)
    assert below == pytest.approx((wanted[1] - 500 + wanted[2] / 2 - own[1]) / own[2], abs=0.05)
    with pytest.raises(InputError, match="can be related to tables of face-68"):
        relation("object", ARROW, table)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: create_model("finder", 5, size=100), "must be a multiple of 32"),
        (lambda t: create_model("finder", 5, rule="image"), "unknown rule 'image'"),
        (lambda t: OnnxFinder(t / "none.onnx"), "No such file"),
        (lambda t: OnnxFinder(t / "a.onnx", "bm8gZ3JhcGg="), "a.onnx: not a readable ONNX file"),
        (lambda t: detector_by_name("cat"), "unknown detector 'cat'; expected one of auto, faces, haar"),
        (lambda t: group(replace(whole_images(2), info=replace(whole_images(2).info, crop_rule="object")), "object"),
         "a finder learns from whole images"),
    ],
)  # fmt: skip
def test_errors_say_what_to_do(call, words, tmp_path):
    with pytest.raises(InputError, match=words):
        call(tmp_path)


def test_a_finder_locates_no_keypoints(trained):
    with pytest.raises(InputError, match="finds objects, not keypoints"):
        load_engine(trained)


def test_the_scores_of_finder_and_localizer_are_joined():
    from recombinator.predict.detect import both

    assert both(0.8, 0.5) == pytest.approx(0.8)  # a detector that gives no score changes nothing
    assert both(0.8, 0.8) == pytest.approx(16 / 17) and both(0.8, 0.2) == pytest.approx(0.5)
    assert both(1.0, 0.1) == 1 and both(0.0, 0.9) == 0 and both(1.0, 0.0) == 1
