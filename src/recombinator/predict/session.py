"""Graphs in ONNX Runtime: checked when they are read, usable after a fork and in other processes."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from recombinator.predict.graphfile import external_tensors, graph_checksum
from recombinator.utils.errors import InputError, first_line
from recombinator.utils.files import read_file
from recombinator.utils.schema import decode, parse_json


class Session:
    """A graph with Recombinator's metadata. Running it is thread-safe.

    Args:
        path: The .onnx file.
        threads: Number of threads; 0 leaves the choice to ONNX Runtime.
        format: The format that the metadata must name.
        content: The graph, if it is not the whole file.

    Attributes:
        metadata: The metadata, without format and checksum.
        properties: All texts in the file by name.
        checksum: SHA-256 of graph and tensors.

    Raises:
        InputError: ONNX Runtime is not installed, or the file cannot be used.
    """

    def __init__(self, path: str | os.PathLike[str], threads: int, format: str, content: bytes | None = None) -> None:
        self.path, self.threads, self.format, self._content = Path(path), threads, format, content
        data = self.content
        external_tensors(self.path, data)  # before ONNX Runtime opens the files that it names
        self._open()
        try:
            self.properties: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
        except Exception as error:  # a name that is not UTF-8
            raise InputError(f"{path}: its metadata cannot be read ({error})") from None
        text = self.properties.get("recombinator")
        if text is None:
            raise InputError(f"{path}: not written by `recombinator export` (its metadata is missing)")
        self.metadata = decode(dict[str, Any], parse_json(text, f"{path}: metadata"), f"{path}: metadata")
        found = self.metadata.pop("format", None)
        if found != format:
            raise InputError(f"{path}: expected the format {format}, got {found!r:.40}; export it again")
        self.checksum = graph_checksum(self.path, data)
        if self.metadata.pop("checksum", self.checksum) != self.checksum:  # earlier versions wrote none
            raise InputError(f"{path}: damaged: its graph and tensors do not have the checksum in its metadata")

    @property
    def content(self) -> bytes:
        """The graph; its tensors may be in other files."""
        return read_file(self.path) if self._content is None else self._content

    def _open(self) -> None:
        """Start a session of ONNX Runtime for this process."""
        try:
            import onnxruntime as ort
        except ImportError:
            raise InputError("ONNX Runtime is not installed: pip install onnxruntime, or use engine='torch'") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = self.threads, 1, 3
        # idle threads must not busy-wait: other images, or the session of another network, need the processor
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(
                str(self.path) if self._content is None else self._content, options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime has its own exceptions for each kind of damage
            raise InputError(f"{self.path}: not a readable ONNX file ({first_line(error)})") from None
        self._process = os.getpid()

    def check_interface(self, expected: dict[str, tuple[str, tuple[int, ...]]]) -> None:
        """Check inputs and outputs.

        Args:
            expected: Type, and shape without the batch dimension, by name.

        Raises:
            InputError: One is missing, or has another type or shape.
        """
        try:
            both = (*self._session.get_inputs(), *self._session.get_outputs())
            ends = {v.name: (v.type, tuple(v.shape[1:])) for v in both}
        except Exception as error:  # a name that is not UTF-8
            raise InputError(f"{self.path}: its inputs and outputs cannot be read ({error})") from None
        for name, (kind, shape) in expected.items():
            if name not in ends:
                raise InputError(f"{self.path}: has no input or output {name!r}; export it again")
            if ends[name][0] != kind:
                raise InputError(f"{self.path}: {name}: expected {kind}, got {ends[name][0]}")
            if any(isinstance(n, int) and n != s for n, s in zip(ends[name][1], shape, strict=False)):
                raise InputError(f"{self.path}: {name}: expected shape {('N', *shape)}, got {('N', *ends[name][1])}")

    def run(self, outputs: Sequence[str], image: np.ndarray) -> list[np.ndarray]:
        """Run the graph on an image batch.

        Args:
            outputs: Names of the outputs to compute.
            image: The graph's input.

        Raises:
            InputError: The graph fails, or its output is not finite.
        """
        if os.getpid() != self._process:  # a session has threads, which a forked process does not inherit
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))  # freeing it would wait for them forever
            self._open()
        try:
            found: list[np.ndarray] = self._session.run(list(outputs), {"image": image})
        except Exception as error:  # ONNX Runtime has its own exceptions
            raise InputError(f"ONNX Runtime cannot run it ({first_line(error)})") from None
        check_finite(found, str(self.path))
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {
            "path": self.path.absolute(), "threads": self.threads, "format": self.format, "content": self._content
        }  # fmt: skip

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


def check_finite(outputs: Sequence[np.ndarray], name: str) -> None:
    """Raise InputError, naming the network, unless every number of its outputs is finite."""
    if not all(np.isfinite(v).all() for v in outputs):
        raise InputError(f"{name}: the network's output is not finite; use other weights")


class ForkCheck:
    """Refuse to use torch in a forked process, which lacks torch's threads and would wait for them forever.

    After unpickling, a check belongs to the process that loaded it.
    """

    def __init__(self) -> None:
        self.process = os.getpid()

    def __call__(self) -> None:
        """Raise InputError if this is not the process that the check was made in."""
        if os.getpid() != self.process:
            raise InputError(
                "the process was forked after torch had started its threads, which a forked process does not have; "
                "start processes with multiprocessing's 'spawn' method, or use engine='onnx'"
            )

    def __reduce__(self) -> tuple[Any, ...]:
        return ForkCheck, ()
