"""Choose the images and frames of videos that are most worth labeling next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recombinator.data.images import read_image, to_gray
from recombinator.predict.batch import free_stem
from recombinator.predict.output import save_picture
from recombinator.predict.predictor import Predictor
from recombinator.predict.track import Video, spaced_frames
from recombinator.utils.errors import InputError
from recombinator.utils.threads import in_order

THUMBNAIL = 16  # pixels: two images are as different as their thumbnails, without brightness and contrast


@dataclass
class Videos:
    """Candidate frames of videos.

    A frame is named by the file that it is written to if it is chosen: FOLDER/VIDEO/VIDEO-000123.png, by the number of
    the frame from 0.

    Args:
        videos: Video files.
        folder: The folder for chosen frames.
        most: Candidates of each video, evenly spaced.
        excluded: Names of files, without their folders, that are no candidates.
    """

    videos: Sequence[str]
    folder: Path
    most: int
    excluded: frozenset[str] = frozenset()

    def __iter__(self) -> Iterator[tuple[str, np.ndarray | InputError]]:
        """Yield the name of each candidate and its (H, W, 3) RGB uint8 frame; an error for a video that fails."""
        taken: set[str] = set()
        for video in self.videos:
            stem = free_stem(Path(video).stem, taken)
            try:
                for number, image in spaced_frames(video, self.most):
                    name = f"{stem}-{number:06}.png"
                    if name not in self.excluded:
                        yield str(self.folder / stem / name), image
            except InputError as error:
                yield video, error

    def write(self, chosen: Sequence[str]) -> None:
        """Write the frames among the chosen images to the files that name them."""
        frames = {name for name in chosen if Path(name).is_relative_to(self.folder)}
        for name, image in self if frames else ():
            if name in frames and isinstance(image, np.ndarray):
                save_picture(Path(name), image)

    def __len__(self) -> int:
        """Return about how many candidates there are, from the lengths that the videos claim to have."""
        count = 0
        for video in self.videos:
            try:
                declared = Video(video).declared
            except InputError:
                declared = 1
            count += len(range(0, declared, max(1, -(-declared // self.most)))) or self.most
        return count


@dataclass(frozen=True)
class Suggestion:
    """The result of `suggest`.

    Attributes:
        chosen: Names of the chosen images, the most useful first, with their uncertainty: 1 minus the mean confidence
            of their points, 1 where nothing is found.
        failed: A sentence for each image or video that cannot be read.
        candidates: Number of images and frames to choose from, with those that cannot be read.
    """

    chosen: list[tuple[str, float]]
    failed: list[str]
    candidates: int


def suggest(
    predictor: Predictor, candidates: Iterable[tuple[str, str | np.ndarray | InputError]], number: int,
    labeled: Iterable[str] = (), *, workers: int = 1, total: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Suggestion:  # fmt: skip
    """Choose images whose points are uncertain and that differ from each other and from the labeled ones.

    Args:
        predictor: The model so far.
        candidates: The images to choose from: name, and a file or an (H, W, 3) RGB uint8 image; an error counts as an
            image that cannot be read.
        number: How many to choose.
        labeled: Image files that have labels.
        workers: Images to work on at the same time.
        total: Number of candidates, for `progress`.
        progress: Called with the number of images done and in total.

    Raises:
        InputError: If there are no candidates, or none can be read.
    """

    def look(name: str, image: str | np.ndarray | InputError) -> tuple[float, np.ndarray] | InputError:
        if isinstance(image, InputError):
            return image
        try:
            photograph = predictor.open(image)
            found = predictor.predict(photograph)
            sure = np.mean([face.confidence.mean() for face in found]) if found else 0.0
            return 1 - float(sure), thumbnail(photograph.pixels)
        except InputError as error:
            return error

    failed, kept, uncertainty, features = list[str](), list[str](), list[float](), list[np.ndarray]()
    done = 0
    for done, (name, _, seen) in enumerate(in_order(look, candidates, workers), 1):
        progress(done, max(done, total))
        if isinstance(seen, InputError):
            failed.append(str(seen))
            continue
        kept.append(name)
        uncertainty.append(seen[0])
        features.append(seen[1])
    if not done:
        raise InputError("every image has labels; give further images")
    if not kept:
        raise InputError(f"none of the {done} images can be read: {failed[0]}")
    known = np.array([thumbnail(read_image(name)) for name in labeled]).reshape(-1, THUMBNAIL**2)
    chosen = choose(np.array(uncertainty), np.array(features), number, known)
    return Suggestion([(kept[i], uncertainty[i]) for i in chosen], failed, done)


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
    gap = np.full(len(features), 2.0)  # the largest possible distance between unit vectors
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
