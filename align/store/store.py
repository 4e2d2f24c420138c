"""The store: a folder of artifacts named by content, which several processes may use at once and any of them may be
killed."""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

from align.ground.disk import TEMP, explaining, locked, seal, sync_folder, write_file, written_folder
from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.ground.paths import plain
from align.ground.progress import Task
from align.ground.terminal import on_stderr
from align.store.access import access_to, if_free
from align.store.artifact import FORMAT, KINDS, Artifact, canonical_json, is_digest, needs
from align.store.damage import Damage, found_hash
from align.store.garbage import Garbage, find_garbage
from align.store.hold import Hold, Inputs, gripped_inputs
from align.store.layout import MARK, MARKED
from align.store.objects import plain_files, put_object
from align.store.read import LIKE_DIGEST, NAME_LIMIT, StoreReader, is_name
from align.store.remote import transfer
from align.store.remote.arrival import refuse_pickle
from align.store.remote.transfer import Transfer
from align.store.run import Run
from align.store.verify import verify

_NOTHING = Inputs()


class Store(StoreReader):
    """A local store. Reads never create it; the first write does.

    `url` is a folder (or file://…); default `$ALIGN_STORE`, else `.align` in the working folder.

    Raises: InputError for a URL that is no local folder; AlignError for a store that a newer Align wrote.
    """

    def __init__(self, url: str | Path | None = None) -> None:
        if url == "":
            raise InputError("the store's name is empty. Name a folder (--store, $ALIGN_STORE), or leave it out.")
        text = str(url or os.environ.get("ALIGN_STORE") or ".align")
        scheme, separator, rest = text.partition("://")
        if separator and scheme != "file":
            raise InputError(
                f"{text}: a store is a folder of this machine, such as .align or /data/align-store. Push to "
                f"{scheme}:// and pull from it instead: align push URL, align pull URL."
            )
        self.path = Path(os.path.expanduser(rest if separator else text)).absolute()
        self.called = {}
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        if not there.is_dir():
            raise InputError(f"{there} is a file. Expected a folder for the store (--store, $ALIGN_STORE).")
        if (mark := self.path / MARK).is_file() and (found := mark.read_bytes()) != MARKED:
            raise AlignError(f"{mark} says {found[:40]!r}; this Align reads {MARKED!r}. A newer Align may read it.")

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    @property
    def flag(self) -> str:
        """What commands that are proposed need to take this store; nothing where they take it anyway."""
        return "" if self.path == Store().path else f" --store {shlex.quote(str(self.path))}"

    def put(
        self,
        folder: str | Path,
        *,
        kind: str,
        stage: str,
        version: int,
        config: Mapping[str, object],
        parents: Mapping[str, Artifact | str],
        base: Mapping[str, object] | None,
        text: Mapping[str, object] | None,
        data: Mapping[str, str],
        metrics: Mapping[str, object],
        check: Callable[[Path], None] | None = None,
        owned: bool = False,
    ) -> Artifact:
        """Commit every file of `folder` as one artifact, of which the manifest is written last.

        `check` gets the files as the store gives them back and raises when they do not reload equal; then nothing is
        committed. `owned` says that nobody writes to the files any more, so that they may become the store's own
        instead of being copied. Wrap this and `tag` in one `writing()`, or `align gc` may come between and find an
        artifact without a name.

        Raises: InputError for a symlink, a bad path or a value JSON cannot hold; AlignError when a parent is missing or
        the disk is full.
        """
        folder = Path(folder)
        if kind not in KINDS:
            raise InputError(f"{kind!r} is no kind of artifact; expected one of {', '.join(KINDS)}.")
        digests = {role: str(parent) for role, parent in parents.items()}
        manifest: Json = {
            "format": FORMAT,
            "kind": kind,
            "stage": stage,
            "version": version,
            "config": dict(config),
            "parents": digests,
            "base": None if base is None else dict(base),
            "text": None if text is None else dict(text),
            "data": dict(data),
            "metrics": dict(metrics),
        }
        canonical_json(manifest)
        sources = plain_files(folder)
        for source in sources.values():
            refuse_pickle(str(source), source)
        with self.writing():
            for needed in needs(digests, base):
                self.load(needed)
            manifest["files"] = {path: put_object(self, source, owned=owned) for path, source in sources.items()}
            content = canonical_json(manifest)
            artifact = Artifact.parse(content, hashlib.sha256(content).hexdigest())
            if check:
                self._check(artifact, check)
            if found_hash(self.manifest_path(artifact.digest)) != f"sha256 {artifact.digest}":
                write_file(self.manifest_path(artifact.digest), content, mode=0o444)
        return artifact

    def _check(self, artifact: Artifact, check: Callable[[Path], None]) -> None:
        """Give `check` the files of an artifact whose objects have just been written."""
        spare = self.path / "cache" / f"{TEMP}check-{os.getpid()}-{artifact.short}"
        try:
            with Task("checking what was stored"):
                with written_folder(spare) as temp:
                    self._lay_out(artifact, temp, artifact.under(""), link=True, verified=True)
                check(spare)
        finally:
            shutil.rmtree(spare, ignore_errors=True)

    def tag(self, name: str, artifact: Artifact | str) -> str | None:
        """Point the ref `name` at an artifact and return the digest it pointed at before.

        Raises: InputError for a name that cannot be a ref.
        """
        self.check_name(name)
        self.resolve(artifact)
        path = self.path / "refs" / name
        with self.writing(), locked(self.path / "refs" / ".lock"):
            self.check_name(name)  # another process may have made it a folder of names
            digest = self.resolve(artifact).digest
            old, taken = self.pointer(path), path.exists()
            write_file(path, f"{digest}\n".encode())
        if taken and old is None:
            on_stderr(f"{path} was damaged: it held no digest. It holds that of {digest[:12]} now.")
        return old

    def untag(self, name: str) -> str | None:
        """Remove the ref `name` and return the digest it pointed at; the artifact stays until it is collected.

        Raises: InputError when there is no such ref.
        """
        if not (is_name(name) and (path := self.path / "refs" / name).is_file()):
            self._unknown(name)
        with explaining(path), self.writing(), locked(self.path / "refs" / ".lock"):
            if not path.is_file():  # removed since the first look
                self._unknown(name)
            old = self.pointer(path)
            path.unlink()
            sync_folder(path.parent)
            for folder in path.relative_to(self.path / "refs").parents[:-1]:
                with suppress(OSError):  # other refs are in it
                    (self.path / "refs" / folder).rmdir()
        return old

    def check_name(self, name: str) -> None:
        """Refuse a ref name before anything heavy runs.

        Raises: InputError naming the rule it breaks.
        """
        if len(name) > NAME_LIMIT:
            raise InputError(
                f"'{name[:60]}…' cannot be a ref: it has {len(name):,} characters, and a ref has at most {NAME_LIMIT}."
            )
        if not is_name(name) or is_digest(name):
            raise InputError(
                f"{name!r} cannot be a ref. Expected letters, digits, '.', '_' and '-', in parts separated by '/', "
                "such as quickstart/dpo; "
                "no part begins with '.' or '-', '..' is not allowed, and a digest is a name already."
            )
        if LIKE_DIGEST.fullmatch(name):
            raise InputError(
                f"{name!r} cannot be a ref: it looks like the beginning of a digest, by which artifacts are named too, "
                f"so it could mean two of them. Give a name with another letter or sign in it, such as run-{name[:12]}."
            )
        refs = self.path / "refs"
        above = next(
            (
                parent
                for parent in (refs / name).parents
                if parent != refs and refs in parent.parents and parent.is_file()
            ),
            None,
        )
        if above or (refs / name).is_dir():
            taken = above.relative_to(refs).as_posix() if above else f"{name}/…"
            raise InputError(
                f"{name!r} cannot be a ref: {taken} is one already, and a ref cannot be both a name and a folder of "
                "names. Take another name; that of a recipe is its file's, or what `name` says there."
            )

    def remember(self, key: str, artifact: Artifact) -> None:
        """Keep what came out for a key, so that asking again costs nothing."""
        with self.writing():
            write_file(self.keyed_path("asked", key), f"{self.load(artifact.digest).digest}\n".encode())

    def note_place(self, digest: str, path: Path) -> None:
        """Keep where the base with this digest lies on this machine; manifests name no paths."""
        file = self.keyed_path("places", digest)
        if self.place(digest) != Path(plain(path)):
            with self.writing():
                write_file(file, seal(os.fsencode(path.absolute())))

    @contextmanager
    def run(self, key: str, inputs: Inputs = _NOTHING, *, lock: bool = True) -> Iterator[Run]:
        """Work on a key in runs/<key>/, holding its inputs. A second process that asks the same key says who is at work
        and waits.

        Look at `asked(key)` inside the block: another process may have finished while this one waited.
        Ranks other than 0 of one job pass `lock=False`; rank 0 holds the lock for all of them.

        Raises: AlignError when an input is not there any more.
        """
        run = Run(key, self.keyed_path("runs", key), self.remember)
        working = locked(run.path / "lock", _say_who_works) if lock else nullcontext()
        with gripped_inputs(self, run.path / "inputs", inputs), working:
            run.checkpoints.mkdir(exist_ok=True)
            yield run

    @contextmanager
    def hold(self, *names: Artifact | str) -> Iterator[Hold]:
        """Keep artifacts, and what they were made from, out of reach of `align gc` for the block. `Hold.add` takes
        more.

        Raises: what `resolve` raises.
        """
        hold = Hold(self, self.resolve)
        try:
            for name in names:
                hold.add(name)
            yield hold
        finally:
            hold.release()

    def collect(self, *, delete: bool = False, checkpoints: bool = False) -> Garbage:
        """What nothing reaches or holds, removed if `delete`; `checkpoints` gives up what stopped runs and pulls could
        go on from, too.

        Waits until nobody writes. Raises: AlignError, with nothing removed, when what must be followed is damaged or
        cannot be read.
        """
        if not self.path.exists():
            return Garbage()
        with explaining(self.path), access_to(self.path).alone(), self._no_pull() as no_pull:
            garbage = find_garbage(self, give_up=checkpoints, no_pull=no_pull)
            if delete:
                garbage.remove(self)
        return garbage

    def _no_pull(self) -> AbstractContextManager[bool]:
        """Keep pulls from beginning for the block; False where one is under way, or none ever left anything."""
        return if_free(self.pull_lock) if self.arriving.exists() else nullcontext(False)

    def push(self, url: str | Path, refs: Sequence[str] = (), *, force: bool = False) -> Transfer:
        """`remote.push`: send refs or digests, else every ref, with all that they come from."""
        return transfer.push(self, url, refs, force=force)

    def pull(self, url: str | Path, refs: Sequence[str] = (), *, force: bool = False) -> Transfer:
        """`remote.pull`: fetch refs or digests, else every ref, with all that they come from."""
        return transfer.pull(self, url, refs, force=force)

    def verify(self) -> list[Damage]:
        """Read everything and name all that is damaged or missing. [] is a store in which every byte is right."""
        return list(verify(self))


def _say_who_works(holder: str) -> None:
    on_stderr(f"The same work is being done by {holder}; waiting for it.")
