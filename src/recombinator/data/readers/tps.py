"""tpsDig: .tps files of landmarks. y is measured from the image's bottom; SCALE is the size of a pixel."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

from recombinator.data.annotations import Entry, Numbering, Point, Source, coordinate, image_name
from recombinator.utils.errors import InputError

logger = logging.getLogger(__name__)

# The origin of tpsDig is the image's lower left corner. Readers of its files (ml-morph's `utils.add_part_element`,
# StereoMorph) compute height - y, so both coordinates are distances from an edge, not from a pixel's center.
ORIGIN = 0.0
_MM = {"mm": 1.0, "cm": 10.0, "um": 0.001, "µm": 0.001, "m": 1000.0, "in": 25.4}
_KEYS = r"\s*([A-Za-z][A-Za-z0-9_]*)\s*=(.*)"


def read(source: Source) -> list[Entry]:
    """Read a .tps file.

    Landmarks are numbered from 1. Outlines (CURVES, OUTLINES) are left out. A landmark with x and y below zero is
    missing, by tpsDig's convention. SCALE without SCALEUNIT or UNITS is read as millimeters per pixel, with a warning.

    Args:
        source: The file.

    Returns:
        One entry per specimen, with its scale; its other fields (ID, COMMENT, VARIABLES) are columns.

    Raises:
        InputError: The file has no specimen.
    """
    specimens: list[tuple[int, dict[str, str], list[tuple[int, str]]]] = []
    landmarks = False
    for number, text in enumerate(source.text.splitlines(), 1):
        match = re.fullmatch(_KEYS, text)
        if match and match[1].upper() in ("LM", "LM3"):
            specimens.append((number, {}, []))
            landmarks = True
        elif match and match[1].upper() in ("CURVES", "OUTLINES", "POINTS"):
            landmarks = False
        if match and specimens:
            specimens[-1][1].setdefault(match[1].upper(), match[2].strip())
        elif text.strip() and specimens and landmarks:
            specimens[-1][2].append((number, text))
    if not specimens:
        raise InputError(f"{source}: no specimen; expected lines that begin with LM=")
    if any("SCALE" in fields and not {"SCALEUNIT", "UNITS"} & set(fields) for _, fields, _ in specimens):
        logger.warning("%s: SCALE has no unit and is taken as millimeters per pixel", source)
    numbering = Numbering()
    return [_entry(source, *specimen, numbering) for specimen in specimens]


def _entry(
    source: Source, number: int, fields: dict[str, str], lines: list[tuple[int, str]], numbering: Numbering
) -> Entry:
    file = image_name(fields.get("IMAGE", ""))
    entry = Entry(f"{source}:{number}", file, numbering(file), columns=fields, origin=ORIGIN)
    try:
        points = {}
        for i, (line, text) in enumerate(lines, 1):
            values = text.split()
            if len(values) != 2:
                raise InputError(f"line {line}: expected two numbers, x and y, got {text.strip()!r}")
            x, y = (coordinate(v, decimal_comma=True) for v in values)
            points[str(i)] = Point(x, y, 0) if x < 0 and y < 0 else Point(x, y)
        count = fields.get("LM", fields.get("LM3", ""))
        if count != str(len(points)):
            raise InputError(f"expected {count} landmarks (LM=), got {len(points)}")
        if not points:
            raise InputError("no landmarks")
        scale = coordinate(fields.get("SCALE"), decimal_comma=True)
        unit = fields.get("SCALEUNIT", fields.get("UNITS", "mm")).lower()
        scale *= _MM.get(unit, float("nan"))
        return replace(entry, points=points, positional=True, y_up=True, mm_per_pixel=scale)
    except InputError as error:
        return replace(entry, problem=str(error))
