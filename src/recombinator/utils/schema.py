"""Decode the contents of files into typed structures. Errors say in one sentence what is wrong.

A structure is an annotated type: a dataclass, a `msgspec.Struct`, or a type such as `Share`. It states types, ranges
and lengths once; `decode` checks them.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar, overload

import msgspec
from msgspec import Meta

from recombinator.utils.errors import InputError

LARGE = 1e9  # no number of a file that is used in computation is larger
Finite = Annotated[float, Meta(ge=-LARGE, le=LARGE)]  # excludes NaN too
Positive = Annotated[float, Meta(gt=0, le=LARGE)]
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=10**15)]
FileName = Annotated[str, Meta(pattern=r"^[^\x00]+$")]
Name = Annotated[str, Meta(min_length=1, max_length=1000)]

T = TypeVar("T")


def parse_json(text: str | bytes, where: str, *, file_names: bool = False) -> Any:
    """Parse JSON.

    Args:
        text: The text, in UTF-8 if it is bytes.
        where: The start of the message: the file, and the line or field where there is one.
        file_names: Allow halves of surrogate pairs, by which Python writes file names that are not UTF-8.

    Raises:
        InputError: It is not JSON, is nested too deeply, or has numbers or characters that cannot be represented.
    """
    try:
        value = json.loads(text)
        if not file_names and b"\\ud" in (text if isinstance(text, bytes) else text.encode()).lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair can be neither printed nor saved
    except RecursionError:
        raise InputError(f"{where}: not usable JSON (too deeply nested)") from None
    except json.JSONDecodeError as error:
        line = "" if re.search(r":\d+$", where) else f":{error.lineno}"
        raise InputError(f"{where}{line}: not JSON ({error.msg})") from None
    except ValueError as error:
        raise InputError(f"{where}: not usable JSON ({error})") from None
    return value


@overload
def decode(kind: type[T], value: Any, where: str) -> T: ...
@overload
def decode(kind: Any, value: Any, where: str) -> Any: ...
def decode(kind: Any, value: Any, where: str) -> Any:
    """Convert a value that JSON can hold into a typed structure.

    Args:
        kind: The structure.
        value: The value.
        where: The start of the message: the file, and the field where the value is a part of a larger one.

    Raises:
        InputError: "WHERE: FIELD: expected X, got Y" for the first field that differs from the structure.
    """
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise InputError(f"{where}: {_sentence(str(error), value)}") from None
    except RecursionError:
        raise InputError(f"{where}: nested too deeply") from None
    except UnicodeEncodeError as error:  # half of a surrogate pair where no file name is expected
        raise InputError(f"{where}: expected UTF-8 text ({error.reason})") from None


def _sentence(message: str, value: Any) -> str:
    """Turn msgspec's message, such as "Expected `int`, got `str` - at `$.a[0]`", into "a[0]: expected int, got str"."""
    text, _, path = message.partition(" - at ")
    field = path.strip("`").removeprefix("$").removeprefix(".")
    text = text.replace("`", "")
    missing = re.fullmatch(r"Object missing required field (.*)", text)
    if missing:
        field, text = f"{field}.{missing[1]}".removeprefix("."), "expected a value, got none"
    unknown = re.fullmatch(r"Object contains unknown field (.*)", text)
    if unknown:
        field, text = f"{field}.{unknown[1]}".removeprefix("."), "unknown field"
    if text.startswith("Expected"):
        text = f"expected {text.removeprefix('Expected ')}"
        if ", got " not in text:
            text += f", got {_shown(value, field)}"
    return f"{field}: {text}" if field else text


def _shown(value: Any, field: str) -> str:
    """Return the value at a path such as "a[0].b", or what is known of it, short enough for a message."""
    for key, index in re.findall(r"([^.\[\]]+)|\[(\d+|\.\.\.)\]", field):
        try:
            value = value[key] if key else value[int(index)]
        except (KeyError, IndexError, TypeError, ValueError):
            return "another value"
    if isinstance(value, list | tuple | dict):
        return f"{len(value)} entries"
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**20 else "a larger number"
    return text if len(text) <= 40 else f"{text[:37]}..."
