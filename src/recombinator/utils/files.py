"""Write files atomically, and lock folders against a second process."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import shutil
import stat
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
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]  # process numbers are only valid on their own machine
_TEMPORARY = re.compile(r"\..*\.(\d+)(?:-([0-9a-f]{8}))?\.(?:tmp|part)(\.\w+)?")
_LOCKED: set[Path] = set()  # by this process
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)  # of a file system without locks


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder while the context lasts.

    The folder is created if it does not exist, and removed again if nothing was written to it. The lock ends with the
    process, even if that is killed. It can be taken again within this process. On a file system without locks, nothing
    is locked.

    Args:
        folder: The folder to lock, by a file `.lock` in it.

    Raises:
        Busy: Another process has locked the folder.
        InputError: Its `.lock` is a symbolic link.
    """
    from filelock import FileLock, Timeout

    key = folder.resolve()
    if key in _LOCKED:
        yield
        return
    fresh = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    check_no_link(folder / ".lock")
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
    remove_temporary_files(folder)
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


def check_no_link(path: Path) -> None:
    """Check that a file of a run is not a symbolic link, through which another file would be written.

    Raises:
        InputError: It is one.
    """
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link, which is not followed; remove it, or choose another --out")


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True  # of another user
    return True


def remove_temporary_files(folder: Path) -> None:
    """Remove the temporary files that killed processes of this machine left in a folder (`write_atomically`)."""
    if os.name != "posix" or not folder.is_dir():  # elsewhere, os.kill ends a process
        return
    for path in folder.glob(".*.*"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and match[2] in (None, _HOST) and not _is_alive(int(match[1])):
            with suppress(OSError):
                path.unlink()


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check before reading that an input is not a pipe or a device, which may never end. It may be missing.

    Raises:
        InputError: It is one.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise InputError(f"{path}: not a regular file (a pipe or a device); save its content to a file first")


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Return the bytes of a file.

    Raises:
        InputError: It cannot be read, or is a pipe or a device.
    """
    check_regular(path)
    try:
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def check_output_folder(folder: Path) -> None:
    """Check before the work that files can be written to a folder, which need not exist; remove stale temporary files.

    Raises:
        InputError: Its files cannot be written, or it cannot be created.
    """
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    if not existing.is_dir():
        raise InputError(f"{existing}: is a file; expected a folder, so choose another name or remove the file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise InputError(f"{existing}: cannot be written to; choose another folder, or change its permissions")
    remove_temporary_files(folder)


def check_output_file(path: Path, *endings: str) -> None:
    """Check the name and the folder of an output file before the work.

    Args:
        path: The file to be written.
        endings: What its name may end in, such as ".csv"; any by default.

    Raises:
        InputError: It is a folder, ends in something else, or its folder cannot be written to.
    """
    if path.is_dir():
        ends = f" that ends in {' or '.join(endings)}" if endings else ""
        raise InputError(f"{path}: is a folder; expected a file name{ends}")
    if endings and path.suffix.lower() not in endings:
        raise InputError(f"{path}: must end in {' or '.join(endings)}")
    check_output_folder(path.parent)


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: The file to be written; its folder is created.
        write: Called with the temporary path, which has the same ending.

    Raises:
        InputError: The file cannot be written, for example to a full disk. An existing file stays as it was.
    """
    # the ending stays last: some writers choose the format by it
    temporary = path.with_name(f".{path.stem}.{os.getpid()}-{_HOST}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.chmod(temporary, 0o666 & ~_UMASK)  # some writers make files that only their user can read
        with open(temporary, "rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise InputError(f"{path}: cannot be written ({reason}); free some space, or choose another folder") from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file atomically."""
    write_atomically(target, lambda p: shutil.copyfile(source, p))


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8 atomically."""
    write_atomically(path, lambda p: p.write_text(text, encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON atomically.

    Raises:
        InputError: A number is NaN or infinite, which JSON does not have, or the file cannot be written.
    """
    try:
        text = json.dumps(value, indent=2, allow_nan=False)
    except ValueError:
        raise InputError(f"{path}: not written: {find_not_finite(value)} is not a finite number") from None
    write_text(path, text + "\n")


def find_not_finite(value: Any, name: str = "") -> str:
    """Return the name of the first number in a value that is NaN or infinite, such as "rows[2].nme"; "" without one."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else name
    if isinstance(value, dict):
        parts = ((v, f"{name}.{k}".removeprefix(".")) for k, v in value.items())
    else:
        parts = ((v, f"{name}[{i}]") for i, v in enumerate(value if isinstance(value, list | tuple) else ()))
    return next((found for v, n in parts if (found := find_not_finite(v, n))), "")


def plain_cell(text: str) -> str:
    """Return a text as a CSV cell that no spreadsheet runs as a formula: with a quote before = + - @ and controls."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) else text


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path is below a folder, as both are written or with symbolic links followed."""
    if Path(os.path.normpath(path.absolute())).is_relative_to(os.path.normpath(folder.absolute())):
        return True
    return Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
