"""Bytes on disk: hashed, written whole or not at all, locked between processes."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from align.ground.errors import AlignError, InputError
from align.ground.progress import each

Hashes = dict[str, list[int | str]]
"""Path -> size, mtime and ctime in nanoseconds, sha256."""
TEMP = ".tmp-"
"""Every unfinished file and folder begins with this; a killed process leaves nothing else behind."""


def sha256_file(path: str | Path) -> str:
    """The file's sha256 in hex, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def temp_beside(path: Path) -> Path:
    """A fresh name on the same file system, so that the rename onto `path` is atomic. It says whose it is."""
    return path.parent / f"{TEMP}{os.getpid()}-{_host()}-{secrets.token_hex(8)}"


def _host() -> str:
    """This machine and container, as the names of temporary files have them: process ids mean nothing in another."""
    space = Path("/proc/self/ns/pid")
    namespace = os.readlink(space) if space.is_symlink() else ""
    return hashlib.sha256(f"{socket.gethostname()} {namespace}".encode()).hexdigest()[:8]


def _clear_dead(parent: Path) -> None:
    """Remove the unfinished folders in `parent` that killed processes of this machine left."""
    ours = re.compile(rf"{re.escape(TEMP)}(\d+)-{_host()}-[0-9a-f]{{16}}")
    for path in parent.glob(f"{TEMP}*"):
        named = ours.fullmatch(path.name)
        if named and not is_alive(int(named[1])) and path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)


def is_alive(process: int) -> bool:
    """Whether there is a process of that number, on this machine."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        pass
    return True


def sync_folder(folder: Path) -> None:
    """Make renames and new names in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its parents, durably. An existing one is fine. Raises: InputError where none can be."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            folder.mkdir(exist_ok=True)
        except FileNotFoundError as error:  # in /proc, where its parent is there
            raise InputError(f"{folder}: no folder can be made in {folder.parent}. Name another place.") from error
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
            done = (
                "Nothing was committed and the unfinished files are removed. Free some space and run the same "
                "command again."
            )
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
    """A folder to fill that appears at `folder` (absent or empty until then) complete, or not at all when the block
    raises. What killed processes left beside it is removed.

    Raises: InputError when `folder` holds something; AlignError when the disk is full.
    """
    folder = folder.resolve()
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "holds files already" if folder.is_dir() else "is a file"
        raise InputError(f"{folder} {what}. Name a folder that is absent or empty.")
    temp = temp_beside(folder)
    with explaining(folder):
        make_folder(folder.parent)
        _clear_dead(folder.parent)
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


def copy(source: Path, target: Path) -> str:
    """Copy `source` to a new file and hash it on the way; the sha256 of what was copied. `sync_file` makes it
    durable."""
    copied = hashlib.sha256()
    buffer = memoryview(bytearray(1 << 20))
    with open(source, "rb", buffering=0) as file, open(target, "xb", buffering=0) as new:
        while size := file.readinto(buffer):
            copied.update(buffer[:size])
            written = 0
            while written < size:
                written += new.write(buffer[written:size])
    return copied.hexdigest()


def sync_file(path: Path, mode: int) -> None:
    """Give a file its mode and make its bytes survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def seal(content: bytes) -> bytes:
    """Content whose file name does not prove it, with a line that does: its sha256."""
    return content + b"\n" + hashlib.sha256(content).hexdigest().encode() + b"\n"


def unseal(path: Path) -> bytes | None:
    """The content of a sealed file; None when the file is missing or damaged."""
    try:
        content, digest, end = path.read_bytes().rsplit(b"\n", 2)
    except (FileNotFoundError, ValueError):
        return None
    return content if end == b"" and hashlib.sha256(content).hexdigest().encode() == digest else None


def write_sealed(path: Path, parts: Iterable[memoryview]) -> None:
    """A sealed file of parts that are never held together."""
    hashed = hashlib.sha256()
    with written(path) as file:
        for part in parts:
            hashed.update(part)
            file.write(part)
        file.write(b"\n" + hashed.hexdigest().encode() + b"\n")


def is_sealed(path: Path) -> bool:
    """Whether a file is what `seal` or `write_sealed` made, found out without holding it."""
    hashed, end = hashlib.sha256(), len(seal(b""))
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size - end
            while left > 0 and (part := file.read(min(left, 1 << 20))):
                hashed.update(part)
                left -= len(part)
            return file.read() == b"\n" + hashed.hexdigest().encode() + b"\n"
    except FileNotFoundError:
        return False


@contextmanager
def locked(path: Path, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
    """Hold `path`'s lock against every other process. One that must wait first tells `waiting` who holds it (pid, host,
    since).

    The kernel drops the lock of a killed process, so nothing is ever left locked.
    """
    make_folder(path.parent)
    with open(path, "ab+", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if waiting:
                file.seek(0)
                waiting(file.read().decode().strip() or "another process")
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        with suppress(OSError):  # on a full disk nobody learns who holds it, but `align gc` can still make room
            file.write(
                f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%Y-%m-%d %H:%M:%S')}\n".encode()
            )
        try:
            yield
        finally:
            file.truncate(0)
            fcntl.flock(file, fcntl.LOCK_UN)  # also for forked children, which share the open file


def is_locked(path: Path) -> bool:
    """Whether a process holds `path` as `locked` does. Asking makes nobody wait: who holds it has written into it, and
    an empty file is not looked at any closer."""
    with suppress(OSError), open(path, "rb") as file:
        if file.read(1):
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
    return False


def digest_folder(folder: str | Path, patterns: Sequence[str], remembered: Hashes | None = None) -> str:
    """One digest for the files of `folder` that match any of `patterns` (such as "*.safetensors"), over their names and
    contents.

    It is the sha256 of what `sha256sum` prints for them, sorted by name. Symlinks are followed: hub snapshots are made
    of them. What is `remembered` of unchanged files is taken from there, and hashes that are worth remembering are
    added.

    Raises: InputError when nothing matches.
    """
    folder = Path(folder)
    found = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    if not found:
        raise InputError(f"{folder}: no file matches {', '.join(patterns)}. Expected a folder that holds them.")
    known = {} if remembered is None else remembered
    hashes: dict[str, str] = {}
    for path in each(f"hashing {folder.name}", found, "files"):
        stat, place = path.stat(), str(path.resolve())
        seen = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
        entry = known.get(place)
        if entry and entry[:3] == seen:
            digest = str(entry[3])
        else:
            digest = sha256_file(path)
            # a younger file could still change within one tick of its clock
            if time.time_ns() - stat.st_ctime_ns > 2_000_000_000:
                known[place] = [*seen, digest]
        hashes[path.relative_to(folder).as_posix()] = digest
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()
