"""Bytes on disk: hashed, written whole or not at all, locked between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from align.errors import AlignError, InputError

TEMP = ".tmp-"
"""Every unfinished file and folder begins with this; a killed process leaves nothing else behind."""


def sha256_file(path: str | Path) -> str:
    """The file's sha256 in hex, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temp_beside(path: Path) -> Path:
    """A fresh name on the same file system, so that the rename onto `path` is atomic."""
    return path.parent / f"{TEMP}{os.getpid()}-{secrets.token_hex(8)}"


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, durably. An existing one is fine."""
    if not folder.is_dir():
        make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)


@contextmanager
def explaining(where: Path) -> Iterator[None]:
    """Turn a full disk and a folder that may not be written into errors that say what to do.

    Raises: AlignError.
    """
    try:
        yield
    except OSError as error:
        what = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the disk quota is used up"}.get(error.errno or 0)
        if what:
            done = "Nothing was committed and the unfinished files are removed. Free some space and run the same command again."
            raise AlignError(f"{where}: {what} ({error.strerror}). {done}") from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise AlignError(
                f"{error.filename or where}: {error.strerror}. Name a folder that you may write, or change its owner."
            ) from error
        raise


@contextmanager
def written(path: Path, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write that appears at `path` whole, durable and with `mode`, or not at all when the block raises.

    Raises: AlignError when the disk is full.
    """
    temp = temp_beside(path)
    with explaining(path):
        make_folder(path.parent)
        try:
            with open(temp, "xb") as file:
                yield file
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(temp, path)
            sync_folder(path.parent)
        finally:
            temp.unlink(missing_ok=True)


@contextmanager
def written_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill that appears at `folder` (absent or empty until then) complete, or not at all when the block raises.

    Raises: InputError when `folder` holds something; AlignError when the disk is full.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "holds files already" if folder.is_dir() else "is a file"
        raise InputError(f"{folder} {what}. Name a folder that is absent or empty.")
    temp = temp_beside(folder)
    with explaining(folder):
        make_folder(folder.parent)
        try:
            temp.mkdir()
            yield temp
            os.replace(temp, folder)
            sync_folder(folder.parent)
        finally:
            shutil.rmtree(temp, ignore_errors=True)


def write_file(path: Path, content: bytes, mode: int = 0o644) -> None:
    with written(path, mode) as file:
        file.write(content)


def linked(source: Path, target: Path) -> bool:
    """Hard-link `source` to `target`; False where the file system cannot."""
    try:
        os.link(source, target)
    except OSError:
        return False
    return True


def copy(source: Path, target: Path, mode: int) -> None:
    """Copy `source` to a new file, durably."""
    with open(source, "rb") as file, open(target, "xb") as new:
        shutil.copyfileobj(file, new, 1 << 20)
        new.flush()
        os.fchmod(new.fileno(), mode)
        os.fsync(new.fileno())


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `path`'s lock against every other process. One that must wait first tells `waiting` who holds it (pid, host, since).

    The kernel drops the lock of a killed process, so nothing is ever left locked.
    """
    make_folder(path.parent)
    with open(path, "a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                file.seek(0)
                waiting(file.read().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # also for forked children, which share the open file


def digest_folder(folder: str | Path, patterns: Sequence[str], cache: Path | None = None) -> str:
    """One digest for the files of `folder` that match any of `patterns` (such as "*.safetensors"), over their names and contents.

    It is the sha256 of what `sha256sum` prints for them, sorted by name. Symlinks are followed: hub snapshots are made of them.
    `cache` is a JSON file in a store's cache/ that remembers hashes by path, size and times, so that a large base is read once;
    it is written only where the store exists.

    Raises: InputError when nothing matches.
    """
    folder = Path(folder)
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise InputError(f"{folder}: no file matches {', '.join(patterns)}. Expected a folder that holds them.")
    known = _read_cache(cache)
    hashes: dict[str, str] = {}
    fresh: dict[str, list[int | str]] = {}
    for path in found:
        stat, place = path.stat(), str(path.resolve())
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = known.get(place)
        if entry and entry[:3] == seen:
            digest = str(entry[3])
        else:
            digest = sha256_file(path)
            if time.time_ns() - stat.st_ctime_ns > 2_000_000_000:  # a younger file could still change within one tick of its clock
                fresh[place] = [*seen, digest]
        hashes[path.relative_to(folder).as_posix()] = digest
    if fresh and cache and cache.parent.parent.is_dir():
        write_file(cache, json.dumps({**_read_cache(cache), **fresh}, sort_keys=True).encode())
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _read_cache(cache: Path | None) -> dict[str, list[int | str]]:
    """What the cache remembers; nothing when it is absent or unreadable, for it can be rebuilt."""
    try:
        return dict(json.loads(cache.read_bytes())) if cache else {}
    except (OSError, ValueError):
        return {}
