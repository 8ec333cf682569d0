"""Writing so that a reader, or a kill, never meets half a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from recombinator.utils.errors import InputError


class Busy(InputError):
    """Another process is at work in the folder."""


# identifiers are spelled as in PyTorch; files keep the keys that earlier versions wrote
_FILE_KEYS = {
    "normalizer": "normaliser", "normalizers": "normalisers", "optimizer": "optimiser", "regularize": "regularise",
    "gray": "grey",
}  # fmt: skip
_FROM_FILE = {v: k for k, v in _FILE_KEYS.items()}


def to_file_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The same values under the keys that files have."""
    return {_FILE_KEYS.get(k, k): v for k, v in values.items()}


def from_file_keys(values: dict[str, Any]) -> dict[str, Any]:
    """The reverse of `to_file_keys`; keys in either spelling are accepted."""
    return {_FROM_FILE.get(k, k): v for k, v in values.items()}


_UMASK = os.umask(0)
os.umask(_UMASK)
_LOCKED: set[Path] = set()  # by this process


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """While it lasts, no other process can hold `folder`; a process that dies lets go. Raises Busy."""
    key = folder.resolve()
    if key in _LOCKED:
        yield
        return
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Busy(f"{folder}: another process is training there; wait for it, or choose another --out") from None
        except (ImportError, OSError):  # a system, or a network's file system, without such locks
            pass
        _LOCKED.add(key)
        try:
            yield
        finally:
            _LOCKED.discard(key)
            if fresh and [p.name for p in folder.iterdir()] == [".lock"]:  # nothing came of it
                shutil.rmtree(folder)


def is_locked(folder: Path) -> bool:
    """Whether another process holds `folder` now."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with lock_folder(folder):
            return False
    except Busy:
        return True


def check_output_file(path: Path, *endings: str) -> None:
    """Raises InputError for an output file whose name is a folder's, or does not end so."""
    if path.is_dir():
        raise InputError(f"{path}: is a folder; give a file's name that ends in {' or '.join(endings)}")
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: wants a name that ends in {' or '.join(endings)}")


def check_output_folder(path: Path) -> None:
    """Raises InputError for an output folder that is a file."""
    if path.exists() and not path.is_dir():
        raise InputError(f"{path}: is a file; give a folder's name")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write` with a temporary path beside `path`, then renames it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # the ending stays last: some writers choose the format by it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        write(temporary)
        os.chmod(temporary, 0o666 & ~_UMASK)  # some writers make files that only their user can read
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    write_atomically(target, lambda p: shutil.copyfile(source, p))


def write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")
