"""Names on a remote: read as claims, moved only by who knows what they move, and kept apart from each other."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from align.ground import disk as disk
from align.ground.errors import AlignError, InputError
from align.ground.parallel import in_parallel
from align.store.artifact import Artifact, canonical_json, is_digest
from align.store.family import descends
from align.store.layout import Local
from align.store.remote.place import Remote

POINTER = 65
"""Bytes of a name: a digest and a line end."""


def digest_of(pointer: bytes | None) -> str | None:
    text = (pointer or b"").decode("ascii", "replace")
    return text[:-1] if text.endswith("\n") and is_digest(text[:-1]) else None


def is_pattern(text: str) -> bool:
    return bool(set(text) & set("*?["))


def matched_by(ref: str, names: Sequence[str], nowhere: str) -> list[str]:
    """The names that a pattern such as 'quickstart/dpo.*' stands for; what is no pattern as it is.

    Raises: InputError for a pattern that no name matches; `nowhere` ends the sentence.
    """
    matched = fnmatch.filter(names, ref) if is_pattern(ref) else [ref]
    if not matched:
        raise InputError(f"no name {nowhere}")
    return matched


def remote_refs(store: Local, remote: Remote, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """What the remote's names point at (all of them when none is asked for, of a pattern those that match), and all
    digests that are wanted."""
    listed = names or remote.names("refs")
    if any(map(is_pattern, names)):
        there = sorted(remote.names("refs"))
        nowhere = "at {} matches {!r}; align pull without a name takes all that are there."
        some = (matched_by(ref, there, nowhere.format(remote.url, ref)) for ref in names)
        listed = list(dict.fromkeys(name for matched in some for name in matched))
    if not listed:
        raise InputError(f"{remote.url} holds no names. Check the address, or give the digest of an artifact.")
    asked = [name for name in listed if not is_digest(name)]
    for name in asked:
        try:
            store.check_name(name)
        except InputError as error:
            raise error if names else AlignError(f"{remote.where('refs')}: {error}") from error
    check_together([*asked, *store.pointers("refs")], f"{remote.url} and {store.path}")
    refs: dict[str, str] = {}
    for name, content in zip(asked, in_parallel(lambda name: remote.read(f"refs/{name}", POINTER), asked), strict=True):
        if content is None:
            near = difflib.get_close_matches(name, remote.names("refs"), 3, 0.5)
            hint = (
                f"did you mean {' or '.join(near)}?" if near else "align pull without a name takes all that are there."
            )
            raise InputError(f"{remote.url} has no name {name!r}; {hint}")
        if (digest := digest_of(content)) is None:
            raise AlignError(
                f"{remote.where(f'refs/{name}')} holds {content[:40]!r}; expected the digest of an artifact. Nothing "
                "was written."
            )
        refs[name] = digest
    return refs, [*refs.values(), *(name for name in listed if is_digest(name))]


def check_together(names: Sequence[str], where: str) -> None:
    """Raises: AlignError for a name that is also a folder of names, or that differs from another in case alone."""
    alike: dict[str, str] = {}
    known = set(names)
    for name in sorted(known):
        parts = name.split("/")
        above = next((p for n in range(1, len(parts)) if (p := "/".join(parts[:n])) in known), None)
        other = alike.setdefault(name.lower(), name)
        if above or other != name:
            raise AlignError(
                f"{where}: {above or other} and {name} cannot both be names: a store keeps them as files and folders."
            )


def check_moves(
    remote: Remote,
    store: Local,
    refs: Mapping[str, str],
    there: Mapping[str, bytes | None],
    artifacts: Mapping[str, Artifact],
) -> None:
    """Raises: AlignError for each name that points there at what this store has neither seen there, nor sent there in
    a push that was killed before it could note that, nor built upon."""
    seen, sent = _noted(store, remote, SEEN), _noted(store, remote, SENT)
    lines = []
    for name, digest in refs.items():
        found = digest_of(there[name])
        if there[name] is None or (
            found and (found in (seen.get(name), sent.get(name)) or descends(digest, found, artifacts))
        ):
            continue
        last = f"when this store last saw it, it was {seen[name]}" if name in seen else "this store has not seen it"
        lines.append(f"{remote.url}: {name} points at {found or repr(there[name])} there; {last}.")
    if lines:
        remedy = (
            f"Take a look at it (align pull {remote.url} DIGEST fetches it without a name), push yours under "
            "another name, or --force."
        )
        raise AlignError("\n".join([*lines, f"Nothing was sent. {remedy}"]))


def check_pulled(remote: Remote, store: Local, refs: Mapping[str, str], artifacts: Mapping[str, Artifact]) -> None:
    """Raises: AlignError for each name here that would move to what does not descend from it, unless it is as it came
    from there, and for one that holds no digest."""
    for damage in (damage for name, damage in store.damaged_refs().items() if name in refs):
        raise AlignError(f"Nothing was fetched. {damage}")
    seen, here = _noted(store, remote, SEEN), store.sound_refs()
    lines = [
        f"{name} points at {here[name][:12]} here and at {digest[:12]} there, which does not descend from it."
        for name, digest in refs.items()
        if name in here and here[name] != seen.get(name) and not descends(digest, here[name], artifacts)
    ]
    if lines:
        remedy = f"--force moves the name; without it, align pull {remote.url} DIGEST fetches the other beside yours."
        raise AlignError("\n".join([*lines, f"Nothing was fetched. {remedy}"]))


def swap(remote: Remote, name: str, old: bytes | None, digest: str) -> str | None:
    """Point a name at a digest unless somebody else moved it; what it pointed at before.

    Raises: AlignError when it has moved.
    """
    new = f"{digest}\n".encode()
    if old != new and not remote.swap(f"refs/{name}", old, new):
        found = remote.read(f"refs/{name}", POINTER)
        if found != new:  # an answer that was lost on the way looks like a refusal
            raise AlignError(
                f"{remote.url}: {name} was moved to {digest_of(found) or 'nothing'} by another push while this one "
                "was under way. The "
                f"artifact itself is there under its digest {digest}. Push again to see what is in the way, or --force."
            )
    return None if old in (None, new) else digest_of(old) or "no digest"


SEEN, SENT = "", ".sent"
"""What is noted of a remote's names: where they pointed when this store last saw them there, and where a push was about
to point them."""


def _noted_path(store: Local, remote: Remote, what: str) -> Path:
    return store.path / "remotes" / f"{hashlib.sha256(remote.url.encode()).hexdigest()}{what}.json"


def _noted(store: Local, remote: Remote, what: str) -> dict[str, str]:
    """Name -> digest; without that file, or when it is damaged, moves need --force."""
    found = disk.unseal(_noted_path(store, remote, what))
    return {} if found is None else json.loads(found)


def note(store: Local, remote: Remote, refs: Mapping[str, str], what: str = SEEN) -> None:
    if refs:
        path = _noted_path(store, remote, what)
        with disk.locked(store.path / "remotes" / ".lock"):
            disk.write_file(path, disk.seal(canonical_json(_noted(store, remote, what) | dict(refs))))
