"""Reading a store: what a name means, and files that are verified before they are handed out."""

from __future__ import annotations

import difflib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from align.ground import disk as disk
from align.ground.disk import locked, seal, unseal, write_file, written_folder
from align.ground.errors import AlignError, InputError
from align.ground.paths import plain
from align.store.artifact import Artifact, Lineage, is_digest
from align.store.damage import Damage, bad_answer, bad_ref, found_hash
from align.store.graph import grow
from align.store.layout import StoreLayout
from align.store.live import live_runs
from align.store.objects import has_files, lay_out
from align.store.run import CostRecord, read_costs

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*", re.ASCII)
NAME_LIMIT = 200
"""Characters of a ref."""
PREFIX = re.compile(r"[0-9a-f]{4,64}", re.ASCII)
LIKE_DIGEST = re.compile(r"(?![0-9]+$)[0-9a-f]{8,64}", re.ASCII)
"""What one takes for the beginning of a digest; digits alone may be a date."""


def is_name(text: str) -> bool:
    """Whether `text` has the form of a ref."""
    return len(text) <= NAME_LIMIT and NAME.fullmatch(text) is not None and ".." not in text


class StoreReader(StoreLayout):
    """A store as its readers see it. Nothing here creates it."""

    def resolve(self, name: Artifact | str) -> Artifact:
        """The artifact a ref, a digest or a unique prefix of one (4 characters or more) names.

        Raises: InputError naming the nearest refs, or the candidates of an ambiguous prefix; AlignError when it is
        damaged.
        """
        if isinstance(name, Artifact):
            return self.load(name.digest)
        if is_name(name) and (path := self.path / "refs" / name).is_file():
            found = self._follow(path, name)
            self.called[found.digest] = name
            return found
        if is_digest(name) and self.manifest_path(name).exists():
            return self.load(name)
        if PREFIX.fullmatch(name):
            digests = sorted(self._beginning(name))
            if len(digests) > 1:
                candidates = "\n".join(f"  {digest[:16]}  {self.label(self.load(digest))}" for digest in digests)
                raise InputError(
                    f"{name} is the beginning of {len(digests)} artifacts; give more of the digest:\n{candidates}"
                )
            if digests:
                return self.load(digests[0])
        self._unknown(name)

    def _follow(self, path: Path, name: str) -> Artifact:
        """What a ref points at, looked up again when it moves meanwhile: what it pointed at may be collected then."""
        digest = self.pointer(path)
        while digest is None or not self.manifest_path(digest).exists():
            seen, digest = digest, self.pointer(path) if path.is_file() else None
            if digest == seen:
                raise AlignError(str(bad_ref(path, name, digest or "no digest")))
        return self.load(digest)

    def _beginning(self, prefix: str) -> Iterator[str]:
        """The digests that begin so, out of a listing that is never held in memory."""
        if (self.path / "artifacts").is_dir():
            with os.scandir(self.path / "artifacts") as entries:
                yield from (
                    entry.name[:-5]
                    for entry in entries
                    if entry.name.startswith(prefix) and entry.name.endswith(".json")
                )

    def _unknown(self, name: str) -> NoReturn:
        if os.path.isfile(os.path.join(name, "adapter_config.json")):  # no error for what no path can be
            raise InputError(
                f"{name} is a folder that PEFT saved, no artifact. Import it first: align import {name} --base MODEL"
            )
        if begun := next((run for run in live_runs(self) if run.name == name), None):
            state = "was stopped or failed before it was made: the same command goes on with it"
            if begun.works:
                state = f"is at work still (process {begun.pid}); `align watch {name}` shows how far. Wait for its end"
            raise InputError(f"{name} {state}.")
        if not any((self.path / folder).is_dir() for folder in ("artifacts", "runs")):
            raise InputError(
                f"{name!r} is not known: there is no store at {self.path}. Run a stage first, or name the store "
                "(--store)."
            )
        refs = list(self.pointers("refs"))
        runs = sorted(ref for ref in refs if ref.startswith((f"{name}.", f"{name}/")))
        near = runs[:3] or [ref for ref in refs if name in ref.split("/")] + difflib.get_close_matches(
            name[:NAME_LIMIT], refs, n=3, cutoff=0.6
        )
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`align ls` lists what is there."
        shown = name if len(name) <= NAME_LIMIT else f"{name[:80]}…"
        raise InputError(f"{shown!r} is no name and no digest in {self.path}; {hint}")

    def asked(self, key: str) -> Artifact | None:
        """What came out for a key, or None when it was never asked. Its files are there in the right sizes; reading
        verifies them.

        Raises: AlignError naming the file that is missing or has another size.
        """
        path = self.keyed_path("asked", key)
        if not path.exists():
            return None
        digest = self.pointer(path)
        if digest is None or not self.manifest_path(digest).exists():
            if not path.exists():  # collected since the first look
                return None
            raise AlignError(str(bad_answer(path, digest or "no digest")))
        artifact = self.load(digest)
        for name, entry in artifact.files.items():
            place = self.object_path(entry["sha256"])
            if not place.is_file() or place.stat().st_size != entry["size"]:
                self._damaged(artifact, name)
        return artifact

    def read(self, artifact: Artifact, path: str) -> bytes:
        """One file of an artifact, verified.

        Raises: InputError when it has no such file; AlignError when the file is damaged.
        """
        if path not in artifact.files:
            raise InputError(
                f"{self.label(artifact)} has no file {path!r}; it has {', '.join(sorted(artifact.files)) or 'none'}."
            )
        digest = artifact.files[path]["sha256"]
        place = self.object_path(digest)
        content = place.read_bytes() if place.is_file() and not place.is_symlink() else None
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            self._damaged(artifact, path)
        return content

    def materialise(
        self,
        artifact: Artifact,
        folder: str | Path,
        prefix: str = "",
        *,
        link: bool = False,
        beside: Mapping[str, bytes] | None = None,
    ) -> Path:
        """The artifact's files (those inside its folder `prefix`, without the prefix) in `folder`, which is absent or
        empty before, and the files `beside` them, which are no part of it.

        Verified, written beside and renamed. They are copies, which may be edited; `link=True` gives read-only hard
        links to the objects where the file system can, for readers that promise to write nothing.

        Raises: InputError when `folder` holds something; AlignError when a file is damaged or the disk is full.
        """
        with written_folder(Path(folder)) as temp:
            self._lay_out(artifact, temp, artifact.under(prefix), link=link)
            for name, content in (beside or {}).items():
                write_file(temp / name, content)
        return Path(folder)

    def _lay_out(
        self, artifact: Artifact, folder: Path, wanted: Mapping[str, str], *, link: bool, verified: bool = False
    ) -> None:
        if bad := lay_out(self, artifact, folder, wanted, link=link, verified=verified):
            self._damaged(artifact, bad)

    def folder(self, artifact: Artifact) -> Path:
        """A read-only folder with the artifact's files, kept under cache/ and verified whenever it is asked for."""
        path = self.folder_path(artifact.digest)
        if not has_files(path, artifact):
            with self.writing(), locked(self.path / "cache" / ".lock"):
                if not has_files(path, artifact):  # nobody else made it while this one waited
                    if path.exists():
                        os.replace(path, aside := disk.temp_beside(path))
                        shutil.rmtree(aside, ignore_errors=True)
                    self.materialise(artifact, path, link=True)
        return path

    def cached(self, key: str, make: Callable[[], bytes]) -> bytes:
        """What `make` gave for this key before, kept under cache/ with its sha256; made again where it is missing or
        damaged."""
        path = self.keyed_path("cache/computed", key)
        if (known := unseal(path)) is not None:
            return known
        made = make()
        with self.writing():
            write_file(path, seal(made))
        return made

    @contextmanager
    def cached_file(self, key: str, parts: Iterable[memoryview]) -> Iterator[Path]:
        """A computed file, too large to be held, that begins with `parts`, which are asked for only where it has to be
        made. It stays until the block ends; who has mapped it keeps its pages."""
        path = self.keyed_path("cache/computed", key)
        with self.writing():
            if not disk.is_sealed(path):
                disk.write_sealed(path, parts)
            yield path

    def digest_folder(self, folder: str | Path, patterns: Sequence[str]) -> str:
        """`files.digest_folder`, remembering the hashes of unchanged files in this store (once it exists), so that a
        base is read once."""
        file = self.path / "cache" / "hashes"
        known: disk.Hashes = json.loads(unseal(file) or b"{}")
        remembered = dict(known)
        digest = disk.digest_folder(folder, patterns, remembered)
        if remembered != known and self.path.is_dir():
            with self.writing():
                write_file(file, seal(json.dumps(remembered, sort_keys=True).encode()))
        return digest

    def place(self, digest: str) -> Path | None:
        """Where the base with this digest was last seen; None when that is not known. What lies there now is for the
        caller to check."""
        noted = unseal(self.keyed_path("places", digest))
        return None if noted is None else Path(plain(os.fsdecode(noted)))

    def refs(self) -> dict[str, str]:
        """Every ref and the digest it points at, by name.

        Raises: AlignError naming a ref that holds no digest.
        """
        for damage in self.damaged_refs().values():
            raise AlignError(str(damage))
        return self.sound_refs()

    def sound_refs(self) -> dict[str, str]:
        """Those that hold a digest."""
        found = {name: self.pointer(path) for name, path in self.pointers("refs").items()}
        return {name: digest for name, digest in found.items() if digest is not None}

    def damaged_refs(self) -> dict[str, Damage]:
        """Those that hold none, and were not removed since they were listed."""
        found = self.pointers("refs").items()
        return {
            name: bad_ref(path, name, "no digest")
            for name, path in found
            if self.pointer(path) is None and path.exists()
        }

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact, in the order of the digests.

        Raises: AlignError at one whose manifest is damaged.
        """
        for path in sorted((self.path / "artifacts").glob("*.json")):
            try:
                yield self.load(path.stem)
            except AlignError:
                if path.exists():  # else it was collected since it was listed
                    raise

    def size(self) -> int:
        """Bytes of all objects, also of those that no ref reaches."""
        total = 0
        for path in (self.path / "objects").glob("*/*"):
            with suppress(FileNotFoundError):  # collected since it was listed
                total += path.stat().st_size
        return total

    def lineage(self, name: Artifact | str) -> Lineage:
        """Where an artifact came from, back to those without parents.

        Raises: AlignError when an ancestor is missing or damaged.
        """
        return grow(self, self.resolve(name))

    def cost(self, artifact: Artifact) -> CostRecord | None:
        """What its latest run cost (speed, memory, time, host) and when it finished; None when that is not known
        here."""
        return self.costs().get(artifact.digest)

    def costs(self) -> dict[str, CostRecord]:
        """`cost` of every artifact that has one, by digest."""
        return read_costs(self.path / "runs")

    def _damaged(self, artifact: Artifact, path: str) -> NoReturn:
        """Raise what is wrong with the object behind one file of an artifact."""
        digest = artifact.files[path]["sha256"]
        place = self.object_path(digest)
        damage = Damage(place, f"sha256 {digest}", found_hash(place), (artifact,), self.rerun(artifact))
        raise AlignError(f"{path} of {self.label(artifact)} cannot be used. {damage}")
