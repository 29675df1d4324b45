"""Writing files so that a crash, a full disk or a second process never leaves half of one."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dreambooth.errors import RunError, UserError


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Give the name of a temporary file beside `path` to write to, and put it in place when the block ends well.

    Raises:
        RunError: The disk is full. What was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with disk_errors(path):
            rights = _rights(path)
            yield temporary
            temporary.chmod(rights)
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder beside `path`, and put it in place of what is there when the block ends well.

    Raises:
        RunError: The disk is full. What was at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    temporary.mkdir()
    try:
        with disk_errors(path):
            rights = _rights(path)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    file.chmod(rights)
                _sync(file)
            _sync(temporary)
            with _temporary_folder(path) as aside:
                if path.exists():
                    os.replace(path, Path(aside) / "old")
                os.replace(temporary, path)
            _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder. A crash leaves it whole, or a temporary for `sweep`, but no part of it in its place."""
    with _temporary_folder(path) as aside:
        os.replace(path, Path(aside) / "old")


def require_writable(folder: Path, mend: str = "choose another --out") -> None:
    """Refuse a folder to be written into, there already or not, where nothing can be; call it before any work.

    What the rights say is not all: a disk may be read-only, and no file can be made in `/proc` even by root.

    Raises:
        UserError: It cannot be written into, or lies in a file.
    """
    there = next(each for each in (folder, *folder.parents) if os.path.exists(each))
    if not there.is_dir():
        raise UserError(f"{there} is a file: {mend}")
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise UserError(f"cannot write into {there} ({error.strerror}): {mend}") from None


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk into a `RunError` that names `path`."""
    try:
        yield
    except Exception as error:  # safetensors reports a full disk as an error of its own
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if full or "No space left" in str(error) or "File too large" in str(error):
            raise RunError(f"the disk is full: could not write {path}; the last checkpoint is untouched") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def sweep(folder: Path, of: str = "*") -> None:
    """Remove what a killed process left half-written in `folder`, at any depth, of files with names like `of`."""
    for path in list(folder.rglob(f".{of}.*.tmp")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _temporary(path: Path) -> Path:
    """Return a name of its own; `tempfile` would make it unreadable to the user's group."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def _rights(path: Path) -> int:
    """Return the rights that a new file gets beside `path`; libraries give theirs others: safetensors 0600.

    A file is made to see them: who asks for the umask sets another one, for all threads.
    """
    probe = _temporary(path)
    probe.touch()
    rights = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    return rights


def _temporary_folder(path: Path) -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)


def _sync(path: Path) -> None:
    if os.name == "nt" and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
