"""Paths of files that come from elsewhere: names that every system can hold, and none that leads away or runs code; and
which file is there, where one that was named is not."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from align.ground.errors import AlignError, InputError

_PART = re.compile(r"[A-Za-z0-9._+=@-]{1,200}", re.ASCII)
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?|\.tmp-.*", re.ASCII | re.IGNORECASE)
_CODE = set(
    [
        "bin",
        "ckpt",
        "dill",
        "dll",
        "dylib",
        "exe",
        "joblib",
        "pickle",
        "pkl",
        "pt",
        "pth",
        "py",
        "pyc",
        "pyd",
        "sh",
        "so",
    ]
)
"""Endings of files that run code when they are loaded: pickles, and code itself."""


def check_path(path: str, where: str) -> None:
    """Refuse a path that could leave the folder it is written into, that is not the same file on every system, or that
    runs code.

    Raises: AlignError.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(sign in path for sign in "\\:\0"):
        raise AlignError(
            f"{where}: {path!r} is no plain relative path; it could name a file outside the artifact. Nothing was "
            "written."
        )
    if len(path) > 500 or any(not _PART.fullmatch(p) or _RESERVED.fullmatch(p) or p.endswith(".") for p in parts):
        shown = path if len(path) <= 80 else f"{path[:80]}…"
        raise AlignError(
            f"{where}: {shown!r} cannot be the name of a file: letters, digits and . _ + = @ - make names that every "
            "system can hold, but for those it reserves. Nothing was written."
        )
    if path.lower().rpartition(".")[2] in _CODE and "." in parts[-1]:
        raise AlignError(
            f"{where}: {path!r} is a pickle or a program, which runs code when it is loaded; tensors are stored as "
            "safetensors. Nothing was written."
        )


def check_words(words: Iterable[str]) -> None:
    """Raises: InputError for a word of the command line that no manifest, and no address, can hold."""
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise InputError(f"{word[:200]!r} is no UTF-8. Give files, and all else, names that are.") from None


def short_path(path: Path) -> str:
    """A path as it is shown: the shortest of it as it is, from the working folder, and from the home folder (~)."""
    ways, home = [str(path)], Path.home()
    with suppress(OSError, ValueError):  # no working folder, or another drive
        ways.append(os.path.relpath(path))
    if home != Path("/") and path.is_relative_to(home):
        ways.append(str("~" / path.relative_to(home)))
    return min(ways, key=len)


def plain(path: str | Path) -> str:
    """A whole path without steps back, as it is shown; with them where a link on the way makes them lead elsewhere."""
    given = os.path.join(os.getcwd(), os.path.expanduser(path))
    found = os.path.normpath(given)
    return found if os.path.realpath(found) == os.path.realpath(given) else given


def near(path: str | Path) -> str:
    """The question whether a file of nearly that name in that folder was meant, of its ending if there is one; ""
    without one."""
    folder, name = os.path.split(path)
    try:
        names = sorted({*os.listdir(os.path.expanduser(folder) or ".")} - {name})
    except (OSError, ValueError):  # what no path can be
        return ""
    for kin in ([other for other in names if Path(other).suffix == Path(name).suffix], names):
        by_stem = {Path(other).stem: other for other in kin}
        if found := difflib.get_close_matches(Path(name).stem, by_stem, 1):
            return f" Did you mean {os.path.join(folder, by_stem[found[0]])}?"
    return ""
