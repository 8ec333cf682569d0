"""Faces in their own rotation, and squares for 68 points from five points."""

import cv2
import numpy as np
import pytest

import recombinator
from recombinator.data.crops import RULES
from recombinator.data.images import SAMPLE_PHOTOGRAPH, as_image
from recombinator.evaluation.relation import FIVE_OF_68
from recombinator.predict.crop import rotation
from recombinator.predict.finder import face_finder
from recombinator.predict.five_points import SQUARES, FaceFramer, in_own_frame
from recombinator.study.framing import square_regression


@pytest.fixture(scope="module")
def picture():
    return as_image(SAMPLE_PHOTOGRAPH)


@pytest.fixture(scope="module")
def predictor():
    return recombinator.load("rcn-68-300w-int8")


@pytest.mark.parametrize("degrees", [75, 165, 240])
def test_a_face_is_cropped_at_its_own_rotation(picture, degrees):
    predictor = recombinator.load("rcn-6-mtfl")
    upright = predictor.predict(picture)[0]
    side, linear = 900, rotation(degrees)
    shift = np.full(2, side / 2) - linear @ [picture.shape[1] / 2, picture.shape[0] / 2]
    matrix = np.concatenate([linear, (shift + linear @ [0.5, 0.5] - 0.5)[:, None]], axis=1)
    turned = predictor.predict(cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_CUBIC))
    distances = [np.linalg.norm(face.points - upright.points @ linear.T - shift, axis=1).mean() for face in turned]
    assert min(distances) < 2
    nearest = turned[int(np.argmin(distances))]
    assert abs((nearest.angle - upright.angle - degrees + 180) % 360 - 180) < 12


def test_a_box_needs_no_angle(picture):
    """The second pass has the rotation of the first pass's points."""
    predictor = recombinator.load("rcn-6-mtfl")
    box = (155, 120, 220, 220)
    upright = predictor.predict(picture, [box])[0]
    center = (box[0] + box[2] / 2, box[1] + box[3] / 2)
    matrix = cv2.getRotationMatrix2D((center[0] - 0.5, center[1] - 0.5), -30, 1.0)
    turned = predictor.predict(cv2.warpAffine(picture, matrix, picture.shape[1::-1]), [box])[0]
    expected = (upright.points - center) @ rotation(30).T + center
    assert np.linalg.norm(turned.points - expected, axis=1).mean() < 3
    assert abs(turned.angle - 30) < 12 and upright.angle == 0


def test_one_pass_of_the_larger_network(predictor, picture, monkeypatch):
    crops, run = [], predictor.engine.run
    monkeypatch.setattr(predictor.engine, "run", lambda images: crops.append(len(images)) or run(images))
    assert isinstance(predictor.detector, FaceFramer) and predictor.passes == 1
    (face,) = predictor.predict(picture)
    assert crops == [1]
    (without,) = recombinator.load("rcn-68-300w-int8", face_finder()).predict(picture)
    assert np.linalg.norm(face.points - without.points, axis=1).mean() < 3
    crops.clear()
    predictor.predict(picture, [(155, 120, 220, 220)])
    assert crops == [1, 1]  # nothing has framed a box that is given


def test_the_square_holds_all_points(predictor, picture):
    (found,) = predictor.detector.detect(picture)
    (face,) = predictor.predict(picture)
    upright = face.points @ rotation(found.angle)
    low, high = upright.min(axis=0), upright.max(axis=0)
    middle = rotation(found.angle).T @ (np.array(found.box[:2]) + np.array(found.box[2:]) / 2)
    side = (high - low).max()
    assert found.box[2] == pytest.approx(side, rel=0.15)
    assert np.abs(middle - (low + high) / 2).max() < 0.1 * side


def test_without_five_points_the_finders_squares_are_tried(predictor, picture, monkeypatch):
    framer = predictor.detector
    (framed,) = framer.detect(picture)
    monkeypatch.setattr(framer.five_points, "predict", lambda image, **options: [])
    first, second = framer.search(picture)
    assert first == []
    largest = second[0]
    assert largest.box[2] == pytest.approx(framed.box[2], rel=0.15)
    assert np.abs(np.subtract(largest.box, framed.box)).max() < 0.15 * framed.box[2]
    assert largest.score < framed.score
    (face,) = predictor.predict(picture)
    (expected,) = recombinator.load("rcn-68-300w-int8", face_finder()).predict(picture)
    assert np.linalg.norm(face.points - expected.points, axis=1).mean() < 3


def test_the_regression_recovers_what_determines_the_squares():
    rng = np.random.default_rng(0)
    shape = rng.uniform(0, 1, (68, 2))
    stretched = shape * [1, 0] + rng.uniform(0.8, 1.2, (500, 1, 1)) * shape * [0, 1]
    typical = np.array([shape[list(group)].mean(axis=0) for group in FIVE_OF_68])
    fitted = square_regression(stretched, typical)
    assert fitted.shape == np.shape(SQUARES["300w"])
    angle, scale = 2.0, 70.0
    turn = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    five = np.array([stretched[:, list(group)].mean(axis=1) for group in FIVE_OF_68]).transpose(1, 0, 2) @ turn.T + 9
    inputs, linear = in_own_frame(five, typical)
    x, y, side = (inputs @ fitted).T
    extent = np.ptp(stretched, axis=1)
    unit = np.hypot(*linear[:, :, 0].T) / scale  # of the frame, in units of the shape
    assert np.abs(side * unit - extent.max(axis=1)).max() < 0.06
    middle = five.mean(axis=1) + np.einsum("nij,nj->ni", linear, np.stack([x, y], axis=1))
    expected = ((stretched.min(axis=1) + stretched.max(axis=1)) / 2) @ turn.T + 9
    assert np.abs(middle - expected).max() < 0.06 * scale


def test_the_rule_of_each_square_is_one_of_68_points():
    assert all(RULES[name].box.__name__ == "scaled_box" for name in SQUARES)
