"""Who may change a store when: writers share it, the collector has it alone. docs/store.md, "Collecting", says why this
is safe."""

from __future__ import annotations

import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from align.ground.disk import explaining, locked, make_folder
from align.ground.terminal import on_stderr


class Access:
    """This process's access to one store. Blocks of `shared` nest, and threads share one lock; see `access_to`."""

    def __init__(self, folder: Path) -> None:
        self.lock, self.gate = folder / "lock", folder / "gate"
        self.mutex = threading.Lock()
        self.depth = 0
        self.descriptor = -1

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Be one of the writers. Waits while a collector is at work, and says so."""
        with self.mutex:
            if self.depth == 0:
                self.descriptor = self._enter()
            self.depth += 1
        try:
            yield
        finally:
            with self.mutex:
                self.depth -= 1
                if self.depth == 0:
                    _leave(self.descriptor)

    def _enter(self) -> int:
        gate = _opened(self.gate)
        try:
            _flock(
                gate,
                fcntl.LOCK_SH,
                f"`align gc` is at work in {self.gate.parent} ({_holder(self.gate)}); waiting for it.",
            )
            lock = _opened(self.lock)
            try:
                fcntl.flock(lock, fcntl.LOCK_SH)
            except BaseException:
                os.close(lock)
                raise
            return lock
        finally:
            _leave(gate)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Be alone with the store. Never inside `shared` of the same thread, which it would wait for."""
        with locked(self.gate, lambda holder: on_stderr(f"another `align gc` is at work ({holder}); waiting for it.")):
            lock = _opened(self.lock)
            try:
                _flock(lock, fcntl.LOCK_EX, f"somebody is writing to {self.lock.parent}; waiting for that.")
                yield
            finally:
                _leave(lock)


@cache
def _access(path: str) -> Access:
    return Access(Path(path))


def access_to(folder: Path) -> Access:
    """The one `Access` of this process to the store in `folder`, so that every block nests."""
    return _access(os.path.realpath(folder))


class Grip:
    """A shared lock on a file that says what is in use. The kernel lets go when the process ends."""

    def __init__(self, path: Path) -> None:
        self.descriptor = os.open(path, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        _leave(self.descriptor)


def gripped(path: Path) -> bool:
    """Whether anybody has a `Grip` on a file. Ask only when alone with the store: asking takes the lock for a
    moment."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return True
    _leave(descriptor)
    return False


@contextmanager
def if_free(path: Path) -> Iterator[bool]:
    """Hold `path`'s lock for the block if nobody else does; whether that is so. Never waits."""
    descriptor = _opened(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        yield False
        return
    try:
        yield True
    finally:
        _leave(descriptor)


def _opened(path: Path) -> int:
    """A lock file, made where it is missing; reading it is enough to lock it, so that several users can."""
    with explaining(path):
        make_folder(path.parent)
        return os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)


def _flock(descriptor: int, kind: int, waiting: str) -> None:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        on_stderr(waiting)
        fcntl.flock(descriptor, kind)


def _leave(descriptor: int) -> None:
    """Unlock explicitly: a forked child may have the open file too."""
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    os.close(descriptor)


def _holder(path: Path) -> str:
    try:
        return path.read_text().strip() or "another process"
    except OSError:
        return "another process"
