"""From photograph to points, on the photograph that ships with the package."""

import csv
import io
import json
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from recombinator.data.images import SAMPLE_PHOTOGRAPH as HOPPER
from recombinator.data.images import as_image
from recombinator.data.points import read_points
from recombinator.keypoints import FACE_5, FACE_68
from recombinator.predict.drawing import draw_faces
from recombinator.predict.engine import TorchEngine, load_engine
from recombinator.predict.predictor import distinct, load
from recombinator.predict.result import Face, Faces
from recombinator.utils.errors import InputError

# placed by hand on the picture: eyes, nose tip, mouth corners; a few pixels of 82 between the eyes
BY_HAND = np.array([[224, 193], [306, 190], [268, 242], [232, 281], [300, 278]])


@pytest.fixture(scope="module")
def predictor():
    return load("rcn-6-mtfl")


@pytest.fixture(scope="module")
def hopper():
    return cv2.imread(str(HOPPER))[..., ::-1].copy()


def only(faces):
    assert len(faces) == 1
    return faces[0]


def test_the_photograph(predictor):
    face = only(predictor.predict(HOPPER))
    assert np.linalg.norm(face.points - BY_HAND, axis=1).max() < 8
    assert (face.confidence > 0.5).all() and (face.confidence <= 1.0001).all()
    x, y, side = face.box
    assert (face.points > [x, y]).all() and (face.points < [x + side, y + side]).all()
    plain = face.to_dict()
    assert [k["name"] for k in plain["keypoints"]] == list(predictor.keypoints.names) and len(plain["box"]) == 3


def test_points_move_with_the_image(predictor, hopper):
    face = only(predictor.predict(hopper))
    cell = face.box[2] / predictor.about.size  # one of the network's pixels: crops begin at whole file pixels
    moved = only(predictor.predict(np.roll(hopper, (31, 17), axis=(0, 1))))
    np.testing.assert_allclose(moved.points - [17, 31], face.points, atol=cell)
    doubled = only(predictor.predict(cv2.resize(hopper, None, fx=2, fy=2)))
    np.testing.assert_allclose(doubled.points / 2, face.points, atol=cell)
    mirrored = only(predictor.predict(hopper[:, ::-1].copy()))
    back = mirrored.points[predictor.keypoints.mirrored] * [-1, 1] + [hopper.shape[1], 0]
    np.testing.assert_allclose(back, face.points, atol=1.5 * cell)


def test_gray_alpha_16_bit_and_huge(predictor, hopper):
    face = only(predictor.predict(hopper))
    gray = cv2.cvtColor(hopper, cv2.COLOR_RGB2GRAY)
    for image in (gray, gray[..., None], np.dstack([hopper, gray]), hopper.astype(np.uint16) << 8):
        np.testing.assert_allclose(only(predictor.predict(image)).points, face.points, atol=1)
    huge = cv2.resize(hopper, (5120, 6000))
    np.testing.assert_allclose(only(predictor.predict(huge)).points / 10, face.points, atol=3)


def test_odd_shapes_and_pil(predictor, hopper):
    assert predictor.predict(np.zeros((1, 5000), np.uint8)) == []
    picture = Image.fromarray(hopper)
    face = only(predictor.predict(picture))
    for mode in ("CMYK", "P", "1"):
        assert as_image(picture.convert(mode)).shape == hopper.shape
    np.testing.assert_allclose(only(predictor.predict(picture.convert("CMYK"))).points, face.points, atol=1)


def test_given_boxes_and_passes(predictor, hopper):
    face = only(predictor.predict(hopper))
    x, y, side = face.box
    rough = [[x - 0.1 * side, y + 0.05 * side, 0.8 * side, 0.9 * side]]
    once = only(predictor.predict(hopper, rough, passes=1))
    twice = only(predictor.predict(hopper, rough, passes=2))
    assert np.linalg.norm(once.points - face.points, axis=1).mean() < 12
    assert np.linalg.norm(twice.points - face.points, axis=1).mean() < 4
    assert len(predictor.predict(hopper, [rough[0], rough[0]])) == 2


def test_doubtful_detections_are_dropped_unless_asked_for(hopper):
    class Two:
        def detect(self, image):
            return np.array([[155.0, 105, 222, 222], [10, 10, 60, 60]])  # the face, and a piece of flag

    predictor = load("rcn-6-mtfl", detector=Two())
    assert len(predictor.predict(hopper, min_confidence=0.0)) == 2
    assert len(predictor.predict(hopper)) == 1 and predictor.predict(hopper, min_confidence=1.0) == []


def test_no_face_is_an_empty_list(predictor):
    assert predictor.predict(np.full((200, 300, 3), 120, np.uint8)) == []
    assert predictor.predict(np.zeros((3, 3), np.uint8)) == []
    assert predictor.predict(np.zeros((100, 100), np.uint8), boxes=[]) == []


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((4, 4, 3), np.float32), "must be uint8"),
        (np.zeros((4, 4, 5), np.uint8), "must be"),
        (np.zeros((0, 4, 3), np.uint8), "must be"),
        (np.zeros(4, np.uint8), "must be"),
        ("nowhere.jpg", "cannot be read"),
        (HOPPER.parent, "cannot be read"),
        (HOPPER.read_bytes()[:1000], "not an image that can be decoded"),
        (io.StringIO("text"), "open the image in binary mode"),
        (None, "cv2.imread returns None"),
        (3.5, "a path, bytes, a binary file, an array, a Pillow image or a torch tensor, got float"),
        (torch.zeros(3, 8, 8) + 7, "values from 0 to 1, got 7 to 7"),
        (torch.full((8, 8), torch.nan), "values from 0 to 1"),
        (torch.zeros(8, 8, dtype=torch.int64), "must be uint8"),
        (torch.zeros(2, 3, 8, 8), r"got shape \(2, 3, 8, 8\)"),
        (Image.new("F", (8, 8)), "must be uint8"),
    ],
)
def test_bad_images_say_what_is_wrong(predictor, image, words):
    with pytest.raises(InputError, match=words):
        predictor.predict(image)


def test_bad_boxes_and_passes(predictor, hopper):
    for boxes in ([[1, 2, 3]], [[0, 0, -4, 5]], [[0, 0, np.nan, 5]]):
        with pytest.raises(InputError, match="boxes must be"):
            predictor.predict(hopper, boxes)
    with pytest.raises(InputError, match="passes=0"):
        predictor.predict(hopper, passes=0)
    elsewhere = ([[5000, 5000, 80, 80]], [[-90, 10, 80, 80]], [[0, 0, 1e300, 5]])
    for boxes in (*elsewhere, [100, 100, 80, 80], [[1, 2, 3, "x"]]):
        with pytest.raises(InputError, match="does not overlap|must be a list"):
            predictor.predict(hopper, boxes)


def test_a_detector_is_anything_with_detect(hopper):
    class Whole:
        def detect(self, image):
            return np.array([[150.0, 110.0, 220.0, 220.0]])

    class Listed:
        def __init__(self):
            self.boxes = [[150, 110, 220, 220]]

        def detect(self, image):
            return self.boxes

    assert len(load("rcn-6-mtfl", detector=Whole()).predict(hopper)) == 1
    listed = Listed()
    assert len(load("rcn-6-mtfl", detector=listed).predict(hopper)) == 1
    listed.boxes = []
    assert load("rcn-6-mtfl", detector=listed).predict(hopper) == []


def test_two_results_on_one_face_are_one():
    def face(points, confidence):
        return Face(points, np.full(5, confidence), np.array([0.0, 0.0, 100.0]), FACE_5)

    p = BY_HAND.astype(float)
    kept = distinct([face(p, 0.6), face(p + 3, 0.9), face(p + 400, 0.2)])
    assert [round(float(f.confidence[0]), 1) for f in kept] == [0.9, 0.2]


def test_drawing_changes_a_copy(predictor, hopper):
    face = only(predictor.predict(hopper))
    before = hopper.copy()
    drawn = draw_faces(hopper, [face])
    assert np.array_equal(hopper, before) and drawn.shape == hopper.shape
    changed = np.argwhere((drawn != hopper).any(axis=2))
    assert 100 < len(changed) < hopper.size / 3 / 5
    for x, y in face.points:
        assert (drawn[int(y), int(x)] != hopper[int(y), int(x)]).any()
    assert draw_faces(hopper[..., 0], [face]).shape == hopper.shape


def test_a_false_detection_that_collapses_is_no_face(predictor, hopper, monkeypatch):
    """Points that leave no crop: dropped where a detector said so, None where they were followed, named where given."""
    whole = type(predictor.engine).run

    def collapsed(self, crops):
        found = whole(self, crops)
        return replace(found, points=np.full_like(found.points, 40.0))

    monkeypatch.setattr(type(predictor.engine), "run", collapsed)
    assert predictor.predict(hopper, min_confidence=0) == []
    with pytest.raises(InputError, match="box 1: the points found in it leave no crop"):
        predictor.predict(hopper, boxes=[(150, 80, 230, 230)])
    assert predictor.follow(hopper, [np.full((5, 2), 100.0)]) == [None]


def test_pillow_images_are_turned_upright(hopper, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright: turn the stored picture clockwise
    Image.fromarray(np.ascontiguousarray(np.rot90(hopper))).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(as_image(Image.open(tmp_path / "turned.png")), hopper)
    (tmp_path / "half.jpg").write_bytes(HOPPER.read_bytes()[:20000])
    with pytest.raises(InputError, match="Pillow image cannot be decoded"):
        as_image(Image.open(tmp_path / "half.jpg"))


def test_tensors_are_images(hopper):
    gray = hopper[..., 0].copy()
    pixels = torch.from_numpy(hopper)
    for tensor, expected in (
        (torch.from_numpy(gray), gray), (pixels, hopper), (pixels.permute(2, 0, 1), hopper),
        (pixels.permute(2, 0, 1) / 255, hopper), (torch.from_numpy(gray)[None, ..., None][0].double() / 255, gray),
        ((pixels / 255).requires_grad_(), hopper),
    ):  # fmt: skip
        np.testing.assert_array_equal(as_image(tensor), expected)


def test_a_face_gives_its_keypoints_by_name(predictor):
    face = only(predictor.predict(HOPPER))
    np.testing.assert_array_equal(face["nose"], face.points[2])
    np.testing.assert_array_equal(face[-1], face["right_mouth"])
    assert face["left_eye"].shape == (2,) and face["left_eye"][0] < face["right_eye"][0]  # left in the image
    with pytest.raises(KeyError, match="did you mean 'left_eye'"):
        face["lefteye"]
    with pytest.raises(KeyError, match="expected one of left_eye, right_eye, nose, left_mouth, right_mouth"):
        face["chin"]
    with pytest.raises(IndexError):
        face[5]
    assert repr(face).startswith("Face(5 keypoints, confidence ") and "\n" not in repr(face)
    assert repr(predictor) == (
        "Predictor(model='rcn-6', keypoints=5 (face-5), engine='onnx', device='cpu', input=80x80 gray)"
    )


def test_faces_show_themselves_in_a_notebook(predictor, hopper):
    faces = predictor.predict(hopper)
    assert isinstance(faces, list) and isinstance(faces, Faces)
    shown = cv2.imdecode(np.frombuffer(faces._repr_png_(), np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(shown, draw_faces(hopper, faces))
    large = predictor.predict(cv2.resize(hopper, None, fx=3, fy=3))
    shown = cv2.imdecode(np.frombuffer(large._repr_png_(), np.uint8), cv2.IMREAD_COLOR)
    assert max(shown.shape) == 1024
    assert Faces(faces)._repr_png_() is None
    with pytest.raises(InputError, match="do not hold their image"):
        Faces(faces).draw()


def test_results_of_an_iterator_do_not_keep_its_arrays(predictor, hopper):
    from_array, from_path = predictor.predict(iter([hopper, HOPPER]))
    assert from_array.image is None and from_path.image == HOPPER
    assert [f.image is hopper for f in predictor.predict([hopper])] == [True]


def test_saved_faces_can_be_read_again(predictor, tmp_path):
    faces = predictor.predict(HOPPER)
    face = only(faces)
    face.save(tmp_path / "face.json")
    assert json.loads((tmp_path / "face.json").read_text()) == face.to_dict()
    for given, name in ((face, "face.csv"), (Faces([face, face]), "faces.csv")):
        given.save(tmp_path / name)
        sets = read_points(tmp_path / name, FACE_5, lambda error: pytest.fail(str(error)))
        assert len(sets) == (1 if given is face else 2)
        np.testing.assert_allclose(sets[-1].points, face.points, atol=0.006)
    rows = list(csv.DictReader((tmp_path / "face.csv").open()))
    assert rows[2]["keypoint"] == "nose" and float(rows[2]["confidence"]) == pytest.approx(face.confidence[2], abs=1e-4)
    faces.save(tmp_path / "faces.json")
    assert json.loads((tmp_path / "faces.json").read_text()) == {"faces": [face.to_dict()]}
    with pytest.raises(InputError, match=r"\.json or \.csv"):
        face.save(tmp_path / "face.txt")


def face_of(points, keypoints, side):
    """A face with points given as shares of its square, whose corner is at (side, side)."""
    return Face(points * side + side, np.full(len(points), 0.5), np.array([side, side, side], float), keypoints)


def shape_68():
    return np.array(load_engine("joint-68-300w").about.template)


@pytest.mark.parametrize("side", [50, 150, 600])
def test_markers_fit_the_face(side):
    gray = np.full((3 * side, 3 * side), 120, np.uint8)
    face = face_of(shape_68(), FACE_68, float(side))
    drawn = draw_faces(gray, [face], box=False, legend=False)
    low, high = face.points.min(axis=0).astype(int), face.points.max(axis=0).astype(int)
    inside = drawn[low[1] : high[1], low[0] : high[0]].astype(int)
    assert (np.abs(inside - 120).max(axis=2) > 40).mean() < 0.2  # most of the face stays visible
    for x, y in face.points:
        assert (drawn[int(y), int(x)] != 120).any()


def test_numbers_only_where_they_fit():
    def changed(side):
        face, gray = face_of(shape_68(), FACE_68, float(side)), np.full((3 * side, 3 * side), 120, np.uint8)
        plain, numbered = (draw_faces(gray, [face], numbers=n, legend=False) for n in (False, True))
        return face, (plain != numbered).any(axis=2)

    assert not changed(100)[1].any()
    face, ink = changed(400)
    assert ink.any()
    for x, y in face.points:  # no number covers a point
        assert not ink[int(y), int(x)]


def test_the_legend_keeps_clear_of_faces(predictor, hopper):
    face = only(predictor.predict(hopper))
    ink = (draw_faces(hopper, [face]) != draw_faces(hopper, [face], legend=False)).any(axis=2)
    rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
    assert rows.min() > face.points[:, 1].max() and columns.max() < hopper.shape[1] / 2
    shifted = replace(face, points=face.points * 0 + [[60, 580]] * 5)  # bottom left is taken
    ink = (draw_faces(hopper, [shifted]) != draw_faces(hopper, [shifted], legend=False)).any(axis=2)
    assert np.flatnonzero(ink.any(axis=0)).min() > hopper.shape[1] / 2
    small = hopper[150:250, 200:300]
    assert np.array_equal(draw_faces(small, [face]), draw_faces(small, [face], legend=False))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"device": "tpu"}, "unknown device 'tpu'; expected one of cpu, cuda, cuda:N"),
        ({"device": "cuda", "engine": "onnx"}, "ONNX Runtime runs on the CPU here; use the torch engine"),
        ({"device": "cuda"}, "torch finds no CUDA GPU on this machine; use device 'cpu'"),
    ],
)
def test_devices_that_cannot_be_used(arguments, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=words):
        load("rcn-6-mtfl", **arguments)


def test_torch_threads_are_limited_inside_calls_only(monkeypatch):
    before = torch.get_num_threads()
    other = 1 if before > 1 else 2
    engine = load_engine("rcn-6-mtfl", "torch", threads=other)
    assert isinstance(engine, TorchEngine) and torch.get_num_threads() == before
    seen = []
    engine.net.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    engine.run(np.zeros((1, 1, 80, 80), np.uint8))
    assert seen == [other] and torch.get_num_threads() == before


WITHOUT = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "matplotlib", "pyarrow"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
import importlib.util
importlib.util.find_spec = lambda name, find=importlib.util.find_spec: None if name == "torch" else find(name)
from recombinator.cli import main
main()
"""


def without_torch(*arguments, cwd):
    command = [sys.executable, "-c", WITHOUT, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd)


def test_a_misspelled_model_is_named_with_and_without_torch(tmp_path):
    sentence = "unknown model 'rcn-6-mtlf'; did you mean 'rcn-6-mtfl'?"
    for engine in (None, "onnx", "torch"):
        with pytest.raises(InputError) as error:
            load("rcn-6-mtlf", engine=engine)
        assert str(error.value) == sentence
    run = without_torch("predict", HOPPER, "--weights", "rcn-6-mtlf", cwd=tmp_path)
    assert run.returncode == 2 and run.stderr == f"error: {sentence}\n" and not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="runs/a: no such file or folder"):
        load("runs/a")
    with pytest.raises(InputError, match=r"nor a shipped name \(.*rcn-6-mtfl, "):
        load("nothing")


def test_the_demo_needs_neither_torch_nor_matplotlib(tmp_path):
    run = without_torch("demo", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert {p.name for p in (tmp_path / "out" / "demo").iterdir()} == {
        f"grace_hopper.{number}-keypoints.{ending}" for number in (5, 68) for ending in ("png", "json")
    }
