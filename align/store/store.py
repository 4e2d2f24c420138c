"""The store: a folder of artifacts named by content, which several processes may use at once and any of them may be killed."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NoReturn

from align.errors import AlignError, InputError
from align.store import files as disk
from align.store import remote
from align.store.arrival import refuse_pickle
from align.store.artifact import FORMAT, KINDS, Artifact, Lineage, canonical_json, check_path, is_digest
from align.store.files import TEMP, locked, sha256_file, write_file, written, written_folder
from align.store.layout import Layout
from align.store.remote import Transfer
from align.store.run import Run, read_costs
from align.store.verify import Damage, bad_answer, bad_ref, found_hash, verify

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*", re.ASCII)
_PREFIX = re.compile(r"[0-9a-f]{4,64}", re.ASCII)


class Store(Layout):
    """A local store. Reads never create it; the first write does.

    `url` is a folder (or file://…); default `$ALIGN_STORE`, else `.align` in the working folder.

    Raises: InputError for a URL that is no local folder.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        text = str(url or os.environ.get("ALIGN_STORE") or ".align")
        scheme, separator, rest = text.partition("://")
        if separator and scheme != "file":
            raise InputError(
                f"{text}: a store is a folder of this machine, such as .align or /data/align-store. Push to {scheme}:// and pull from it "
                "instead: align push URL, align pull URL."
            )
        self.path = Path(rest if separator else text).expanduser().absolute()
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file. Expected a folder for the store (--store, $ALIGN_STORE).")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    # Writing

    def put(
        self,
        folder: str | Path,
        *,
        kind: str,
        stage: str,
        version: int,
        config: Mapping[str, Any],
        parents: Mapping[str, Artifact | str],
        base: Mapping[str, Any] | None,
        text: Mapping[str, Any] | None,
        data: Mapping[str, str],
        metrics: Mapping[str, Any],
        check: Callable[[Path], None] | None = None,
    ) -> Artifact:
        """Commit every file of `folder` as one artifact, of which the manifest is written last.

        `check` gets the files as the store gives them back and raises when they do not reload equal; then nothing is committed.

        Raises: InputError for a symlink, a bad path or a value JSON cannot hold; AlignError when a parent is missing or the disk is full.
        """
        folder = Path(folder)
        if kind not in KINDS:
            raise InputError(f"{kind!r} is no kind of artifact; expected one of {', '.join(KINDS)}.")
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "kind": kind,
            "stage": stage,
            "version": version,
            "config": dict(config),
            "parents": {role: self._load(str(parent)).digest for role, parent in parents.items()},
            "base": None if base is None else dict(base),
            "text": None if text is None else dict(text),
            "data": dict(data),
            "metrics": dict(metrics),
        }
        canonical_json(manifest)
        sources = _plain_files(folder)
        for source in sources.values():
            refuse_pickle(str(source), source)
        manifest["files"] = {path: self._put_object(source) for path, source in sources.items()}
        content = canonical_json(manifest)
        artifact = Artifact.parse(content, hashlib.sha256(content).hexdigest())
        if check:
            spare = self.path / "cache" / f"{TEMP}check-{os.getpid()}-{artifact.short}"
            try:
                check(self.materialise(artifact, spare, link=True))
            finally:
                shutil.rmtree(spare, ignore_errors=True)
        if found_hash(self.manifest_path(artifact.digest)) != f"sha256 {artifact.digest}":
            write_file(self.manifest_path(artifact.digest), content, mode=0o444)
        return artifact

    def _put_object(self, source: Path) -> dict[str, Any]:
        """Copy a file into objects/, unless its bytes are there and intact; its size and sha256. A damaged object is replaced."""
        digest = sha256_file(source)
        path = self.object_path(digest)
        if found_hash(path) != f"sha256 {digest}":
            with written(path, mode=0o444) as target, open(source, "rb") as file:
                copied = hashlib.sha256()
                while chunk := file.read(1 << 20):
                    copied.update(chunk)
                    target.write(chunk)
                if copied.hexdigest() != digest:
                    raise AlignError(f"{source} changed while it was being stored. Nothing was committed; see what else writes to it.")
        return {"size": path.stat().st_size, "sha256": digest}

    def tag(self, name: str, artifact: Artifact | str) -> str | None:
        """Point the ref `name` at an artifact and return the digest it pointed at before.

        Raises: InputError for a name that cannot be a ref.
        """
        self.check_name(name)
        digest = self.resolve(artifact).digest
        path = self.path / "refs" / name
        with locked(self.path / "refs" / ".lock"):
            old = self.pointer(path) if path.exists() else None
            write_file(path, f"{digest}\n".encode())
        return old

    def check_name(self, name: str) -> None:
        """Refuse a ref name before anything heavy runs.

        Raises: InputError naming the rule it breaks.
        """
        if not _NAME.fullmatch(name) or ".." in name or len(name) > 200 or is_digest(name):
            raise InputError(
                f"{name!r} cannot be a ref. Expected letters, digits, '.', '_' and '-', in parts separated by '/', such as quickstart/dpo; "
                "no part begins with '.' or '-', '..' is not allowed, and a digest is a name already."
            )
        refs = self.path / "refs"
        above = next((parent for parent in (refs / name).parents if parent != refs and refs in parent.parents and parent.is_file()), None)
        if above or (refs / name).is_dir():
            taken = above.relative_to(refs).as_posix() if above else f"{name}/…"
            raise InputError(f"{name!r} cannot be a ref: {taken} is one already, and a ref cannot be both a name and a folder of names.")

    def remember(self, key: str, artifact: Artifact) -> None:
        """Keep what came out for a key, so that asking again costs nothing."""
        write_file(self.keyed_path("asked", key), f"{self._load(artifact.digest).digest}\n".encode())

    def note_place(self, digest: str, path: Path) -> None:
        """Keep where the base with this digest lies on this machine; manifests name no paths."""
        content = os.fsencode(path.absolute())
        place = self.keyed_path("places", digest)
        if not place.is_file() or place.read_bytes() != content:
            write_file(place, content)

    @contextmanager
    def run(self, key: str, *, lock: bool = True) -> Iterator[Run]:
        """Work on a key in runs/<key>/. A second process that asks the same key says who is at work and waits.

        Look at `asked(key)` inside the block: another process may have finished while this one waited.
        Ranks other than 0 of one job pass `lock=False`; rank 0 holds the lock for all of them.
        """
        run = Run(key, self.keyed_path("runs", key), self.remember)
        with disk.explaining(run.path):
            disk.make_folder(run.path)
            run.path.chmod(0o700)
        with locked(run.path / "lock", _say_who_works) if lock else nullcontext():
            run.checkpoints.mkdir(exist_ok=True)
            yield run

    # Remotes

    def push(self, url: str | Path, refs: Sequence[str] = (), *, force: bool = False) -> Transfer:
        """`remote.push`: send refs or digests, else every ref, with all that they come from."""
        return remote.push(self, url, refs, force=force)

    def pull(self, url: str | Path, refs: Sequence[str] = (), *, force: bool = False) -> Transfer:
        """`remote.pull`: fetch refs or digests, else every ref, with all that they come from."""
        return remote.pull(self, url, refs, force=force)

    # Reading

    def resolve(self, name: Artifact | str) -> Artifact:
        """The artifact a ref, a digest or a unique prefix of one (4 characters or more) names.

        Raises: InputError naming the nearest refs, or the candidates of an ambiguous prefix; AlignError when it is damaged.
        """
        if isinstance(name, Artifact):
            return self._load(name.digest)
        if _NAME.fullmatch(name) and ".." not in name and (path := self.path / "refs" / name).is_file():
            digest = self.pointer(path)
            if digest is None or not self.manifest_path(digest).exists():
                raise AlignError(str(bad_ref(path, name, digest or "no digest")))
            return self._load(digest)
        if _PREFIX.fullmatch(name):
            found = sorted(path.stem for path in (self.path / "artifacts").glob(f"{name}*.json"))
            if len(found) > 1:
                candidates = "\n".join(f"  {digest[:16]}  {self.label(self._load(digest))}" for digest in found)
                raise InputError(f"{name} is the beginning of {len(found)} artifacts; give more of the digest:\n{candidates}")
            if found:
                return self._load(found[0])
        self._unknown(name)

    def _unknown(self, name: str) -> NoReturn:
        if (Path(name) / "adapter_config.json").is_file():
            raise InputError(f"{name} is a folder that PEFT saved, no artifact. Import it first: align import {name} --base MODEL")
        if not (self.path / "artifacts").is_dir():
            raise InputError(f"{name!r} is not known: there is no store at {self.path}. Run a stage first, or name the store (--store).")
        refs = list(self.pointers("refs"))
        near = [ref for ref in refs if name in ref.split("/")] + difflib.get_close_matches(name, refs, n=5, cutoff=0.5)
        hint = f"did you mean {' or '.join(dict.fromkeys(near))}?" if near else "`align ls` lists what is there."
        raise InputError(f"{name!r} is no ref and no digest in {self.path}; {hint}")

    def _load(self, digest: str) -> Artifact:
        """The artifact of a whole digest, with its manifest verified."""
        if not is_digest(digest):
            raise InputError(f"{digest!r} is no digest; expected 64 characters of lower-case hex.")
        path = self.manifest_path(digest)
        if not path.exists():
            raise AlignError(f"{self.path} has no artifact {digest}. Run the stage that made it again, or name its store (--store).")
        content = path.read_bytes()
        if (found := hashlib.sha256(content).hexdigest()) != digest:
            raise AlignError(str(Damage(path, f"sha256 {digest}", f"sha256 {found}", (), self.rerun(digest))))
        return Artifact.parse(content, digest)

    def asked(self, key: str) -> Artifact | None:
        """What came out for a key, or None when it was never asked. Its files are there in the right sizes; reading verifies them.

        Raises: AlignError naming the file that is missing or has another size.
        """
        path = self.keyed_path("asked", key)
        if not path.exists():
            return None
        digest = self.pointer(path)
        if digest is None or not self.manifest_path(digest).exists():
            raise AlignError(str(bad_answer(path, digest or "no digest")))
        artifact = self._load(digest)
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
            raise InputError(f"{self.label(artifact)} has no file {path!r}; it has {', '.join(sorted(artifact.files)) or 'none'}.")
        digest = artifact.files[path]["sha256"]
        place = self.object_path(digest)
        content = place.read_bytes() if place.is_file() and not place.is_symlink() else None
        if content is None or hashlib.sha256(content).hexdigest() != digest:
            self._damaged(artifact, path)
        return content

    def materialise(self, artifact: Artifact, folder: str | Path, prefix: str = "", *, link: bool = False) -> Path:
        """The artifact's files (those inside its folder `prefix`, without the prefix) in `folder`, which is absent or empty before.

        Verified, written beside and renamed. They are copies, which may be edited; `link=True` gives read-only hard links to the
        objects where the file system can, for readers that promise to write nothing.

        Raises: InputError when `folder` holds something; AlignError when a file is damaged or the disk is full.
        """
        wanted = artifact.under(prefix)
        with written_folder(Path(folder)) as temp:
            for name, path in wanted.items():
                target = temp / name
                target.parent.mkdir(parents=True, exist_ok=True)
                source = self.object_path(artifact.files[path]["sha256"])
                if source.is_symlink() or not source.is_file():
                    self._damaged(artifact, path)
                if not (link and disk.linked(source, target)):
                    disk.copy(source, target, mode=0o444 if link else 0o644)
                if sha256_file(target) != source.name:
                    self._damaged(artifact, path)
        return Path(folder)

    def folder(self, artifact: Artifact) -> Path:
        """A read-only folder with the artifact's files, kept under cache/ and verified whenever it is asked for."""
        path = self.path / "cache" / artifact.digest
        if not _holds(path, artifact):
            with locked(self.path / "cache" / ".lock"):
                if not _holds(path, artifact):  # nobody else made it while this one waited
                    if path.exists():
                        os.replace(path, aside := disk.temp_beside(path))
                        shutil.rmtree(aside, ignore_errors=True)
                    self.materialise(artifact, path, link=True)
        return path

    def digest_folder(self, folder: str | Path, patterns: Sequence[str]) -> str:
        """`files.digest_folder`, remembering the hashes of unchanged files in this store (once it exists)."""
        return disk.digest_folder(folder, patterns, self.path / "cache" / "hashes.json")

    def place(self, digest: str) -> Path | None:
        """Where the base with this digest was last seen; None when that was never noted. What lies there now is for the caller to check."""
        place = self.keyed_path("places", digest)
        return Path(os.fsdecode(place.read_bytes())) if place.is_file() else None

    def refs(self) -> dict[str, str]:
        """Every ref and the digest it points at, by name.

        Raises: AlignError naming a ref that holds no digest.
        """
        found = {}
        for name, path in self.pointers("refs").items():
            digest = self.pointer(path)
            if digest is None:
                raise AlignError(str(bad_ref(path, name, "no digest")))
            found[name] = digest
        return found

    def artifacts(self) -> Iterator[Artifact]:
        """Every artifact, in the order of the digests.

        Raises: AlignError at one whose manifest is damaged.
        """
        for path in sorted((self.path / "artifacts").glob("*.json")):
            yield self._load(path.stem)

    def lineage(self, name: Artifact | str) -> Lineage:
        """Where an artifact came from, back to those without parents.

        Raises: AlignError when an ancestor is missing or damaged.
        """

        grown: dict[str, Lineage] = {}  # what two share is one: a tree of its own for each would double with every generation

        def grow(artifact: Artifact) -> Lineage:
            if artifact.digest not in grown:
                parents = {role: grow(self._load(parent)) for role, parent in artifact.parents.items()}
                grown[artifact.digest] = Lineage(artifact, parents)
            return grown[artifact.digest]

        return grow(self.resolve(name))

    def cost(self, artifact: Artifact) -> dict[str, Any] | None:
        """What its latest run cost (speed, memory, time, host) and when it finished; None when that is not known here."""
        return self.costs().get(artifact.digest)

    def costs(self) -> dict[str, dict[str, Any]]:
        """`cost` of every artifact that has one, by digest."""
        return read_costs(self.path / "runs")

    def verify(self) -> list[Damage]:
        """Read everything and name all that is damaged or missing. [] is a store in which every byte is right."""
        return list(verify(self))

    def _damaged(self, artifact: Artifact, path: str) -> NoReturn:
        """Raise what is wrong with the object behind one file of an artifact."""
        digest = artifact.files[path]["sha256"]
        place = self.object_path(digest)
        damage = Damage(place, f"sha256 {digest}", found_hash(place), (artifact,), self.rerun(artifact))
        raise AlignError(f"{path} of {self.label(artifact)} cannot be used. {damage}")


def _say_who_works(holder: str) -> None:
    print(f"The same work is being done by {holder}; waiting for it.", file=sys.stderr, flush=True)


def _plain_files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` by its path inside it.

    Raises: InputError for what is no plain file or folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with the files of the artifact.")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(f"{path} is a symlink or a special file; an artifact holds plain files. Copy the content there.")
        if path.is_file():
            check_path(name, str(folder))
            found[name] = path
    return found


def _holds(folder: Path, artifact: Artifact) -> bool:
    """Whether `folder` holds the artifact's files, all of them, right to the byte, and nothing else."""
    try:
        found = _plain_files(folder)
        return found.keys() == artifact.files.keys() and all(sha256_file(found[name]) == artifact.files[name]["sha256"] for name in found)
    except (OSError, InputError):
        return False
