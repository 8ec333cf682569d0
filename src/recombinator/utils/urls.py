"""Files by path or by URL. URLs are opened with fsspec."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from recombinator.utils.errors import InputError, import_optional
from recombinator.utils.files import write_atomically


def is_url(path: str) -> bool:
    """Return whether a path is a URL."""
    return "://" in path


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises:
        InputError: The protocol is unknown, or needs a package that is not installed.
    """
    try:
        files, path = import_optional("fsspec", url).core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: {error}") from None
    return files, path


def read_file(path: str) -> bytes:
    """Return the content of a file.

    Raises:
        InputError: It cannot be read.
    """
    files, inside = file_system(path) if is_url(path) else (None, path)
    try:
        return bytes(files.cat_file(inside)) if files else Path(path).read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise InputError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None


def write_file(path: str, data: bytes) -> None:
    """Write a file so that no reader meets half of it. Stores of objects write whole files anyway."""
    if is_url(path):
        files, inside = file_system(path)
        files.makedirs(files._parent(inside), exist_ok=True)
        files.pipe_file(inside, data)
    else:
        write_atomically(Path(path), lambda p: p.write_bytes(data))


def list_files(folder: str) -> list[str]:
    """Return the names of the files in a folder; [] if there is none."""
    if not is_url(folder):
        return os.listdir(folder) if os.path.isdir(folder) else []
    files, inside = file_system(folder)
    return [os.path.basename(p) for p in files.ls(inside, detail=False)] if files.isdir(inside) else []


def remove_file(path: str) -> None:
    """Delete a file."""
    if is_url(path):
        files, inside = file_system(path)
        files.rm_file(inside)
    else:
        os.unlink(path)
