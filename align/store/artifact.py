"""An artifact: what one stage made, described by a manifest whose sha256 is its name. Manifests may come from anywhere:
none is trusted."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, TypedDict

from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.ground.paths import check_path
from align.ground.terminal import an

FORMAT = 1
STORED = "artifact:"
"""How `base.model` begins where the base is an artifact; its digest follows."""
KINDS = ("model", "adapter", "reward", "classifier", "data", "report")
MANIFEST_LIMIT = 1 << 20
"""Bytes of a manifest."""
FILES_LIMIT = 10_000
"""Files of an artifact."""
SIZE_LIMIT = 1 << 50
"""Bytes of a file."""
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)


def is_digest(text: object) -> bool:
    """Whether `text` is a whole sha256 in lower-case hex."""
    return isinstance(text, str) and _HEX.fullmatch(text) is not None


def canonical_json(value: object) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN. Equal values give equal bytes on every
    machine.

    Raises: InputError naming the key path of a value that JSON cannot hold.
    """
    _check_plain(value, "")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def digest_json(value: object) -> str:
    """sha256 of `canonical_json(value)`: the name of a manifest, and the key of what was asked."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def question(
    *,
    stage: str,
    version: int,
    settings: Mapping[str, object],
    parents: Mapping[str, str],
    data: Mapping[str, str],
    base: Mapping[str, object] | None,
) -> str:
    """The key of what was asked: equal keys give equal results. `Artifact.key` is the same, read from what came out."""
    return digest_json(
        {"stage": stage, "version": version, "settings": settings, "parents": parents, "data": data, "base": base}
    )


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
        raise InputError(
            f"{at} is of type {type(value).__name__}; only text, numbers, booleans, null, lists and dicts can be "
            "stored."
        )


class BaseRecord(TypedDict):
    """The base that something was made on."""

    model: str
    """`artifact:` and a digest, a model of the hub, or the name of a folder."""
    revision: str | None
    """The hub's commit."""
    digest: str
    """Of its files."""
    quantize: str | None


class FileRecord(TypedDict):
    """A file of an artifact."""

    size: int
    sha256: str


@dataclass(frozen=True, eq=False)
class Artifact:
    """What one stage made. Equal exactly when the digests are; `str(artifact)` is the digest."""

    digest: str
    """sha256 of the canonical manifest."""
    kind: str
    """model, adapter, reward, classifier, data or report."""
    stage: str
    """The stage that made it: sft, reward, dpo, …"""
    version: int
    """That stage's version."""
    config: dict[str, Any]
    """The resolved settings, without runtime fields."""
    parents: dict[str, str]
    """Role -> digest, for example {"parent": …, "reward": …}."""
    base: BaseRecord | None
    text: dict[str, Any] | None
    """The text contract: tokenizer and template digests, special ids."""
    data: dict[str, str]
    """Name -> digest of what it was trained or measured on."""
    metrics: dict[str, Any]
    files: dict[str, FileRecord]
    """By path."""

    @staticmethod
    def parse(manifest: bytes, digest: str) -> Artifact:
        """The artifact of a manifest whose hash is known to be `digest`. It may come from elsewhere, so nothing in it
        is trusted.

        Raises: AlignError naming what is wrong with it.
        """
        where = f"manifest {digest[:12]}"
        if len(manifest) > MANIFEST_LIMIT:
            raise AlignError(f"{where} has {len(manifest):,} bytes; at most {MANIFEST_LIMIT:,} are read.")
        try:
            content = json.loads(manifest)
            canonical = canonical_json(content)
        except (ValueError, InputError) as error:
            raise AlignError(f"{where} is no JSON: {error}.") from error
        except RecursionError as error:
            raise AlignError(f"{where} is nested too deeply to be read.") from error
        if not isinstance(content, dict) or type(content.get("format")) is not int or content["format"] != FORMAT:
            found = content.get("format") if isinstance(content, dict) else type(content).__name__
            raise AlignError(
                f"{where} has format {found!r}; this Align reads format {FORMAT}. A newer Align may read it."
            )
        if canonical != manifest:
            raise AlignError(
                f"{where} is not canonical JSON (sorted, unique keys, no spaces), so its digest would not be its "
                "content's."
            )
        expected = set(MANIFEST) | {"format"}
        if set(content) != expected:
            raise AlignError(f"{where} has the wrong keys: {sorted(set(content) ^ expected)} are missing or unknown.")
        if content["kind"] not in KINDS:
            raise AlignError(f"{where} is of kind {content['kind']!r}; expected one of {', '.join(KINDS)}.")
        for name, types in _TYPES.items():
            if not isinstance(content[name], types) or isinstance(content[name], bool):
                raise AlignError(f"{where}: {name} is {an(type(content[name]).__name__)}, which it cannot be.")
        for role, parent in content["parents"].items():
            if not is_digest(parent):
                raise AlignError(f"{where}: parents.{role} is {parent!r}; expected a digest.")
        _check_files(content["files"], where)
        del content["format"]
        return Artifact(digest=digest, **content)

    @property
    def short(self) -> str:
        return self.digest[:12]

    @property
    def described(self) -> str:
        """`an adapter artifact (stage sft)`."""
        return f"{an(self.kind)} artifact (stage {self.stage})"

    @property
    def manifest(self) -> Json:
        """Exactly what the digest is the hash of: `digest_json(artifact.manifest) == artifact.digest`."""
        return {"format": FORMAT} | {name: getattr(self, name) for name in MANIFEST}

    @property
    def key(self) -> str:
        """What was asked for it, as its manifest says: the key under which a stage looks for it before it works."""
        return question(
            stage=self.stage,
            version=self.version,
            settings=self.config,
            parents=self.parents,
            data=self.data,
            base=self.base,
        )

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
            raise InputError(
                f"{self.stage} {self.short} has no folder {prefix!r}; it has {', '.join(folders) or 'none'}."
            )
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


def needs(parents: Mapping[str, str], base: Mapping[str, object] | None) -> set[str]:
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


def _check_files(files: Mapping[str, object], where: str) -> None:
    if len(files) > FILES_LIMIT:
        raise AlignError(f"{where} names {len(files):,} files; an artifact has at most {FILES_LIMIT:,}.")
    alike: dict[str, str] = {}
    for path, entry in files.items():
        check_path(path, where)
        if not isinstance(entry, dict) or entry.keys() != {"sha256", "size"} or not is_digest(entry["sha256"]):
            raise AlignError(f"{where}: files[{path!r}] is {entry!r}; expected size and sha256.")
        if type(entry["size"]) is not int or not 0 <= entry["size"] <= SIZE_LIMIT:
            raise AlignError(
                f"{where}: files[{path!r}] has size {entry['size']!r}; expected bytes from 0 to {SIZE_LIMIT:,}."
            )
        if (other := alike.setdefault(path.lower(), path)) != path:
            raise AlignError(
                f"{where}: {other!r} and {path!r} differ in case alone, which is one file on some systems."
            )
    for path in files:
        parts = path.split("/")
        if clash := next((p for n in range(1, len(parts)) if (p := "/".join(parts[:n])) in files), None):
            raise AlignError(f"{where}: {clash!r} is both a file and the folder of {path!r}.")
