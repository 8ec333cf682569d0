"""Write files so that no reader ever meets half of one, and keep two processes out of one folder."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from recombinator.utils.errors import InputError


class Busy(InputError):
    """Another process works in the folder."""


# identifiers are spelled as in PyTorch; files keep the keys that earlier versions wrote
_FILE_KEYS = {
    "normalizer": "normaliser", "normalizers": "normalisers", "optimizer": "optimiser", "regularize": "regularise",
    "gray": "grey",
}  # fmt: skip
_FROM_FILE = {v: k for k, v in _FILE_KEYS.items()}


def to_file_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same values under the keys that files have."""
    return {_FILE_KEYS.get(k, k): v for k, v in values.items()}


def from_file_keys(values: dict[str, Any]) -> dict[str, Any]:
    """Return the same values under the package's keys, from keys in either spelling."""
    return {_FROM_FILE.get(k, k): v for k, v in values.items()}


_UMASK = os.umask(0)
os.umask(_UMASK)
_LOCKED: set[Path] = set()  # by this process
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of a file system without locks


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the context lasts.

    The folder is created if it does not exist, and removed again if nothing was written to it. The lock ends with the
    process, however that dies. It can be taken again within this process. A file system without locks is used as it is.

    Args:
        folder: the folder to lock, by a file `.lock` in it.

    Raises:
        Busy: another process has locked the folder.
    """
    from filelock import FileLock, Timeout

    key = folder.resolve()
    if key in _LOCKED:
        yield
        return
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise Busy(f"{folder}: another process uses this folder; wait for it, or choose another --out") from None
    except NotImplementedError:
        pass
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    _LOCKED.add(key)
    try:
        yield
    finally:
        _LOCKED.discard(key)
        if fresh and [p.name for p in folder.iterdir()] == [".lock"]:
            with suppress(OSError):  # Windows removes no open file
                shutil.rmtree(folder)
        lock.release()


def is_locked(folder: Path) -> bool:
    """Return whether another process has locked the folder (`lock_folder`)."""
    if not (folder / ".lock").is_file():
        return False
    try:
        with lock_folder(folder):
            return False
    except Busy:
        return True


def check_output_file(path: Path, *endings: str) -> None:
    """Check the name of an output file before the work.

    Args:
        path: the file to be written.
        endings: what its name may end in, such as ".csv".

    Raises:
        InputError: it is a folder, ends in something else, or its folder cannot be made.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; expected a file name that ends in {' or '.join(endings)}")
    if path.suffix.lower() not in endings:
        raise InputError(f"{path}: must end in {' or '.join(endings)}")
    check_output_folder(path.parent)


def check_output_folder(path: Path) -> None:
    """Check that an output folder exists, or can be made where no file has its name or that of a folder above it.

    Raises:
        InputError: a file is in the way.
    """
    existing = next((p for p in (path, *path.parents) if p.exists()), path)
    if existing.exists() and not existing.is_dir():
        raise InputError(f"{existing}: is a file; expected a folder, so choose another name or remove the file")


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: the file to be written; its folder is created.
        write: called with the temporary path, which has the same ending.
    """
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
    """Copy a file atomically."""
    write_atomically(target, lambda p: shutil.copyfile(source, p))


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")
