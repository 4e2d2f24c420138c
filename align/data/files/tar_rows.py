"""Rows of a WebDataset shard: files of a .tar whose names are alike up to the first dot are one row.

    0001.json          {"prompt": "Hi", "completion": "Hello!"}
    0002.prompt.txt    Hi
    0002.completion.txt    Hello!

The keys of a .json are the row's; a .txt stands under what its name says in between, or under `text` (the WebDataset
format, github.com/webdataset/webdataset).
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, Self

from align.data.files.json_rows import parse_line
from align.data.files.sources import Table, decode, explained, later, opened
from align.data.records import Row
from align.ground.errors import InputError

Member = tuple[str, bytes]
"""What its name says after the first dot, and what it holds."""
READ = (".json", ".txt")


class _Header(tarfile.TarInfo):
    """One that cannot be read is an error: behind the first file tarfile takes it for the end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end, as it should be
            raise tarfile.ReadError(f"a header there is damaged, or the end is missing: {error}") from error


def tar_rows(path: Path) -> Table:
    """The rows of a .tar file, also packed. Raises: InputError, also for a file in it that is neither JSON nor text."""
    return Table("WebDataset", later(_samples(path), _row))


def _samples(path: Path) -> Iterator[tuple[str, list[Member]]]:
    """Where each row stands, and its files, which lie one after the other. Raises: InputError."""
    last, members = "", list[Member]()
    _check(path)
    try:
        with explained(path), opened(path) as packed, tarfile.open(fileobj=packed, mode="r|", tarinfo=_Header) as tar:
            for file in filter(_is_read, tar):
                key, ending = _named(file)
                if key != last and members:
                    yield f"{path} {last}", members
                    members = []
                last = key
                content: Any = tar.extractfile(file)
                members.append((ending, content.read()))
            behind: Any = tar.fileobj
            while block := behind.read(1 << 16):
                if block.strip(b"\0"):
                    raise InputError(f"{path}: another archive stands behind its end. Give them as files of their own.")
    except tarfile.TarError as error:
        raise InputError(f"{path}: the .tar file cannot be read after {last or 'its start'} ({error}).") from error
    if members:
        yield f"{path} {last}", members


def _check(path: Path) -> None:
    """Files of a row lie together, and nothing but files and folders is there: otherwise a row would be told to lack
    what stands further on. Raises: InputError."""
    last, seen = "", set[str]()
    try:
        with explained(path), opened(path) as packed, tarfile.open(fileobj=packed, mode="r|", tarinfo=_Header) as tar:
            for file in tar:
                if not (file.isfile() or file.isdir()):
                    what = f"a link to {file.linkname}" if file.issym() or file.islnk() else "a pipe or a device"
                    raise InputError(
                        f"{path}: {file.name} is {what}, of which a .tar holds no content. Pack the files themselves "
                        "(tar --dereference --hard-dereference)."
                    )
                if not _is_read(file):
                    continue
                key, _ = _named(file)
                if key != last and key in seen:
                    raise InputError(
                        f"{path}: {file.name} stands apart from the other files of {key}. Those of a row lie one after "
                        "the other; pack them again (tar --sort=name)."
                    )
                last = key
                seen.add(key)
    except tarfile.TarError:
        return  # told where rows are read, behind those that are whole


def _is_read(file: tarfile.TarInfo) -> bool:
    """Not a folder, nor what macOS puts beside files."""
    return file.isfile() and not PurePosixPath(file.name).name.startswith(".")


def _named(file: tarfile.TarInfo) -> tuple[str, str]:
    """(the row that a file is of, what it holds of it)."""
    place = PurePosixPath(file.name)
    stem, _, ending = place.name.partition(".")
    return str(place.with_name(stem)), ending.lower()


def _row(where: str, members: list[Member]) -> Row:
    row: Row = {}
    for ending, content in members:
        name, _, kind = ending.rpartition(".")
        if f".{kind}" not in READ:
            held = f"a .{ending} file" if ending else "a file without an ending"
            raise InputError(
                f"{where}: holds {held}, and only text can be rendered. Expected {' and '.join(READ)} files."
            )
        found = parse_line(where, _one_line(content)) if kind == "json" else {name or "text": decode(where, content)}
        twice = row.keys() & found.keys()
        if twice:
            raise InputError(f"{where}: {min(twice)!r} stands in two of its files. Keep one of them.")
        row |= found
    return row


def _one_line(content: bytes) -> bytes:
    """JSON written over several lines as one: line breaks inside its texts are escaped."""
    return b" ".join(content.splitlines())
