"""From photograph to points, on the one photograph that everybody has."""

from dataclasses import replace
from pathlib import Path

import cv2
import matplotlib
import numpy as np
import pytest

from recombinator.predict.predictor import as_image, distinct, load
from recombinator.predict.result import Face, draw_faces
from recombinator.utils.errors import InputError

HOPPER = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
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
    from PIL import Image

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
        with pytest.raises(InputError, match="does not lie on|must be a list"):
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
    from recombinator.keypoints import FACE_5

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
