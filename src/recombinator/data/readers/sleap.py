"""SLEAP: .slp files and analysis files (.h5), read with the package sleap-io."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np

from recombinator.data.annotations import Entry, Point, Scheme, Source, as_text, image_name
from recombinator.data.images import ENDINGS
from recombinator.utils.errors import InputError, import_optional
from recombinator.utils.text import plural

logger = logging.getLogger(__name__)

# "center of pixel is (0, 0)" (sleap_io/io/slp.py, which also converts files of the earlier convention)
ORIGIN = -0.5


def matches(source: Source) -> bool:
    """Return whether the source is a SLEAP file."""
    return source.suffix == ".slp" or source.path.name.lower().endswith(".analysis.h5")


def read(source: Source) -> list[Entry]:
    """Read the instances of a SLEAP file.

    In frames with labeled instances, those predicted by SLEAP are left out. Video frames are decoded when needed.

    Returns:
        One entry per instance. The columns `video` and `track` can group the images for the split.

    Raises:
        InputError: sleap-io is not installed, or cannot read the file.
    """
    sleap = import_optional("sleap_io", f"reading {source.path.name}")
    try:
        labels = sleap.load_file(str(source.path))
    except Exception as error:  # sleap-io raises what h5py, json and attrs raise
        raise InputError(f"{source}: sleap-io cannot read it ({type(error).__name__}: {error})") from None
    lock, entries, predicted = Lock(), [], 0
    for frame in labels.labeled_frames:
        placed = [i for i in frame.instances if type(i).__name__ == "Instance"]
        instances = placed or list(frame.instances)
        predicted += len(frame.instances) - len(instances)
        for number, instance in enumerate(instances, 1):
            entries.append(_entry(source, frame, instance, number, lock))
    if entries and not any(type(i).__name__ == "Instance" for f in labels.labeled_frames for i in f.instances):
        logger.warning("%s: no labeled instances; predicted ones are used", source)
    if predicted:
        logger.warning("%s: %s left out, in frames with labeled ones", source, plural(predicted, "predicted instance"))
    return entries


def _entry(source: Source, frame: Any, instance: Any, number: int, lock: Lock) -> Entry:
    video, index = frame.video, int(frame.frame_idx)
    names = video.filename if isinstance(video.filename, list) else [video.filename]
    track = as_text(getattr(instance.track, "name", None))  # may be any JSON value, as may the names of nodes
    skeleton = instance.skeleton
    symmetry: Any = tuple(tuple(sorted((str(n.name) for n in s.nodes), key=_left_first)) for s in skeleton.symmetries)
    lines = tuple((str(edge.source.name), str(edge.destination.name)) for edge in skeleton.edges)
    base = Entry(
        f"{source}: frame {index}",
        object_id=track or str(number),
        origin=ORIGIN,
        scheme=Scheme(symmetry or None, lines),
    )
    points = {
        str(node.name): Point(float(x), float(y), 2 if np.isfinite([x, y]).all() else 0)
        for node, (x, y) in zip(skeleton.nodes, instance.numpy(), strict=True)
    }
    frames = len(names) > 1 or _is_image(names[0])
    if frames and not 0 <= index < len(names):
        return replace(base, problem=f"its video has {plural(len(names), 'image')}")
    shown = image_name(str(names[index] if frames else names[0]))
    if _is_image(shown):
        return replace(
            base, file=shown, points=points, columns={"video": PurePosixPath(shown).parent.name, "track": track}
        )

    def pixels() -> np.ndarray:
        try:
            with lock:
                image = np.asarray(video[index])
        except Exception as error:  # as above
            raise InputError(f"frame {index} of {shown} cannot be read ({error})") from None
        return image[..., 0] if image.ndim == 3 and image.shape[2] == 1 else image

    columns = {"video": PurePosixPath(shown).name, "track": track}
    file = f"{PurePosixPath(shown).name}#{index}"
    return replace(base, file=file, points=points, columns=columns, video=Path(shown), image=pixels)


def _is_image(name: Any) -> bool:
    return Path(str(name)).suffix.lower() in ENDINGS


def _left_first(name: str) -> tuple[bool, str]:
    return ("left" not in name.lower() and not name.lower().startswith("l"), name)
