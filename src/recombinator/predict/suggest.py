"""Choose the images that are most worth labeling next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from recombinator.data.images import read_image, to_gray
from recombinator.predict.batch import in_order
from recombinator.predict.predictor import Predictor
from recombinator.utils.errors import InputError

THUMBNAIL = 16  # pixels: two images are as different as their thumbnails, without brightness and contrast


def suggest(
    predictor: Predictor, names: Sequence[str], number: int, labeled: Iterable[str] = (), *, workers: int = 1,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[list[tuple[str, float]], list[str]]:  # fmt: skip
    """Choose images whose points are uncertain and that differ from each other and from the labeled ones.

    Args:
        predictor: The model so far.
        names: Image files to choose from.
        number: How many to choose.
        labeled: Image files that have labels.
        workers: Images to work on at the same time.
        progress: Called with images done and in all.

    Returns:
        The chosen images, the most useful first, with their uncertainty: 1 minus the mean confidence of their points, 1
        where nothing is found. And a sentence for each image that cannot be read.
    """

    def look(name: str, _: str) -> tuple[float, np.ndarray] | InputError:
        try:
            photograph = predictor.open(name)
            found = predictor.predict(photograph)
            sure = np.mean([face.confidence.mean() for face in found]) if found else 0.0
            return 1 - float(sure), thumbnail(photograph.pixels)
        except InputError as error:
            return error

    failed, kept, uncertainty, features = list[str](), list[str](), list[float](), list[np.ndarray]()
    for done, (name, _, seen) in enumerate(in_order(look, ((n, "") for n in names), workers), 1):
        progress(done, len(names))
        if isinstance(seen, InputError):
            failed.append(str(seen))
            continue
        kept.append(name)
        uncertainty.append(seen[0])
        features.append(seen[1])
    if not kept:
        raise InputError(f"none of the {len(names)} images can be read: {failed[0] if failed else 'there are none'}")
    known = np.array([thumbnail(read_image(name)) for name in labeled]).reshape(-1, THUMBNAIL**2)
    chosen = choose(np.array(uncertainty), np.array(features), number, known)
    return [(kept[i], uncertainty[i]) for i in chosen], failed


def thumbnail(image: np.ndarray) -> np.ndarray:
    """Return a small gray version of an (H, W) or (H, W, 3) image as a vector with mean 0 and length 1."""
    import cv2

    small = cv2.resize(to_gray(image), (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    vector = small.reshape(-1) - float(small.mean())
    return np.asarray(vector / max(float(np.linalg.norm(vector)), 1e-9))


def choose(uncertainty: np.ndarray, features: np.ndarray, number: int, known: np.ndarray) -> list[int]:
    """Choose greedily by uncertainty times the distance to the nearest image that is chosen or labeled.

    Args:
        uncertainty: (N,) from 0 to 1.
        features: (N, D) vectors.
        number: How many to choose; all if there are fewer.
        known: (M, D) vectors of the labeled images.
    """
    gap = np.full(len(features), 2.0)  # no two unit vectors are further apart
    for one in known:
        gap = np.minimum(gap, np.linalg.norm(features - one, axis=1))
    chosen: list[int] = []
    left = np.ones(len(features), bool)
    for _ in range(min(number, len(features))):
        # copies of a chosen image come last, by uncertainty
        best = int(np.argmax(np.where(left, (uncertainty + 1e-6) * (gap + 1e-6), -1.0)))
        chosen.append(best)
        left[best] = False
        gap = np.minimum(gap, np.linalg.norm(features - features[best], axis=1))
    return chosen
