"""Bytes into objects/ in one pass, and plain folders of files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from align.ground import disk as disk
from align.ground.disk import sha256_file
from align.ground.errors import AlignError, InputError
from align.ground.paths import check_path
from align.store.artifact import Artifact, FileRecord
from align.store.damage import found_hash
from align.store.layout import StoreLayout


def put_object(store: StoreLayout, source: Path, *, owned: bool) -> FileRecord:
    """Bring a file into objects/ unless its bytes are there and intact; its size and sha256. A damaged object is
    replaced.

    The bytes are hashed while they are copied, so that they are read once. An `owned` file, which nothing else writes
    to or links to, is linked instead of copied where the file system can.

    Raises: AlignError when the file changes meanwhile, or the disk is full.
    """
    temp = disk.temp_beside(store.path / "objects" / "object")
    with disk.explaining(store.path / "objects"):
        disk.make_folder(temp.parent)
        try:
            before = source.stat()
            digest = _hash_linked(source, temp) if owned and before.st_nlink == 1 else None
            if digest is None:
                digest = disk.copy(source, temp)
            after = source.stat()
            if (before.st_size, before.st_mtime_ns) != (
                after.st_size,
                after.st_mtime_ns,
            ) or temp.stat().st_size != after.st_size:
                raise AlignError(
                    f"{source} changed while it was being stored. Nothing was committed; see what else writes to it."
                )
            place = store.object_path(digest)
            if found_hash(place) != f"sha256 {digest}":
                disk.make_folder(place.parent)
                disk.sync_file(temp, mode=0o444)
                os.replace(temp, place)
                disk.sync_folder(place.parent)
        finally:
            temp.unlink(missing_ok=True)
    return {"size": after.st_size, "sha256": digest}


def _hash_linked(source: Path, temp: Path) -> str | None:
    """Link `source` to `temp` and hash it; None where the file system cannot link."""
    return sha256_file(temp) if disk.linked(source, temp) else None


def lay_out(
    store: StoreLayout, artifact: Artifact, folder: Path, wanted: Mapping[str, str], *, link: bool, verified: bool
) -> str | None:
    """Fill `folder` with files of an artifact (name there -> path in the artifact). The first path that cannot be had,
    None if all can.

    `verified` says that the objects have just been hashed; else they are, in the pass that copies them where they are
    copied.
    """
    for name, path in wanted.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        source = store.object_path(artifact.files[path]["sha256"])
        if source.is_symlink() or not source.is_file():
            return path
        if link and disk.linked(source, target):
            if not verified and sha256_file(target) != source.name:
                return path
        elif disk.copy(source, target) != source.name:
            return path
        else:
            disk.sync_file(target, mode=0o444 if link else 0o644)
    return None


def plain_files(folder: Path) -> dict[str, Path]:
    """Every file below `folder` by its path inside it.

    Raises: InputError for what is no plain file or folder.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; expected one with the files of the artifact.")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InputError(
                f"{path} is a symlink or a special file; an artifact holds plain files. Copy the content there."
            )
        if path.is_file():
            check_path(name, str(folder))
            found[name] = path
    return found


def has_files(folder: Path, artifact: Artifact) -> bool:
    """Whether `folder` holds the artifact's files, all of them, right to the byte, and nothing else."""
    try:
        found = plain_files(folder)
        return found.keys() == artifact.files.keys() and all(
            sha256_file(found[name]) == artifact.files[name]["sha256"] for name in found
        )
    except (OSError, InputError):
        return False
