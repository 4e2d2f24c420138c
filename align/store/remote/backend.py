"""Where the files of a remote lie: a bucket, a folder, memory, or any other file system of fsspec. It reads and writes
whole files.

Names are written only on condition that they still hold what was read (`Remote.swap`), so that of two pushers one is
told. S3 does that by If-None-Match and If-Match, which `S3.check_swap` tries out; a folder by a lock; other file
systems are not known to, and say so.
"""

from __future__ import annotations

import os
import re
import stat
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from align.ground import disk as disk
from align.ground.errors import AlignError, InputError
from align.store.access import access_to
from align.store.layout import MARK, MARKED
from align.store.remote.address import FIRST, LATER, file_system, secrets, without

T = TypeVar("T")
CHUNK = 8 << 20
SMALL = 1 << 12
"""More bytes than a name or the mark can have."""
THREADS = 8


class Remote:
    """A folder of any file system of fsspec. Paths are relative to it and hold nothing but checked names."""

    def __init__(self, url: str, fs: Any, root: str) -> None:
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
        self.fs.put_file(str(source), self.at(path), callback=_telling(sent))

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
        """The same place, waited for less where that can be said: it may never answer."""
        return self

    def check_swap(self) -> None:
        """Make sure, before anything travels, that `swap` is atomic there, and mark the place. Raises: AlignError."""
        raise AlignError(
            f"{self.url}: Align does not know how to move a name there without the risk of overwriting another's push. "
            "Push digests instead of names, which need no such care, or give --force and see to it that nobody else "
            "pushes meanwhile."
        )


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


class Memory(Remote):
    """fsspec's memory://, for tests: threads of one process share it."""

    _reading, _swapping = threading.Lock(), threading.Lock()

    def chunks(self, path: str) -> Iterator[bytes]:
        with self._reading:  # every reader gets the one file object
            content = self.fs.cat_file(self.at(path))
        yield content

    def swap(self, path: str, old: bytes | None, new: bytes) -> bool:
        with self._swapping:
            return super().swap(path, old, new)

    def check_swap(self) -> None:
        self.swap(MARK, None, MARKED)


class Http(Remote):
    """A web server that lists its folders as pages of links."""

    def find(self, place: str) -> list[str]:
        return list(self.fs.find(place, on_error="raise"))


class S3(Remote):
    """A bucket, or a folder of one. Uploads are whole or not there at all."""

    def at_first(self) -> Remote:
        self.patience = FIRST
        return S3(self.address, *file_system(self.address, FIRST))

    def send(self, source: Path, path: str, sent: Callable[[int], None]) -> None:
        # In parts, of which every thread has two in memory: s3fs would read up to 100 MB at once, and tell nothing
        # until they are there.
        self.fs.put_file(str(source), self.at(path), callback=_telling(sent), chunksize=CHUNK, max_concurrency=2)

    def write(self, path: str, content: bytes) -> None:
        self.fs.pipe_file(self.at(path), content)

    def swap(self, path: str, old: bytes | None, new: bytes) -> bool:
        condition: dict[str, str] = {"mode": "create"}
        if old is not None:
            if self.size(path) is None:
                return False
            tag = self.fs.info(self.at(path))["ETag"]
            if self.read(path, SMALL) != old:
                return False
            condition = {"IfMatch": tag}
        try:
            self.fs.pipe_file(self.at(path), new, **condition)
        except OSError as error:
            if isinstance(error, FileExistsError) or _code(error) in (
                "PreconditionFailed",
                "ConditionalRequestConflict",
            ):
                return False
            raise
        return True

    def check_swap(self) -> None:
        """A server that lets the mark be created twice, or replaced for a wrong tag, would do the same to a name."""
        self.swap(MARK, None, MARKED)
        honoured = not self.swap(MARK, None, MARKED)
        if honoured:
            try:
                self.fs.pipe_file(self.at(MARK), MARKED, IfMatch=f'"{"0" * 32}"')
                honoured = False
            except OSError as error:
                honoured = _code(error) == "PreconditionFailed"
        if not honoured:
            raise AlignError(
                f"{self.url}: this server does not honour conditional writes (If-None-Match, If-Match), so two pushers "
                "could overwrite each other's names. Push digests instead of names, or give --force and see to it "
                "that nobody else pushes meanwhile."
            )


def check_answered(error: FileNotFoundError) -> None:
    """Raise what an "is not there" of fsspec came from, where that is no answer at all or another one."""
    cause = error.__cause__
    if isinstance(cause, OSError) or (cause is not None and getattr(cause, "status", 404) not in (404, 410)):
        raise cause


def _telling(sent: Callable[[int], None]) -> Any:
    """A callback of fsspec that tells `sent` of every further byte."""
    from fsspec.callbacks import Callback

    class Telling(Callback):
        def relative_update(self, inc: int = 1) -> None:
            sent(inc)

    return Telling()


def _code(error: OSError) -> str:
    """What S3 said, behind the OSError that s3fs makes of it."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def open_remote(url: str | Path) -> Remote:
    """The remote at a URL of fsspec, or in a plain folder.

    Raises: InputError for a URL that names no place, or that `file_system` cannot open.
    """
    scheme, separator, rest = str(url).partition("://")
    text = str(url).rstrip("/")
    if not separator or scheme == "file":
        return Folder(text, Path(os.path.expanduser(rest if separator else scheme)).absolute())
    if not rest.strip("/"):
        raise InputError(
            f"{url} names no place. Expected a URL such as s3://bucket/folder, gs://bucket/folder or file:///folder."
        )
    kinds: dict[str, type[Remote]] = {"s3": S3, "s3a": S3, "memory": Memory, "http": Http, "https": Http}
    kind = kinds.get(scheme, Remote)
    return kind(text, *file_system(text, FIRST if kind is Http else LATER))


@contextmanager
def reaching(remote: Remote) -> Iterator[None]:
    """Turn what networks and disks raise into one message that says what to do.

    Raises: AlignError.
    """
    try:
        yield
    except AlignError:
        raise
    except Exception as error:
        known = ("botocore", "aiohttp", "google", "azure", "paramiko", "requests", "urllib3", "smbprotocol", "fsspec")
        if not (isinstance(error, OSError | NotImplementedError) or type(error).__module__.startswith(known)):
            raise
        said = str(error) or type(error).__name__
        if re.search("time(d )?out", f"{type(error).__name__} {type(error.__cause__).__name__} {said}", re.IGNORECASE):
            seconds, tries = remote.patience
            had = f"within {seconds} s, asked {tries} times" if isinstance(remote, S3) else "in time"
            said = f"no answer {had} ({said})"
        raise AlignError(
            f"{remote.url}: {without(remote.secrets, said)}. Check the address, the credentials and the network; the "
            f"same command goes on."
        ) from error


def in_parallel(work: Callable[[str], T], items: Iterable[str], stop: Callable[[], None] = lambda: None) -> list[T]:
    """`work` on every item by a few threads; the results in order. The first failure, or Ctrl-C, ends it: nothing new
    is begun, and `stop` tells what is under way."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for future in as_completed(futures):
                future.result()
        except BaseException:
            stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]
