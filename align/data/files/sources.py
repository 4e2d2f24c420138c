"""Data files: found, hashed, opened and decoded. What their rows are is for the modules beside this one."""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TypeVar, cast

from align.data.records import Row
from align.ground.disk import digest_folder, sha256_file
from align.ground.errors import AlignError, InputError
from align.ground.paths import near

Raw = TypeVar("Raw")
Unparsed = tuple[str, Callable[[], Row | None]]
"""Where a row stands ("file:line", or "file row 3" where a file has no lines), and what parses it: a row, or None where
nothing stands there. Raises: InputError."""


def _zstandard(path: Path) -> object:
    """A .zst file unpacked, by Arrow, which every installation has."""
    import pyarrow

    return io.BufferedReader(pyarrow.CompressedInputStream(pyarrow.OSFile(str(path)), "zstd"))


PACKED: dict[str, Callable[[Path], object]] = {
    ".gz": gzip.open,
    ".bz2": bz2.open,
    ".xz": lzma.open,
    ".zst": _zstandard,
}
TARS = {".tgz": ".gz", ".tbz2": ".bz2", ".txz": ".xz", ".tzst": ".zst"}
"""Endings of a packed .tar in one word, and how it is packed."""
SHARDS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".tar")
"""Endings of the files that make up a data set in a folder of shards."""
SPLIT = re.compile(r"(?:^|[-_./])(train|test|validation|valid|val|dev|eval)(?=[-_./]|$)", re.IGNORECASE)
WILD = frozenset("*?[")
DATASET = ("*.arrow", "*.json")
"""Files of a folder that `datasets` wrote with save_to_disk."""


@dataclass
class Table:
    """The rows of a data set in order, and what its file turned out to be."""

    form: str
    rows: Generator[Unparsed]
    """Parsed only when they are needed: of a large file both ends are looked at."""


def later(rows: Iterable[tuple[str, Raw]], parse: Callable[[str, Raw], Row | None]) -> Generator[Unparsed]:
    """Rows that are parsed from where and what they are."""
    return ((where, partial(parse, where, raw)) for where, raw in rows)


CHECKED_OUT = ("data.jsonl", "aside.jsonl", "report.json")
"""A data artifact's rows, and what a stage may write about them beside them."""


def as_they_are(rows: Iterable[tuple[str, Row]]) -> Generator[Unparsed]:
    """Rows that need no parsing."""
    return later(rows, lambda where, row: row)


def data_files(path: str | Path) -> list[Path]:
    """The file or folder at a path, or the files that a pattern such as shards/*.jsonl matches, in the order of their
    names.

    Raises: InputError where there is none, for a pipe, and for a folder that `datasets` did not write.
    """
    path = Path(path)
    if os.path.isfile(path):
        return [path]
    if os.path.isdir(path):
        is_dataset = any((path / name).is_file() for name in ("state.json", "dataset_dict.json"))
        if CHECKED_OUT[0] in (names := os.listdir(path)) and {*names} <= {*CHECKED_OUT}:
            return [path / CHECKED_OUT[0]]
        return [path] if is_dataset else _shards(path)
    if os.path.exists(path):
        raise InputError(
            f"{path}: is a pipe or a device, which can be read once only; data are hashed and then read. Write them "
            "to a file first."
        )
    folder, pattern = _pattern(path)
    try:
        matches = folder.glob(pattern) if pattern else ()
        found = sorted(file for file in matches if file.is_file())
    except ValueError as error:
        raise InputError(
            f"{path}: is no pattern ({error}). Expected one such as shards/*.jsonl, or shards/**/*.jsonl."
        ) from error
    if found:
        return found
    what = "no file matches this pattern" if pattern else "there is no such file"
    raise InputError(f"{path}: {what}.{near(path)} Check the path; in a recipe it is relative to the recipe.")


def _shards(folder: Path) -> list[Path]:
    """The data files of a folder and those below it, in the order of their names. Raises: InputError for none, for
    several kinds of them, and for several splits."""
    if folder.resolve() == Path(folder.resolve().anchor):
        raise InputError(f"{folder}: is the whole file system. Name the file or the folder that holds the data set.")
    files = sorted(file for file in _inside(folder) if file.is_file() and suffix(file) in SHARDS)
    endings = sorted({suffix(file) for file in files})
    splits = sorted({s.lower() for file in files for s in SPLIT.findall(file.relative_to(folder).as_posix())})
    if len(endings) == 1 and len(splits) < 2:
        return files
    found = "no data file"
    if len(splits) > 1:
        found = f"the splits {', '.join(splits)}"
    elif endings:
        found = f"files of several kinds ({', '.join(endings)})"
    example = folder / (f"*{splits[0]}*" if len(splits) > 1 else f"*{(endings or ['.jsonl'])[0]}")
    raise InputError(
        f"{folder}: a folder with {found}. Expected a file, a folder of shards of one kind, one that `datasets` wrote "
        f"with save_to_disk, or a pattern for the files to read, such as {example}."
    )


def _inside(folder: Path) -> Iterator[Path]:
    """What a folder and those below it hold, but what is hidden. Raises: InputError for one that cannot be listed."""

    def fail(error: OSError) -> None:
        raise InputError(
            f"{error.filename}: the folder cannot be listed ({error.strerror}), so what it holds would be missing. "
            "Make it readable, or name the files with a pattern."
        ) from error

    for place, folders, names in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(place, name) for name in names if not name.startswith("."))


def _pattern(path: Path) -> tuple[Path, str]:
    """(folder, pattern in it); the pattern is empty where the path has none."""
    wild = next((i for i, part in enumerate(path.parts) if WILD & set(part)), len(path.parts))
    return Path(*path.parts[:wild]), "/".join(path.parts[wild:])


def data_digest(path: str | Path) -> str:
    """sha256 of a data file, or of the names and contents of several: a data folder's, or those that a pattern matches.

    Raises: InputError when there is nothing to read.
    """
    path = Path(path)
    files = data_files(path)
    with explained(path):
        if files == [path]:
            return digest_folder(path, DATASET) if path.is_dir() else sha256_file(path)
        if path.is_dir():
            return digest_folder(path, [glob.escape(file.relative_to(path).as_posix()) for file in files])
        folder, pattern = _pattern(path)
        return digest_folder(folder, [pattern])


def check_unchanged(place: str | Path, hashed: str, now: str) -> None:
    """What was read is what was hashed: `now` is its digest after it was read. Raises: AlignError."""
    if now != hashed:
        raise AlignError(
            f"{place} changed between being hashed and being read. Nothing was committed; run it again when nobody "
            "writes there."
        )


def shipped_templates() -> dict[str, Path]:
    """The chat templates of the TRL that is installed, by name; their training forms are taken by themselves. TRL is
    not imported for it."""
    places = getattr(find_spec("trl"), "submodule_search_locations", None) or []
    files = [file for place in places for file in sorted(Path(place).glob("chat_templates/*.jinja"))]
    return {file.stem: file for file in files if not file.stem.endswith("_training")}


def read_template(setting: str | Path) -> str:
    """The text of a chat template, by its file or by its name in TRL. Raises: InputError for neither, and for one that
    is no UTF-8."""
    path = Path(setting)
    if not path.is_file():
        named = shipped_templates()
        if str(setting) not in named:
            raise InputError(
                f"chat_template: {setting} is neither `plain`, nor a file, nor a template of TRL {version('trl')}: "
                f"{', '.join(named)}."
            )
        path = named[str(setting)]
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"chat_template {path}: byte {error.object[error.start]:#04x} is not UTF-8. Convert the file to UTF-8."
        ) from error


def suffix(path: Path) -> str:
    """What a file's name says that it holds, packed or not."""
    if path.suffix.lower() in TARS:
        return ".tar"
    name = path.with_suffix("") if path.suffix.lower() in PACKED else path
    return name.suffix.lower()


def opened(path: Path) -> IO[bytes]:
    """The file to read, unpacked."""
    ending = path.suffix.lower()
    unpack = PACKED.get(TARS.get(ending, ending))
    return cast("IO[bytes]", unpack(path)) if unpack else path.open("rb")


def encoding_of(path: Path) -> str:
    """UTF-8, -16 or -32, by how the file begins."""
    with explained(path), opened(path) as file:
        return json.detect_encoding(file.read(4))


def decode(where: str | Path, raw: bytes, encoding: str = "utf-8-sig") -> str:
    """Text of bytes. Raises: InputError naming the first byte that is none, and its line."""
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start)
        name = encoding.removesuffix("-sig").upper()
        place = f"{where}:{line + 1}" if isinstance(where, Path) else where
        raise InputError(f"{place}: byte {raw[error.start]:#04x} is not {name}. Convert the file to UTF-8.") from error


def whole_text(path: Path) -> tuple[str, str]:
    """(the file's text, its encoding in words where that is not UTF-8). Raises: InputError."""
    encoding = encoding_of(path)
    with explained(path), opened(path) as file:
        return decode(path, file.read(), encoding), in_words(encoding)


def in_words(encoding: str) -> str:
    return "" if encoding.startswith("utf-8") else f", {encoding.upper()[:6]}"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn what opening, unpacking and decoding raise into one sentence. Raises: InputError."""
    try:
        yield
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        how = "cut short" if isinstance(error, EOFError) else f"not what its name says, or damaged ({error})"
        raise InputError(f"{path}: the {path.suffix} file is {how}. Copy or pack it again.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: {error.object[error.start : error.start + 2]!r} is not {error.encoding.upper()}. Convert it."
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
