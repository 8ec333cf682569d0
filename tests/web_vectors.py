"""Make web_vectors.json, the test vectors that Python and the page's modules share: `python tests/web_vectors.py`."""

import base64
import json
from pathlib import Path

import cv2
import numpy as np

from recombinator.data.crops import RULES
from recombinator.data.images import to_gray
from recombinator.data.photograph import Photograph
from recombinator.deploy.web import describe
from recombinator.keypoints import FACE_5
from recombinator.predict import finder
from recombinator.predict.crop import crop_face
from recombinator.predict.detect import Detection
from recombinator.predict.engine import Description
from recombinator.predict.predictor import Predictor

FILE = Path(__file__).with_name("web_vectors.json")
TEMPLATE = np.array([(0.31, 0.27), (0.69, 0.27), (0.5, 0.5), (0.34, 0.74), (0.66, 0.74)])
# width, height, center x, y and side of the object, degrees, crop rule, size, channels
CROPS = (
    (320, 240, 150, 120, 90.5, 0, "mtfl", 80, 1), (320, 240, 40.25, 60, 150, 0, "mtfl", 80, 1),
    (320, 240, 160, 110, 30.2, 0, "mtfl", 80, 1), (900, 700, 430.4, 390.1, 640, 0, "mtfl", 80, 1),
    (320, 240, 150.7, 130.3, 90.5, 17.3, "mtfl", 80, 1), (320, 240, 200, 60, 140, -120.6, "mtfl", 80, 3),
    (320, 240, 160, 120, 70, 0, "300w", 80, 1), (320, 240, 60, 40, 160, 0, "300w", 80, 3),
    (900, 700, 450, 350, 500, 90, "300w", 80, 1), (333, 251, 170, 120, 100, 0, "image", 96, 1),
    (640, 480, 170, 120, 100, 0, "image", 576, 3), (320, 240, 160, 120, 60, 0, "object", 96, 1),
    (320, 240, 150, 110, 140, 35, "object", 192, 3),
)  # fmt: skip
EVERY = 13  # pixels of a finder's input, of which one is kept
# width, height, longer side in the finder's input, channels
SEEN = ((333, 251, 128, 1), (256, 128, 128, 1), (384, 240, 128, 3), (100, 75, 128, 1), (400, 300, 400, 3))


def pattern(width, height):
    """An image that both languages can make: smooth waves of different lengths with edges, (height, width, 3)."""
    y, x, c = np.mgrid[:height, :width, :3]
    wave = (x * x * 3 + y * y * 5 + x * y * (c + 1)) // 97 % 256
    return np.where((x // 9 + y // 7 + c) % 5 == 0, 255 - wave, wave).astype(np.uint8)


def text(values):
    """The bytes of an array as base64."""
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()


def rounded(values, digits=6):
    return np.round(np.asarray(values, np.float64), digits).tolist()


def maps(rows, columns):
    """A finder's output with some maxima, float32."""
    rng = np.random.default_rng(5)
    out = rng.normal(0, 0.3, (6, rows, columns)).astype(np.float32)
    out[0] = cv2.GaussianBlur(rng.normal(0, 6, (rows, columns)).astype(np.float32), (0, 0), 1.0)
    return out


def about(rule):
    """The description of a network of five points with this crop rule."""
    return Description(FACE_5, rule, TEMPLATE.tolist(), 80, 1, {}, {"name": "rcn-6"}, {})


def vectors():
    crops = []
    for width, height, x, y, side, degrees, rule, size, channels in CROPS:
        points = (TEMPLATE - 0.5) * side + [x, y]
        photograph = Photograph(pattern(width, height))
        free = len(crops) % 2 == 1
        crop = crop_face(photograph, points, RULES[rule], size, channels, degrees, free)
        every = 3 if channels == 1 and size < 100 else size // 24
        crops.append({
            "width": width, "height": height, "points": rounded(points, 9), "degrees": degrees, "rule": rule,
            "size": size, "channels": channels, "toImage": rounded(crop.to_image), "every": every,
            "free": free, "moved": crop.moved, "pixels": text(crop.pixels[:, ::every, ::every]),
        })  # fmt: skip
    seen = []
    for width, height, side, channels in SEEN:
        image = pattern(width, height)
        image = to_gray(image) if channels == 1 else image
        pixels = finder.as_input(finder.resized(image, image.shape, side / max(width, height)), channels)
        seen.append({
            "width": width, "height": height, "side": side, "channels": channels, "shape": list(pixels.shape),
            "every": EVERY, "pixels": text(pixels.reshape(-1)[::EVERY].astype(np.uint8)),
        })  # fmt: skip
    output = maps(12, 15)
    found = finder.decode_maps(output, 0.6)
    kept = finder.suppressed(found)
    boxes = [Detection((20.0, 30.0, 80.0, 80.0), 25.0), Detection((5.5, 8.0, 30.0, 40.0))]

    predictor = object.__new__(Predictor)
    predictor.about = about("mtfl")
    described = {name: describe(about(name), name, finder.face_finder().engine) for name in RULES}
    return {
        "rules": {name: one["crop"] for name, one in described.items()},
        "finder": {**described["mtfl"]["finder"], "threshold": 0.6},
        "gray": {"width": 64, "height": 48, "pixels": text(to_gray(pattern(64, 48)))},
        "crops": crops,
        "seen": seen,
        "decoded": {
            "rows": 12, "columns": 15, "maps": text(output), "squares": rounded(found.squares),
            "scores": rounded(found.scores), "kept": rounded(kept.squares),
        },
        "typical": {
            "template": TEMPLATE.tolist(), "relation": [1.2, 0.086],
            "squares": [[60.0, 70.0, 80.0, 25.0], [20.5, 28.0, 40.0, 0.0]],
            "points": rounded(predictor._points_from_boxes(boxes, (1.2, 0.086))),
        },
    }  # fmt: skip


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1) + "\n", encoding="utf-8")
