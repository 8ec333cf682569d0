"""Image files as users bring them: formats, bit depths, damage, sizes, names."""

import io
import os
import struct
import zlib

import cv2
import numpy as np
import pytest
from conftest import SHARED
from PIL import Image
from test_predict import HOPPER

from recombinator.data.images import as_image, decode_image, read_image, to_8_bit
from recombinator.data.photograph import Photograph
from recombinator.predict.batch import find_photographs
from recombinator.predict.detect import HaarDetector
from recombinator.predict.predictor import load
from recombinator.utils.errors import InputError

CASES = SHARED / "cases" / "images"


@pytest.fixture(scope="module")
def predictor():
    return load("rcn-6-mtfl", threads=1)


@pytest.fixture(scope="module")
def small():
    return cv2.resize(cv2.imread(str(HOPPER)), (256, 300), interpolation=cv2.INTER_AREA)[..., ::-1].copy()


@pytest.fixture(scope="module")
def points(predictor, small):
    return predictor.predict(small)[0].points


def encoded(image, ending):
    ok, data = cv2.imencode(ending, image if image.ndim == 2 else image[..., ::-1])
    assert ok
    return data.tobytes()


def saved(image, **options):
    stream = io.BytesIO()
    image.save(stream, **options)
    return stream.getvalue()


def variants(small):
    gray = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
    yield "12 bits in 16", encoded(gray.astype(np.uint16) << 4, ".png"), 1.0
    yield "16 bits", encoded(gray.astype(np.uint16) << 8, ".png"), 1.0
    yield "floats, gray", saved(Image.fromarray(gray.astype(np.float32) / 255), format="TIFF"), 1.0
    yield "floats, RGB", encoded(small.astype(np.float32) / 255, ".tif"), 1.0
    yield "floats to 255", saved(Image.fromarray(gray.astype(np.float32)), format="TIFF"), 1.0
    yield "1 bit", saved(Image.fromarray(small).convert("1"), format="PNG"), 3.0
    for kind in ("GIF", "PPM", "TGA", "QOI", "WEBP", "JPEG2000"):
        yield kind, saved(Image.fromarray(small), format=kind), 2.0


def test_every_format_and_depth_gives_the_same_points(predictor, small, points):
    for name, data, tolerance in variants(small):
        (face,) = predictor.predict(data)
        assert np.linalg.norm(face.points - points, axis=1).max() < tolerance, name
        np.testing.assert_array_equal(as_image(io.BytesIO(data)), as_image(data))


@pytest.mark.parametrize("file", ["bilevel.png", "float01.tif", "grey12in16.png", "photo.avif", "truncated99.jpg"])
def test_files_that_users_brought(predictor, points, file):
    if not (CASES / file).is_file():
        pytest.skip("skipped: no ../shared/cases")
    (face,) = predictor.predict(CASES / file)
    assert np.linalg.norm(face.points - points, axis=1).max() < 3


def test_heic_is_read_or_its_remedy_named(tmp_path):
    heic = pytest.importorskip("PIL.Image") and tmp_path / "photo.heic"
    heic.write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    with pytest.raises(InputError, match=r"photo\.heic: (HEIC needs pillow_heif; pip install|cannot be decoded)"):
        read_image(heic)


def test_the_range_in_use():
    values = np.array([0, 1, 255, 256, 4095], np.uint16)
    np.testing.assert_array_equal(to_8_bit(values), [0, 0, 15, 16, 255])
    np.testing.assert_array_equal(to_8_bit(np.array([0, 255], np.uint16)), [0, 255])
    np.testing.assert_array_equal(to_8_bit(np.array([0, 65535], np.uint16)), [0, 255])
    np.testing.assert_array_equal(to_8_bit(np.array([0.0, 0.5, 1.0])), [0, 128, 255])
    np.testing.assert_array_equal(to_8_bit(np.array([0, 1023], np.int32)), [0, 255])
    for bad in ([-1.0, 1.0], [np.nan, 1.0], [0.0, np.inf]):
        with pytest.raises(InputError, match=r"x: has values from .*; expected 0 or more"):
            to_8_bit(np.array(bad), "x")


def test_a_jpeg_without_its_end_is_read_with_a_warning(caplog):
    whole = HOPPER.read_bytes()
    image = decode_image(whole[:-3], "photo")
    assert "photo: incomplete; its last bytes are missing" in caplog.text
    assert np.abs(image.astype(int) - decode_image(whole, "photo"))[:-16].max() == 0
    decode_image(whole[:-2000], "photo")
    assert "rows may be missing" in caplog.text
    with pytest.raises(InputError, match="not an image that can be decoded"):
        decode_image(whole[: len(whole) // 2], "photo")


def test_too_many_pixels_are_refused_by_the_header(tmp_path, predictor):
    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    bomb = tmp_path / "bomb.png"
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 0, 0, 0, 0))
    bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b""))
    with pytest.raises(InputError, match=r"bomb\.png: has 400 million pixels, more than the limit of 200 million"):
        predictor.predict(bomb)
    small = load("rcn-6-mtfl", threads=1, max_pixels=100_000)
    with pytest.raises(InputError, match=r"0 million pixels, more than the limit of 0\.1 million"):
        small.predict(HOPPER)


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    for name in (tmp_path / "pipe.jpg", "/dev/zero"):
        with pytest.raises(InputError, match="not a regular file"):
            read_image(name)


def test_other_files_are_counted_and_hidden_ones_ignored(tmp_path, caplog):
    for name in ("a.jpg", "b.AVIF", "c.jp2", "._a.jpg", "notes.txt", "clip.mp4", "clip2.mp4"):
        (tmp_path / name).write_bytes(b"")
    found = find_photographs([tmp_path])
    assert [os.path.basename(p) for p in found] == ["a.jpg", "b.AVIF", "c.jp2"]
    assert f"{tmp_path}: 3 files left out, not of an image type: 2 .mp4, 1 .txt" in caplog.text


def test_large_photographs_are_decoded_as_far_as_needed(tmp_path):
    predictor = load("rcn-6-mtfl", HaarDetector(), threads=1)
    image = cv2.resize(cv2.imread(str(HOPPER)), (2560, 3008), interpolation=cv2.INTER_CUBIC)
    cv2.imwrite(str(tmp_path / "large.jpg"), image)
    photograph = predictor.open(tmp_path / "large.jpg")
    assert photograph.factor == 2 and photograph.pixels.shape == (1504, 1280, 3)
    assert (photograph.width, photograph.height) == (2560, 3008)
    (face,) = predictor.predict(photograph)
    assert "full" not in photograph.__dict__  # the face is large enough
    (expected,) = predictor.predict(image[..., ::-1].copy())
    pixel = face.box[2] / predictor.about.size
    assert np.linalg.norm(face.points - expected.points, axis=1).max() < 0.2 * pixel
    far = np.zeros((3008, 2560, 3), np.uint8)
    far[1400:1700, 1100:1356] = cv2.resize(image, (256, 300), interpolation=cv2.INTER_AREA)
    data = encoded(far[..., ::-1], ".jpg")
    photograph = predictor.open(data)
    (face,) = predictor.predict(photograph)
    assert photograph.factor == 2 and "full" in photograph.__dict__  # the face is small: the full size is used
    (expected,) = predictor.predict(as_image(data))
    assert np.linalg.norm(face.points - expected.points, axis=1).max() < face.box[2] / predictor.about.size
    assert Photograph(data).factor == 1
