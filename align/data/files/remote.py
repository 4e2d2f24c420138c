"""Data files that lie elsewhere, by a URL of fsspec: s3://bucket/pairs.jsonl, https://…, hf://datasets/USER/NAME/FILE.

They are fetched into the cache of `datasets`, and by a later process again once the place says that they changed, or
where it says nothing of the kind. What is read and hashed are the files of the cache.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from align.data.files.hub import HubData
from align.ground.errors import InputError
from align.ground.progress import Task
from align.ground.terminal import say
from align.store.remote.address import FIRST, file_system, secrets, without

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
MARKS = ("etag", "mtime", "lastmodified", "last_modified", "last-modified", "created", "generation", "md5hash", "oid")
"""What places say of a file that changes with its content, in lower case."""


def is_url(text: str) -> bool:
    return URL.fullmatch(text) is not None


@cache
def fetched(url: str) -> HubData:
    """The file at a URL, or the folder of those below it or that its pattern matches. Raises: InputError where
    there is none or it cannot be had."""
    hidden = secrets(url)
    shown = without(hidden, url)
    system, path = file_system(url, FIRST)
    try:
        if "*" in path:
            names = system.glob(path)
        else:
            names = [path] if system.info(path)["type"] == "file" else system.find(path)
        known = {name: _marks(system.info(name)) for name in sorted(names)}
        if known:
            return HubData(_kept(system, shown, path, known), shown)
    except InputError:
        raise
    except Exception as error:  # whatever a file system of anyone's raises
        said = without(hidden, " ".join(str(error).split()))[:200] or "it says no more"
        raise InputError(
            f"{shown} cannot be fetched ({type(error).__name__}: {said}). Check the address, the credentials and the "
            "network."
        ) from error
    raise InputError(f"{shown}: no file lies there. Check the address.")


def _marks(info: Mapping[str, object]) -> dict[str, str]:
    """What tells a file's content from that of another time; its size, too, as the web's times are whole seconds."""
    found = {key: str(value) for key, value in info.items() if key.lower() in MARKS and value is not None}
    return found and found | {"size": str(info.get("size"))}


def _kept(system: AbstractFileSystem, url: str, path: str, known: Mapping[str, Mapping[str, str]]) -> Path:
    """Where the files lie in the cache, fetched if need be. Raises: InputError for names that lead elsewhere."""
    import datasets

    cached = Path(datasets.config.HF_DATASETS_CACHE) / "align"
    plain = {name: name.partition("?")[0] for name in known}  # a signed link's query is no part of a name
    top = posixpath.commonpath([posixpath.dirname(name) for name in plain.values()])
    places = {name: PurePosixPath(posixpath.relpath(path_there, top)) for name, path_there in plain.items()}
    outside = [name for name, place in places.items() if ".." in place.parts or place.is_absolute()]
    if outside:
        raise InputError(f"{url}: the file {outside[0]!r} would lie outside of its folder. Rename it there.")
    content = json.dumps([url, {name: known[name] for name in sorted(known)}], sort_keys=True)
    folder = cached / hashlib.sha256(content.encode()).hexdigest()
    is_one = [*known] == [path]
    out = folder / next(iter(places.values())) if is_one else folder
    if all(known.values()) and out.exists():
        return out
    cached.mkdir(parents=True, exist_ok=True)
    with Task(f"fetching {url}"), tempfile.TemporaryDirectory(dir=cached, prefix=".align-") as scratch:
        new = Path(scratch) / "new"
        for name, place in places.items():
            (new / place).parent.mkdir(parents=True, exist_ok=True)
            system.get_file(name, str(new / place))
        if folder.exists():
            folder.rename(Path(scratch) / "old")
        new.rename(folder)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"data: {url}: {len(known):,} {'file' if len(known) == 1 else 'files'} fetched, {size / 1e6:,.1f} MB")
    return out
