"""Whole files or none, and the digest of a folder."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
from pathlib import Path

import pytest

from align.ground import disk
from align.ground.errors import AlignError, InputError
from align.store import Store, digest_folder, objects, sha256_file
from tests.store.conftest import fill, make_family, put


def names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_sha256_is_what_sha256sum_prints(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(os.urandom(100_000))
    assert sha256_file(path) == subprocess.check_output(["sha256sum", path], text=True).split()[0]


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path):
    path = tmp_path / "deep/file"
    with disk.written(path, mode=0o444) as file:
        file.write(b"old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), disk.written(path) as file:
        file.write(b"new")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and names(tmp_path) == ["deep/file"]
    assert path.stat().st_mode & 0o777 == 0o444


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "absent", tmp_path / "empty"):
        with pytest.raises(KeyboardInterrupt), disk.written_folder(target) as folder:
            fill(folder, {"a": b"1"})
            raise KeyboardInterrupt
        assert names(tmp_path) == []
    for target in (tmp_path / "absent", tmp_path / "empty"):
        with disk.written_folder(target) as folder:
            fill(folder, {"a": b"1"})
    assert names(tmp_path) == ["absent/a", "empty/a"]
    for target, found in ((tmp_path / "empty", "holds files already"), (tmp_path / "empty/a", "is a file")):
        with pytest.raises(InputError, match=found), disk.written_folder(target):
            pytest.fail("must not be entered")


def test_what_a_killed_process_left_goes_with_the_next_write(tmp_path: Path):
    """A real `kill -9` inside the block leaves a hidden folder. The control: folders of a living process, of another
    machine, and of another kind stay."""
    if not (child := os.fork()):
        with disk.written_folder(tmp_path / "out") as folder:
            fill(folder, {"a": b"1"})
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(f".tmp-{child}-")
    _, _, ours, end = left.name.split("-")
    others = [f".tmp-{os.getpid()}-{ours}-{end}", f".tmp-{child}-00000000-{end}", f".tmp-{child}", f"tmp-{child}"]
    for name in others:
        (tmp_path / name).mkdir()
    with disk.written_folder(tmp_path / "out") as folder:
        fill(folder, {"a": b"1"})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*others, "out"])


@pytest.mark.parametrize("moment", range(1, 8))
def test_a_full_disk_commits_nothing(moment: int, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The disk fills up at the n-th fsync of a put: for each of 2 objects its folder, bytes and rename, then the
    manifest's bytes."""
    make_family(store, tmp_path)
    committed = list(store.artifacts())
    synced, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == moment:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        synced(descriptor)

    folder = fill(tmp_path / "next", {"weights": b"next", "tokenizer/vocab": b"another"})
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(AlignError, match=r"the disk is full \(No space left on device\)\. Nothing was committed"):
            put(store, folder)
    assert count == moment and list(store.artifacts()) == committed
    assert not [name for name in names(store.path) if disk.TEMP in name] and store.verify() == []
    assert store.read(put(store, folder), "weights") == b"next"


def test_a_full_disk_can_be_cleared(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """On a disk that takes no byte more, names and what they reached can still be removed."""

    class Full(io.FileIO):
        def write(self, content: object) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    make_family(store, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode="r", **_: Full(path, mode.replace("b", "")))
        with pytest.raises(AlignError, match="the disk is full"):
            store.tag("another", "quickstart/sft")  # the control: nothing can be written
        for name in ("quickstart/sft", "quickstart/reward", "quickstart/dpo"):
            store.untag(name)
        store.collect(delete=True)
    assert list(store.artifacts()) == [] and not list(store.path.glob("objects/*/*"))


def test_a_store_that_may_not_be_written_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "/shared/store/objects")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(AlignError, match=r"/shared/store/objects: Permission denied. Name a folder that you may write"):
        disk.write_file(tmp_path / "file", b"")
    assert names(tmp_path) == []


@pytest.mark.parametrize("owned", [False, True])
def test_a_file_that_changes_while_it_is_stored_is_noticed(
    owned: bool, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The source is appended to when the last of its bytes have been hashed, or not (the control)."""
    folder = fill(tmp_path / "files", {"weights": b"first"})
    linked, copy = objects.disk.linked, objects.disk.copy

    def meanwhile(done: object) -> object:
        with open(folder / "weights", "ab") as file:
            file.write(b" and more")
        return done

    with monkeypatch.context() as patch:
        patch.setattr(objects.disk, "linked", lambda *paths: meanwhile(linked(*paths)))
        patch.setattr(objects.disk, "copy", lambda *paths: meanwhile(copy(*paths)))
        with pytest.raises(AlignError, match="weights changed while it was being stored"):
            put(store, folder, owned=owned)
    assert names(store.path) == ["gate", "lock"]
    assert store.read(put(store, folder, owned=owned), "weights") == b"first and more"


def test_owned_files_become_objects_without_a_copy(store: Store, tmp_path: Path):
    """One inode, read-only. What has another name already, through which it could change, is copied; so is what is not
    owned."""
    for name, owned, linked in (("owned", True, False), ("shared", True, True), ("given", False, False)):
        folder = fill(tmp_path / name, {"weights": name.encode()})
        if linked:
            os.link(folder / "weights", tmp_path / "another name")
        artifact = put(store, folder, owned=owned)
        place = store.object_path(artifact.files["weights"]["sha256"])
        assert place.samefile(folder / "weights") == (name == "owned") and place.stat().st_mode & 0o777 == 0o444
        assert store.read(artifact, "weights") == name.encode()
    again = put(store, fill(tmp_path / "again", {"weights": b"given"}), owned=True)
    assert store.object_path(again.files["weights"]["sha256"]).stat().st_nlink == 1, (
        "equal bytes are one object already"
    )


def test_folder_digest_is_what_sha256sum_gives(tmp_path: Path):
    """`sha256sum` of the names sorted, hashed once more; other files do not count, symlinks count as what they point
    at."""
    folder = fill(tmp_path / "base", {"b.safetensors": b"2", "a.safetensors": b"1", "readme.md": b"x"})
    (folder / "c.json").symlink_to(fill(tmp_path / "blobs", {"blob": b"{}"}) / "blob")
    listing = subprocess.check_output(
        "sha256sum a.safetensors b.safetensors c.json | sha256sum", shell=True, cwd=folder, text=True
    )
    patterns = ("*.safetensors", "*.json")
    digest = digest_folder(folder, patterns)
    assert digest == listing.split()[0]
    fill(folder, {"readme.md": b"y"})
    assert digest_folder(folder, patterns) == digest
    fill(tmp_path / "blobs", {"blob": b"[]"})
    assert digest_folder(folder, patterns) != digest
    with pytest.raises(InputError, match=r"no file matches \*\.gguf"):
        digest_folder(folder, ["*.gguf"])


def test_unchanged_files_are_hashed_once(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = fill(tmp_path / "base", {"a.bin": b"1", "b.bin": b"2"})
    first = store.digest_folder(folder, ["*.bin"])
    assert not store.path.exists(), "a read does not create the store"
    make_family(store, tmp_path)
    hashed: list[str] = []

    def sha256_noted(path: Path) -> str:
        hashed.append(Path(path).name)
        return sha256_file(path)

    monkeypatch.setattr(disk, "sha256_file", sha256_noted)
    monkeypatch.setattr(disk.time, "time_ns", lambda: (folder / "b.bin").stat().st_ctime_ns + 3_000_000_000)
    assert [store.digest_folder(folder, ["*.bin"]) for _ in range(3)] == [first] * 3 and hashed == ["a.bin", "b.bin"]
    times = (folder / "a.bin").stat()
    (folder / "a.bin").write_bytes(b"3")
    os.utime(folder / "a.bin", ns=(times.st_atime_ns, times.st_mtime_ns))
    assert store.digest_folder(folder, ["*.bin"]) != first and hashed[2:] == ["a.bin"], (
        "same size, same mtime, other bytes"
    )


def test_a_file_just_written_is_not_remembered(store: Store, tmp_path: Path):
    """It could change again within one tick of the file system's clock without its times showing it."""
    make_family(store, tmp_path)
    store.digest_folder(fill(tmp_path / "base", {"a.bin": b"1"}), ["*.bin"])
    assert not (store.path / "cache/hashes").exists()
