"""The crop of one affine, oriented detections, and detectors in threads."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pytest
from test_predict import HOPPER
from test_resample import square

from recombinator.data.crops import GRID
from recombinator.data.images import read_image, to_gray
from recombinator.data.photograph import Photograph
from recombinator.predict.crop import crop_face, rotation
from recombinator.predict.detect import Detection, HaarDetector, WholeImage, as_detections, detector_by_name
from recombinator.predict.predictor import load


@pytest.fixture(scope="module")
def hopper():
    return read_image(HOPPER)


@pytest.fixture(scope="module")
def predictor():
    return load("rcn-6-mtfl", threads=1)


def by_the_training_rule(predictor, image, points):
    """The network's input as tables and training have it: the stored crop, then its inner square."""
    crop, _, box = predictor.rule.crop(to_gray(image), points, GRID)
    return np.round(square(crop, box, predictor.about.size)).clip(0, 255).astype(np.uint8)


def textures(hopper):
    rng = np.random.default_rng(0)
    yield "photograph", hopper
    yield "noise", rng.integers(0, 256, hopper.shape, dtype=np.uint8)
    yield "checks", np.repeat((np.indices(hopper.shape[:2]).sum(0) % 14 < 7)[..., None] * np.uint8(255), 3, axis=2)


@pytest.mark.parametrize("weights", ["rcn-6-mtfl", "joint-68-300w"])
def test_points_equal_those_of_the_training_crops(weights, hopper):
    predictor = load(weights, HaarDetector(), threads=1)
    (face,) = predictor.predict(hopper)
    rng = np.random.default_rng(0)
    old, new = [], []
    for name, texture in textures(hopper):
        for scale in (0.25, 0.6, 1.0, 2.0) if name == "photograph" else (1.0,):
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
            image = cv2.resize(texture, None, fx=scale, fy=scale, interpolation=how)
            for _ in range(2):
                points = face.points * scale + rng.normal(0, 4 * scale, 2)
                old.append(by_the_training_rule(predictor, image, points))
                crop = crop_face(Photograph(image), points, predictor.rule, predictor.about.size, 1)
                new.append(crop.pixels)
    assert np.abs(np.array(old).astype(int) - np.array(new)).max() <= 1
    before, after = (predictor.engine.run(np.array(crops)) for crops in (old, new))
    moved = np.linalg.norm(before.points - after.points, axis=2)
    # 68 points: a score map can have two modes, between which one gray level decides
    assert np.quantile(moved, 0.98) < 0.05 and (len(face.points) > 5 or moved.max() < 0.05)


def test_the_border_of_the_image_is_that_of_the_training_crops(predictor, hopper):
    (face,) = predictor.predict(hopper)
    cut = np.ascontiguousarray(hopper[170:, 200:])
    points = face.points - [200, 170]
    crop = crop_face(Photograph(cut), points, predictor.rule, 80, 1)
    assert np.abs(crop.pixels.astype(int) - by_the_training_rule(predictor, cut, points)).max() <= 1


@pytest.mark.parametrize("angle", [30.0, -75.0, 180.0])
def test_a_rotated_crop_shows_the_face_upright(predictor, hopper, angle):
    (face,) = predictor.predict(hopper)
    height, width = hopper.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), -angle, 1.0)  # OpenCV counts the other way
    matrix[:, 2] += 200
    turned = cv2.warpAffine(hopper, matrix, (width + 400, height + 400))
    middle = np.array([width / 2, height / 2])
    expected = (face.points - middle) @ rotation(angle).T + middle + 200
    side = face.box[2]
    center = (face.box[:2] + side / 2 - middle) @ rotation(angle).T + middle + 200
    box = (*(center - 0.4 * side), 0.8 * side, 0.8 * side)
    (given,) = predictor.predict(turned, [Detection(box, angle)])
    assert given.confidence.mean() > 0.9 and given.angle == angle and given.to_dict()["angle"] == angle
    assert np.linalg.norm(given.points - expected, axis=1).max() < 0.03 * side
    (followed,) = predictor.follow(turned, [given.points], [angle])
    assert np.linalg.norm(followed.points - expected, axis=1).max() < 0.03 * side
    np.testing.assert_allclose(given.box[:2] + given.box[2] / 2, center, atol=0.1 * side)
    # the covariance turns with the face
    widths = np.array([given.covariance[:, 0] + given.covariance[:, 2], face.covariance[:, 0] + face.covariance[:, 2]])
    assert (widths > 0).all() and given.draw(turned).shape == turned.shape


def test_the_affine_leads_from_the_crop_to_the_image(predictor, hopper):
    (face,) = predictor.predict(hopper)
    marked = np.zeros_like(hopper)
    x, y = face.points[2]
    cv2.circle(marked, (round(x * 16 - 8), round(y * 16 - 8)), 12 * 16, (255, 255, 255), -1, shift=4)
    for angle in (0.0, 40.0):
        crop = crop_face(Photograph(marked), face.points, predictor.rule, 80, 1, angle)
        weights = crop.pixels[0].astype(float)
        grid = np.indices((80, 80))[::-1].reshape(2, -1).T + 0.5
        center = crop.apply(np.average(grid, axis=0, weights=weights.ravel())[None])[0]
        assert np.linalg.norm(center - face.points[2]) < 0.2 * crop.pixel
    assert crop_face(Photograph(hopper), np.full((5, 2), 100.0), predictor.rule, 80, 1) is None
    assert crop_face(Photograph(hopper), np.full((5, 2), np.nan), predictor.rule, 80, 1) is None


def test_detections_from_boxes():
    assert as_detections([]) == [] and as_detections(np.zeros((0, 4))) == []
    assert as_detections(np.array([[1, 2, 3, 4]])) == [Detection((1.0, 2.0, 3.0, 4.0))]
    one = Detection((1.0, 2.0, 3.0, 4.0), 30.0, 0.5)
    assert as_detections([one]) == [one] and one.scaled(2) == Detection((2.0, 4.0, 6.0, 8.0), 30.0, 0.5)


def test_eight_threads_find_what_one_finds(hopper):
    detector = HaarDetector()
    images = [np.roll(hopper, (5 * i, 7 * i), axis=(0, 1)) for i in range(6)]
    images += [cv2.resize(image, None, fx=0.6, fy=0.6) for image in images[:2]]
    expected = [detector.detect(image) for image in images]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(detector.detect, images * 2)) == expected * 2
    assert pickle.loads(pickle.dumps(detector)).detect(images[0]) == expected[0]
    assert pickle.loads(pickle.dumps(WholeImage())).detect(hopper) == WholeImage().detect(hopper)


def test_the_number_of_passes_is_a_setting(hopper):
    once, twice = load("rcn-6-mtfl", threads=1, passes=1), load("rcn-6-mtfl", threads=1)
    first, second = once.predict(hopper)[0].points, twice.predict(hopper)[0].points
    assert np.abs(first - second).max() > 0.1
    np.testing.assert_array_equal(twice.predict(hopper, passes=1)[0].points, first)
    np.testing.assert_array_equal(once.predict(hopper, passes=2)[0].points, second)


def test_a_photograph_that_is_said_to_be_a_face_has_points(hopper):
    certain = load("rcn-6-mtfl", WholeImage(), threads=1)
    for image in (hopper[:140, :140], np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)):
        (face,) = certain.predict(np.ascontiguousarray(image))
        assert 0 <= face.confidence.mean() < certain.min_confidence
    assert certain.predict(hopper[:140, :140], min_confidence=1.0) == []


@pytest.mark.parametrize("weights", ["rcn-6-mtfl", "joint-68-300w"])
def test_a_face_cut_by_the_border_is_not_sure(weights, hopper):
    """Cut off, the mouth is placed elsewhere with a confidence of 0.9 and more; whole, it is sure."""
    predictor = load(weights, threads=1)
    box = [(155 - 80, 105 - 60, 222, 222)]
    (face,) = predictor.predict(np.ascontiguousarray(hopper[60:400, 80:430]), box)
    assert face.inside.all() and face.confidence.mean() > predictor.min_confidence
    for bottom in (240, 255, 270, 273) if len(face.points) == 5 else (200, 225, 250):
        (face,) = predictor.predict(np.ascontiguousarray(hopper[60:bottom, 80:430]), box)
        assert face.confidence.mean() < predictor.min_confidence
        assert (face.confidence[~face.inside] == 0).all()
    assert len(face.points) == 5 or not face.inside.all()
    row = face.to_dict()["keypoints"][-1]
    assert row["inside"] == face.inside[-1] and row["confidence"] == pytest.approx(face.confidence[-1], abs=1e-4)


def bright_spot_finder(path):
    """Write a network with YuNet's inputs and outputs. It finds 32 pixels around each white cell of 8."""
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    nodes, constants, outputs = [], [], []
    for name, channels, bias in (("cls", 1, [-9.0]), ("obj", 1, [1.0]), ("bbox", 4, [0.5, 0.5, *np.log([4.0, 4.0])]),
                                 ("kps", 10, [0.0] * 10)):  # fmt: skip
        for stride in (8, 16, 32):
            weights = np.full((channels, 3, stride, stride), 10 / (3 * stride**2 * 255) * (name == "cls"), np.float32)
            bias_here = np.array(bias if stride == 8 or name != "cls" else [-99.0], np.float32)
            out = f"{name}_{stride}"
            constants += [
                numpy_helper.from_array(weights, f"{out}_w"), numpy_helper.from_array(bias_here, f"{out}_b"),
                numpy_helper.from_array(np.array([1, -1, channels]), f"{out}_s"),
            ]  # fmt: skip
            nodes += [
                helper.make_node("Conv", ["input", f"{out}_w", f"{out}_b"], [f"{out}_c"],
                                 kernel_shape=[stride] * 2, strides=[stride] * 2),
                helper.make_node("Transpose", [f"{out}_c"], [f"{out}_t"], perm=[0, 2, 3, 1]),
                helper.make_node("Reshape", [f"{out}_t", f"{out}_s"], [out]),
            ]  # fmt: skip
            outputs.append(helper.make_tensor_value_info(out, TensorProto.FLOAT, [1, (320 // stride) ** 2, channels]))
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, 320, 320])
    graph = helper.make_graph(nodes, "spots", [image], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 11)], ir_version=8), path)


def test_yunet_in_threads_and_pickled(tmp_path):
    name = str(tmp_path / "spots.onnx")
    bright_spot_finder(name)
    detector = detector_by_name(f"yunet:{name}")
    images = []
    for i in range(4):
        image = np.zeros((320, 320, 3), np.uint8)
        image[64 + 8 * i : 72 + 8 * i, 160:168] = 255
        images.append(image)
    expected = [detector.detect(image) for image in images]
    for i, (found,) in enumerate(expected):
        x, y, width, height = found.box
        assert (x + width / 2, y + height / 2) == (pytest.approx(164), pytest.approx(68 + 8 * i))
        assert width == height == pytest.approx(1.15 * 32) and found.angle == 0
        assert found.score == 0.5  # YuNet's score is no calibrated probability
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(pickle.loads(pickle.dumps(detector)).detect, images * 4)) == expected * 4
