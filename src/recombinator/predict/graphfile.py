"""The bytes of an ONNX file, without the onnx package: which other files it reads, and a checksum of its graph.

An ONNX file is a Protocol Buffers message: fields, each with a number and a wire type. Only the messages in `_CHILDREN`
can hold tensors.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from recombinator.utils.errors import InputError

# for each message, its fields that lead to tensors, by number (onnx.proto)
_CHILDREN: dict[str, dict[int, str]] = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_GRAPH, _EXTERNAL_DATA, _KEY, _VALUE = 7, 13, 1, 2
_DEEPEST = 40  # messages inside each other
_ENDING = ".safetensors"


@dataclass(frozen=True)
class ExternalTensor:
    """Where a tensor is stored outside the graph.

    Attributes:
        location: The file, as the graph names it.
        offset: First byte in that file.
        length: Number of bytes.
    """

    location: str
    offset: int
    length: int


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise IndexError


def _fields(data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """Yield number and content of the fields of a message that have a length. Raises IndexError for damage."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        wire = key & 7
        if wire == 0:
            _, at = _varint(data, at)
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
        elif wire == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise IndexError
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise IndexError


def _external_tensors(data: memoryview, message: str = "model", depth: int = 0) -> Iterator[ExternalTensor]:
    if depth > _DEEPEST:
        raise IndexError
    if message == "tensor":
        entries = {}
        for number, content in _fields(data):
            if number == _EXTERNAL_DATA:
                entry = dict(_fields(content))
                entries[bytes(entry.get(_KEY, b""))] = bytes(entry.get(_VALUE, b""))
        if entries:
            offset, length = (int(entries.get(key, b"0")) for key in (b"offset", b"length"))
            yield ExternalTensor(entries.get(b"location", b"").decode(), offset, length)
        return
    children = _CHILDREN[message]
    for number, content in _fields(data):
        if number in children:
            yield from _external_tensors(content, children[number], depth + 1)


def external_tensors(path: Path, data: bytes) -> list[ExternalTensor]:
    """Return the tensors that a graph reads from other files, in the order of the graph.

    Args:
        path: The .onnx file.
        data: Its content.

    Raises:
        InputError: The file is damaged, or reads anything but .safetensors files in its own folder.
    """
    try:
        tensors = list(_external_tensors(memoryview(data)))
    except (IndexError, ValueError):
        raise InputError(f"{path}: not a readable ONNX file (damaged)") from None
    sizes: dict[str, int] = {}
    for tensor in tensors:
        name = tensor.location
        if not name.endswith(_ENDING) or name.startswith(".") or any(c in name for c in "/\\:\0"):
            raise InputError(
                f"{path}: reads its tensors from {name!r:.100}; allowed are {_ENDING} files in the graph's own folder"
            )
        if name not in sizes:
            file = path.parent / name
            if not file.is_file():
                raise InputError(f"{path}: its tensors are in {file}, which does not exist; copy both into one folder")
            sizes[name] = file.stat().st_size
        if tensor.offset < 0 or tensor.length < 1 or tensor.offset + tensor.length > sizes[name]:
            raise InputError(f"{path}: expected {tensor.length} bytes at {tensor.offset} of {path.parent / name}")
    return tensors


def graph_checksum(path: Path, data: bytes) -> str:
    """Return the SHA-256 of a graph and of its tensors, wherever they are stored. The metadata is not a part of it.

    Args:
        path: The .onnx file; its folder holds the files of external tensors.
        data: Its content.

    Raises:
        InputError: See `external_tensors`.
    """
    tensors = external_tensors(path, data)
    digest = hashlib.sha256()
    for number, content in _fields(memoryview(data)):
        if number == _GRAPH:
            digest.update(content)
    files: dict[str, memoryview] = {}
    for tensor in tensors:
        if tensor.location not in files:
            files[tensor.location] = memoryview((path.parent / tensor.location).read_bytes())
        digest.update(files[tensor.location][tensor.offset : tensor.offset + tensor.length])
    return digest.hexdigest()
