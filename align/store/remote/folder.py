"""A remote in a folder of this machine."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from align.ground import disk as disk
from align.ground.errors import AlignError
from align.store.access import access_to
from align.store.layout import MARK, MARKED
from align.store.remote.place import CHUNK, Remote


class Folder(Remote):
    """A folder of this machine or of a mounted disk, perhaps a store in use. Nothing is read or written through a
    symlink."""

    def __init__(self, url: str, folder: Path) -> None:
        super().__init__(url, None, str(folder))
        self.folder = folder

    def _path(self, path: str) -> Path:
        place = self.folder
        for part in path.split("/"):
            place = place / part
            if place.is_symlink():
                raise AlignError(
                    f"{place} is a symlink, which could lead anywhere. A remote holds plain files and folders."
                )
        return place

    def writing(self) -> AbstractContextManager[None]:
        return access_to(self.folder).shared()

    def size(self, path: str) -> int | None:
        place = self._path(path)
        try:
            found = os.lstat(place)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if not stat.S_ISREG(found.st_mode):
            raise AlignError(f"{place} is no plain file.")
        return found.st_size

    def chunks(self, path: str) -> Iterator[bytes]:
        if self.size(path) is None:
            raise FileNotFoundError(self.where(path))
        # a pipe put there meanwhile must not block
        descriptor = os.open(self._path(path), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def names(self, folder: str) -> list[str]:
        root = self._path(folder)
        return [
            path.relative_to(root).as_posix()
            for path in sorted(root.rglob("[!.]*"))
            if path.is_symlink() or not path.is_dir()
        ]

    def send(self, source: Path, path: str, sent: Callable[[int], None]) -> None:
        with disk.written(self._path(path), mode=0o444) as target, open(source, "rb") as file:
            while chunk := file.read(CHUNK):
                target.write(chunk)
                sent(len(chunk))

    def write(self, path: str, content: bytes) -> None:
        disk.write_file(self._path(path), content, mode=0o644 if path.startswith("refs/") else 0o444)

    def swap(self, path: str, old: bytes | None, new: bytes) -> bool:
        with disk.locked(self._path("refs/.lock")):  # the lock that `Store.tag` takes
            return super().swap(path, old, new)

    def check_swap(self) -> None:
        self.swap(MARK, None, MARKED)
