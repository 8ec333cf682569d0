"""Add photographs that a trained network labels to a training table (pseudo-labels: Lee, 2013)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePath

import pyarrow.parquet as pq

from recombinator.data.crops import RULES
from recombinator.data.rows import crop_row
from recombinator.data.schema import check_names
from recombinator.data.stream import table_files
from recombinator.data.table import PSEUDO_LABELS, Row, TableInfo, read_info, write_table
from recombinator.keypoints import check_same_keypoints
from recombinator.predict.predictor import Predictor
from recombinator.utils.errors import InputError
from recombinator.utils.files import copy_file
from recombinator.utils.text import plural
from recombinator.utils.threads import in_order

logger = logging.getLogger(__name__)

FILE = "train/pseudo-labels.parquet"  # a part of the table train.parquet
QUALITY = 95  # JPEG quality of the crops


def add_pseudo_labels(
    data: Path, photographs: Sequence[str], predictor: Predictor, out: Path, *, least: float = 0.5, smallest: float = 0,
    workers: int = 1, progress: Callable[[int, int], None] = lambda done, total: None,
) -> int:  # fmt: skip
    """Copy the tables of a folder, and add the objects that a network finds in photographs to the training table.

    Predicted points take the place of annotated ones. Photographs that a table names are left out, so that nothing is
    learned from validation and test images.

    Args:
        data: Folder that `prepare` wrote.
        photographs: Photographs, as `find_photographs` returns them.
        predictor: A network with the keypoints of the tables.
        out: Folder for the tables; OUT/train/pseudo-labels.parquet has the new rows.
        least: Points with a lower confidence are marked as unknown.
        smallest: Leave out objects whose network input has a smaller side, in pixels of the photograph.
        workers: Photographs to work on at the same time.
        progress: Called with the numbers of photographs done and in all.

    Returns:
        The number of objects added.

    Raises:
        InputError: The tables do not fit the network or have attributes, or nothing was added.
    """
    info = read_info(data / "train.parquet")
    check_same_keypoints(predictor.keypoints, info.keypoints, f"{data / 'train.parquet'}, for the network")
    if data.resolve() == out.resolve():
        raise InputError(f"{out}: the folder of --data; choose another --out")
    files = [f for split in ("train", "valid", "test") for f in _parts(data / f"{split}.parquet")]
    further = check_names([pq.read_schema(files[0]).names], files[:1])
    if further:
        raise InputError(f"{files[0]}: has the column {further[0]}, which predicted rows would lack")
    known = {PurePath(name).parts for f in files for name in pq.read_table(f, columns=["file"])["file"].to_pylist()}
    names = [n for n in photographs if not any(PurePath(n).parts[i:] in known for i in range(len(PurePath(n).parts)))]
    if not names:
        raise InputError(f"{data}: its tables have all {len(photographs)} photographs; give others, without points")
    if len(names) < len(photographs):
        logger.info(f"{plural(len(photographs) - len(names), 'photograph')} of the tables in {data} left out")

    def work(name: str, _: None) -> list[Row] | InputError:
        try:
            return _rows(name, predictor, info, least, smallest)
        except InputError as error:
            return error

    def rows() -> Iterator[Row]:
        for number, (name, _, made) in enumerate(in_order(work, ((n, None) for n in names), workers), 1):
            if isinstance(made, InputError):
                logger.warning("%s", made if str(made).startswith(name) else f"{name}: {made}")
            else:
                yield from made
            progress(number, len(names))

    added = write_table(out / FILE, info, rows())
    if not added:
        (out / FILE).unlink()
        raise InputError(f"nothing was added: the network accepts no object in {plural(len(names), 'photograph')}")
    for f in files:
        copy_file(f, out / f.relative_to(data))
    return added


def _parts(table: Path) -> list[Path]:
    """Return the files of a table, none where it does not exist."""
    return table_files(table) if table.exists() else []


def _rows(name: str, predictor: Predictor, info: TableInfo, least: float, smallest: float) -> list[Row]:
    """Return a row for each object in a photograph, cut by the crop rule of the table."""
    photograph = predictor.open(name)
    faces = [f for f in predictor.predict(photograph) if f.box[2] >= smallest and (f.confidence >= least).any()]
    return [
        crop_row(
            photograph.full, face.points, name, RULES[info.crop_rule], size=info.size, gray=info.gray, quality=QUALITY,
            subset=PSEUDO_LABELS, mask=face.confidence >= least,
        )
        for face in faces
    ]  # fmt: skip
