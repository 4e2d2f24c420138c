"""A place of files elsewhere: what every remote can do. It reads and writes whole files.

Names are written only on condition that they still hold what was read (`Remote.swap`), so that of two pushers one is
told.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from align.ground.errors import AlignError
from align.store.layout import MARK, MARKED
from align.store.remote.address import LATER, secrets, without

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem
    from fsspec.callbacks import Callback

CHUNK = 8 << 20
SMALL = 1 << 12
"""More bytes than a name or the mark can have."""


class Remote:
    """A folder of any file system of fsspec. Paths are relative to it and hold nothing but checked names."""

    def __init__(self, url: str, fs: AbstractFileSystem, root: str) -> None:
        self.address, self.fs, self.root = url, fs, root.rstrip("/")
        self.secrets, self.patience = secrets(url), LATER
        self.url = without(self.secrets, url)

    def at(self, path: str) -> str:
        return f"{self.root}/{path}"

    def where(self, path: str) -> str:
        """The path as a message names it."""
        return f"{self.url}/{path}"

    def size(self, path: str) -> int | None:
        """Bytes of a file; None where there is none.

        Raises: AlignError for what is no plain file.
        """
        try:
            info = self.fs.info(self.at(path))
        except FileNotFoundError as error:
            check_answered(error)
            return None
        if info["type"] != "file":
            raise AlignError(f"{self.where(path)} is a {info['type']}; expected a file.")
        return int(info["size"])

    def chunks(self, path: str) -> Iterator[bytes]:
        """A file's bytes in order. Raises: FileNotFoundError."""
        with self.fs.open(self.at(path), "rb", block_size=CHUNK) as file:
            while chunk := file.read(CHUNK):
                yield chunk

    def read(self, path: str, limit: int) -> bytes | None:
        """A small file; None where there is none.

        Raises: AlignError for one of more than `limit` bytes, of which no more is read.
        """
        content = b""
        try:
            for chunk in self.chunks(path):
                content += chunk
                if len(content) > limit:
                    raise AlignError(
                        f"{self.where(path)} has more than {limit:,} bytes, which it cannot have. Nothing was written."
                    )
        except FileNotFoundError as error:
            check_answered(error)
            return None
        return content

    def names(self, folder: str) -> list[str]:
        """The files below a folder by their paths inside it, sorted; hidden ones are left out."""
        start = f"{self.at(folder)}/"
        try:
            found = self.find(self.at(folder))
        except FileNotFoundError as error:
            check_answered(error)
            return []
        names = (path.removeprefix(start) for path in found if path.startswith(start))
        return sorted(name for name in names if name and not any(part.startswith(".") for part in name.split("/")))

    def find(self, place: str) -> list[str]:
        """All files below a place."""
        return list(self.fs.find(place))

    def send(self, source: Path, path: str, sent: Callable[[int], None]) -> None:
        """Copy a local file there, and tell `sent` of bytes that are."""
        self.fs.makedirs(self.at(path).rpartition("/")[0], exist_ok=True)
        self.fs.put_file(str(source), self.at(path), callback=telling(sent))

    def write(self, path: str, content: bytes) -> None:
        """Write a small file, whatever was there."""
        self.fs.makedirs(self.at(path).rpartition("/")[0], exist_ok=True)
        self.fs.pipe_file(self.at(path), content)

    def swap(self, path: str, old: bytes | None, new: bytes) -> bool:
        """Write `new` if the file still holds `old` (None: if there is none); whether that was so. Atomic where
        `check_swap` passes."""
        if self.read(path, SMALL) != old:
            return False
        self.write(path, new)
        return True

    def writing(self) -> AbstractContextManager[None]:
        """For as long as objects have no name there yet: nobody collects them."""
        return nullcontext()

    def check_format(self) -> None:
        """The first that the other side is asked. Raises: AlignError for what a newer Align wrote."""
        first = self.at_first()
        if (found := first.read(MARK, SMALL)) not in (None, MARKED):
            raise AlignError(
                f"{self.where(MARK)} says {found!r}; this Align reads {MARKED!r}. A newer Align may read it."
            )
        self.patience = LATER

    def at_first(self) -> Remote:
        """This place, waited for less where that can be said: it may never answer."""
        return self

    def check_swap(self) -> None:
        """Make sure, before anything travels, that `swap` is atomic there, and mark the place. Raises: AlignError."""
        raise AlignError(
            f"{self.url}: Align does not know how to move a name there without the risk of overwriting another's push. "
            "Push digests instead of names, which need no such care, or give --force and see to it that nobody else "
            "pushes meanwhile."
        )


def check_answered(error: FileNotFoundError) -> None:
    """Raise what an "is not there" of fsspec came from, where that is no answer at all or another one."""
    cause = error.__cause__
    if isinstance(cause, OSError) or (cause is not None and getattr(cause, "status", 404) not in (404, 410)):
        raise cause


def telling(sent: Callable[[int], None]) -> Callback:
    """A callback of fsspec that tells `sent` of every further byte."""
    from fsspec.callbacks import Callback

    class Telling(Callback):
        def relative_update(self, inc: int = 1) -> None:
            sent(inc)

    return Telling()
