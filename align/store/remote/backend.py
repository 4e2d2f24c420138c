"""Where the files of a remote lie: a bucket, a folder, memory, or any other file system of fsspec.

Names are written only on condition (`Remote.swap`). S3 does that by If-None-Match and If-Match, which `S3.check_swap`
tries out; a folder by a lock; other file systems are not known to, and say so.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from align.ground.errors import AlignError, InputError
from align.store.layout import MARK, MARKED
from align.store.remote.address import FIRST, LATER, file_system, without
from align.store.remote.folder import Folder
from align.store.remote.place import CHUNK, SMALL, Remote, telling


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
        self.fs.put_file(str(source), self.at(path), callback=telling(sent), chunksize=CHUNK, max_concurrency=2)

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


def _code(error: OSError) -> str:
    """What S3 said, behind the OSError that s3fs makes of it."""
    response = getattr(error.__cause__, "response", None) or {}
    return str(response.get("Error", {}).get("Code", ""))


def open_remote(url: str | Path) -> Remote:
    """The remote at a URL of fsspec, or in a plain folder.

    Raises: InputError for a URL that names no place, or that `file_system` cannot open.
    """
    if not str(url):
        raise InputError("the remote's address is empty. Expected a URL, such as s3://bucket/folder, or a folder.")
    if os.path.exists(url) and not os.path.isdir(url):
        raise InputError(f"{url} is a file. Expected a URL, such as s3://bucket/folder, or a folder.")
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
        check = "the address, the credentials and the network"
        if isinstance(remote, Folder):
            check = "that a folder is there, or can be made, and may be written"
        raise AlignError(
            f"{remote.url}: {without(remote.secrets, said)}. Check {check}; the same command goes on."
        ) from error
