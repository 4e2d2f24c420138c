"""An artifact: what one stage made, described by a manifest whose sha256 is its name."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from align.errors import AlignError, InputError

FORMAT = 1
STORED = "artifact:"
"""How `base.model` begins where the base is an artifact; its digest follows."""
KINDS = ("model", "adapter", "reward", "data", "report")
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_digest(text: object) -> bool:
    """Whether `text` is a whole sha256 in lower-case hex."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN. Equal values give equal bytes on every machine.

    Raises: InputError naming the key path of a value that JSON cannot hold.
    """
    _check_plain(value, "")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_json(value: object) -> str:
    """sha256 of `canonical_json(value)`: the name of a manifest, and the key of what was asked."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _check_plain(value: object, where: str) -> None:
    at = where or "the value"
    if isinstance(value, dict):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise InputError(f"{at} has the key {key!r}; JSON keys are strings.")
            _check_plain(key, f"a key of {at}")
            _check_plain(inner, f"{where}.{key}" if where else key)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            _check_plain(inner, f"{where}[{index}]")
    elif isinstance(value, float) and not math.isfinite(value):
        raise InputError(f"{at} is {value}; only finite numbers can be stored.")
    elif isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{at} holds half a surrogate pair ({value!r}), which is no text.") from error
    elif value is not None and not isinstance(value, bool | int | float):
        raise InputError(f"{at} is a {type(value).__name__}; only text, numbers, booleans, null, lists and dicts can be stored.")


@dataclass(frozen=True, eq=False)
class Artifact:
    """What one stage made. Equal exactly when the digests are; `str(artifact)` is the digest."""

    digest: str
    """sha256 of the canonical manifest."""
    kind: str
    """model, adapter, reward, data or report."""
    stage: str
    """The stage that made it: sft, reward, dpo, …"""
    version: int
    """That stage's version."""
    config: dict[str, Any]
    """The resolved settings, without runtime fields."""
    parents: dict[str, str]
    """Role -> digest, for example {"parent": …, "reward": …}."""
    base: dict[str, Any] | None
    """model, revision, digest, quantize."""
    text: dict[str, Any] | None
    """The text contract: tokenizer and template digests, special ids."""
    data: dict[str, str]
    """Name -> digest of what it was trained or measured on."""
    metrics: dict[str, Any]
    files: dict[str, dict[str, Any]]
    """Path -> {"size", "sha256"}."""

    @staticmethod
    def parse(manifest: bytes, digest: str) -> Artifact:
        """The artifact of a manifest whose hash is known to be `digest`. It may come from elsewhere, so nothing in it is trusted.

        Raises: AlignError naming what is wrong with it.
        """
        try:
            content = json.loads(manifest)
        except ValueError as error:
            raise AlignError(f"manifest {digest[:12]} is no JSON: {error}.") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise AlignError(f"manifest {digest[:12]} has format {found!r}; this Align reads format {FORMAT}. A newer Align may read it.")
        expected = set(MANIFEST) | {"format"}
        if set(content) != expected:
            raise AlignError(f"manifest {digest[:12]} has the wrong keys: {sorted(set(content) ^ expected)} are missing or unknown.")
        if content["kind"] not in KINDS:
            raise AlignError(f"manifest {digest[:12]} is of kind {content['kind']!r}; expected one of {', '.join(KINDS)}.")
        for name, types in _TYPES.items():
            if not isinstance(content[name], types):
                raise AlignError(f"manifest {digest[:12]}: {name} is a {type(content[name]).__name__}, which it cannot be.")
        for role, parent in content["parents"].items():
            if not is_digest(parent):
                raise AlignError(f"manifest {digest[:12]}: parents.{role} is {parent!r}; expected a digest.")
        _check_files(content["files"], f"manifest {digest[:12]}")
        del content["format"]
        return Artifact(digest=digest, **content)

    @property
    def short(self) -> str:
        return self.digest[:12]

    @property
    def manifest(self) -> dict[str, Any]:
        """Exactly what the digest is the hash of: `digest_json(artifact.manifest) == artifact.digest`."""
        return {"format": FORMAT} | {name: getattr(self, name) for name in MANIFEST}

    @property
    def needs(self) -> set[str]:
        """Digests of the artifacts it cannot do without: its parents, and its base where that is an artifact."""
        return needs(self.parents, self.base)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(entry["size"] for entry in self.files.values())

    def under(self, prefix: str) -> dict[str, str]:
        """The files inside the folder `prefix` ("" is all): path without the prefix -> path in the artifact.

        Raises: InputError when there are none.
        """
        start = f"{prefix.rstrip('/')}/" if prefix else ""
        found = {path.removeprefix(start): path for path in self.files if path.startswith(start)}
        if prefix and not found:
            folders = sorted({path.split("/")[0] + "/" for path in self.files if "/" in path})
            raise InputError(f"{self.stage} {self.short} has no folder {prefix!r}; it has {', '.join(folders) or 'none'}.")
        return found

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Artifact) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __str__(self) -> str:
        return self.digest


MANIFEST = tuple(entry.name for entry in fields(Artifact) if entry.name != "digest")
_MAYBE = (dict, type(None))
_TYPES: dict[str, type | tuple[type, ...]] = {
    **{"stage": str, "version": int, "config": dict, "parents": dict, "base": _MAYBE},
    **{"text": _MAYBE, "data": dict, "metrics": dict, "files": dict},
}


def needs(parents: Mapping[str, str], base: Mapping[str, Any] | None) -> set[str]:
    """Digests of the artifacts that one with these parents and this base cannot do without."""
    model = str(base["model"]) if base and "model" in base else ""
    return {*parents.values(), *([model.removeprefix(STORED)] if model.startswith(STORED) else [])}


@dataclass(frozen=True)
class Lineage:
    """An artifact and where it came from. What several were made from is one object."""

    artifact: Artifact
    parents: dict[str, Lineage]
    """By role."""
    base: Lineage | None = None
    """Its base, where that is an artifact."""
    data: dict[str, Lineage] = field(default_factory=dict)
    """By setting, what it was trained or measured on, where that is an artifact here."""


def _check_files(files: Mapping[str, Any], where: str) -> None:
    for path, entry in files.items():
        check_path(path, where)
        if not isinstance(entry, dict) or not is_digest(entry.get("sha256")) or not isinstance(entry.get("size"), int):
            raise AlignError(f"{where}: files[{path!r}] is {entry!r}; expected size and sha256.")
    for path in files:
        parts = path.split("/")
        if clash := next((p for n in range(1, len(parts)) if (p := "/".join(parts[:n])) in files), None):
            raise AlignError(f"{where}: {clash!r} is both a file and the folder of {path!r}.")


def check_path(path: str, where: str) -> None:
    """Refuse a path that could leave the folder it is written into.

    Raises: AlignError.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or any(sign in path for sign in "\\:\0"):
        raise AlignError(f"{where}: {path!r} is no plain relative path; it could name a file outside the artifact. Nothing was written.")
