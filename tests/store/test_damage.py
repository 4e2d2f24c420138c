"""A flipped byte anywhere is found and named, and nothing damaged is ever handed out."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest

from align.ground import disk
from align.ground.errors import AlignError
from align.store import Artifact, Inputs, Store, canonical_json, digest_json
from align.store.remote.backend import open_remote
from align.store.remote.names import note
from tests.benchmarks.store import FAR, lasting, refused
from tests.store.conftest import fill, make_family, put

KEY = digest_json("what was asked")


def flip(path: Path, position: int) -> None:
    """Change one bit of one byte; a new file, as bit rot leaves no trace in links."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.unlink()
    path.write_bytes(content)


def test_a_flipped_byte_in_each_file_is_found_and_named(tmp_path: Path):
    """First, middle and last byte of every file in turn; the untouched store is the control."""
    clean = Store(tmp_path / "clean")
    family = make_family(clean, tmp_path)
    with clean.run(KEY) as run:
        run.finish(family["dpo"], {"seconds": 1.5})
    clean.note_place("9" * 64, tmp_path)
    note(clean, open_remote(FAR), clean.refs())
    with clean.run(digest_json("stopped"), Inputs((family["sft"].digest,))) as run:
        fill(run.checkpoints, {"checkpoint-1/state": b"state"})
    assert clean.verify() == [] and len(lasting(clean)) == 5 + 3 + 3 + 1 + 1 + 1 + 1 + 1
    for number, path in enumerate(lasting(clean)):
        for position in (0, path.stat().st_size // 2, -1):
            store = Store(tmp_path / f"store-{number}-{position}")
            shutil.copytree(clean.path, store.path)
            harmed = store.path / path.relative_to(clean.path)
            flip(harmed, position)
            damages = store.verify()
            assert [damage.path for damage in damages] == [harmed] and str(harmed) in str(damages[0])
            assert refused(store, harmed)
            shutil.rmtree(store.path)


def test_damage_names_who_needs_it_and_what_to_run(store: Store, family: dict[str, Artifact]):
    store.remember(KEY, family["reward"])
    weights = store.object_path(family["reward"].files["weights"]["sha256"])
    flip(weights, 3)
    (damage,) = store.verify()
    assert (damage.path, damage.needed_by) == (
        weights,
        (family["reward"],),
    ) and damage.expected == f"sha256 {weights.name}"
    assert str(store.path / "asked" / KEY) in damage.remedy and "quickstart/reward again" in damage.remedy
    shared = store.object_path(family["sft"].files["tokenizer/vocab"]["sha256"])
    shared.unlink()
    both = {damage.path: damage for damage in store.verify()}
    assert (
        set(both) == {weights, shared}
        and set(both[shared].needed_by) == set(family.values())
        and "missing" in both[shared].found
    )


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_damage_names_every_descendant(store: Store, family: dict[str, Artifact], tmp_path: Path):
    """By ref where it has one: what used the bytes, and what was made from that by parent, by base and by data, however
    far."""
    base = put(store, fill(tmp_path / "base", {"model/weights": b"base"}), kind="model", stage="pretrain", base=None)
    on_base = {"model": f"artifact:{base.digest}", "revision": None, "digest": base.digest, "quantize": None}
    sft = put(store, fill(tmp_path / "on", {"weights": b"on base"}), base=on_base)
    pairs = put(
        store,
        fill(tmp_path / "pairs", {"data.jsonl": b"{}"}),
        kind="data",
        stage="pairs",
        base=None,
        parents={"parent": sft},
    )
    reward = put(
        store, fill(tmp_path / "more", {"weights": b"more"}), stage="reward", base=None, data={"data": sha(b"{}")}
    )
    store.tag("mine/reward", reward)
    flip(store.object_path(sha(b"base")), 0)
    (damage,) = store.verify()
    assert damage.needed_by == (base,) and damage.descendants == (sft, pairs, reward)
    assert f"needed by  pretrain {base.short}\n" in str(damage)
    assert f"made from  sft {sft.short}, pairs {pairs.short}, mine/reward\n" in str(damage)
    flip(store.object_path(sha(b"base")), 0)
    flip(store.object_path(sha(b"more")), 0)
    (damage,) = store.verify()
    assert damage.needed_by == (reward,) and damage.descendants == (), "the control: nothing was made from it"
    flip(store.object_path(sha(b"more")), 0)
    store.manifest_path(base.digest).unlink()
    (damage,) = store.verify()
    assert (damage.path, damage.needed_by) == (store.manifest_path(base.digest), (sft,)) and damage.descendants == (
        pairs,
        reward,
    )


def test_a_damaged_memory_of_hashes_is_forgotten(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """No byte of it can make a base look like another one. Without the seal (the control) some would."""
    folder = fill(tmp_path / "model", {"a.dat": b"1"})
    put(store, folder)
    monkeypatch.setattr(disk.time, "time_ns", lambda: (folder / "a.dat").stat().st_ctime_ns + 3_000_000_000)
    right = store.digest_folder(folder, ["*.dat"])
    memory = store.path / "cache/hashes"
    whole = memory.read_bytes()
    for position in range(len(whole)):
        flip(memory, position)
        assert store.digest_folder(folder, ["*.dat"]) == right
        memory.write_bytes(whole)
    content = whole.rsplit(b"\n", 2)[0]
    memory.write_bytes(disk.seal(content.replace(sha(b"1").encode(), sha(b"2").encode())))
    assert store.digest_folder(folder, ["*.dat"]) != right


def test_nothing_damaged_is_handed_out(store: Store, family: dict[str, Artifact], tmp_path: Path):
    reward = family["reward"]
    cached = store.folder(reward)
    flip(store.object_path(reward.files["weights"]["sha256"]), 3)
    assert store.read(reward, "head") == b"score"
    for link in (False, True):
        with pytest.raises(AlignError, match="weights of quickstart/reward cannot be used"):
            store.materialise(reward, tmp_path / "out", link=link)
    assert not (tmp_path / "out").exists()
    with pytest.raises(AlignError) as error:
        store.read(reward, "weights")
    assert all(
        part in str(error.value)
        for part in (reward.files["weights"]["sha256"], "expected", "found", "run quickstart/reward again")
    )
    assert store.folder(reward) == cached and (cached / "weights").read_bytes() == b"reward weights", (
        "the cached copy is intact and verified"
    )
    flip(cached / "weights", 0)
    with pytest.raises(AlignError, match="cannot be used"):
        store.folder(reward)


def test_a_symlink_in_place_of_an_object_is_refused(store: Store, family: dict[str, Artifact], tmp_path: Path):
    """Even one that points at the right bytes: what it points at can change."""
    sft = family["sft"]
    weights = store.object_path(sft.files["weights"]["sha256"])
    weights.unlink()
    weights.symlink_to(tmp_path / "sft/weights")
    assert weights.read_bytes() == b"sft weights"
    with pytest.raises(AlignError, match="a symlink"):
        store.read(sft, "weights")
    with pytest.raises(AlignError, match="a symlink"):
        store.materialise(sft, tmp_path / "out", link=True)
    assert [damage.found for damage in store.verify()] == ["a symlink"]


def test_damaged_manifest(store: Store, family: dict[str, Artifact]):
    path = store.manifest_path(family["sft"].digest)
    flip(path, 5)
    for name in ("quickstart/sft", family["sft"], family["sft"].digest[:12]):
        with pytest.raises(AlignError, match=r"is damaged[\s\S]*run quickstart/sft again"):
            store.resolve(name)
    with pytest.raises(AlignError, match="is damaged"):
        store.lineage("quickstart/dpo")
    (damage,) = store.verify()
    assert damage.path == path and {artifact.stage for artifact in damage.needed_by} == {"reward", "dpo"}
    path.unlink()
    with pytest.raises(AlignError, match="the digest of an artifact"):
        store.resolve("quickstart/sft")


def test_asked_names_what_is_gone(store: Store, family: dict[str, Artifact]):
    """Never None: that would silently run the stage again over a store that lost something."""
    store.remember(KEY, family["sft"])
    weights = store.object_path(family["sft"].files["weights"]["sha256"])
    weights.unlink()
    with pytest.raises(
        AlignError,
        match=f"weights of quickstart/sft cannot be used[\\s\\S]*delete .*{KEY} and run quickstart/sft again",
    ):
        store.asked(KEY)
    weights.write_bytes(b"sft weight")
    with pytest.raises(AlignError, match="cannot be used"):
        store.asked(KEY)
    store.manifest_path(family["sft"].digest).unlink()
    with pytest.raises(AlignError, match=r"Delete the file: the stage then runs again"):
        store.asked(KEY)


def test_running_the_stage_again_heals(store: Store, family: dict[str, Artifact], tmp_path: Path):
    """The remedy that the message gives works: put writes damaged objects and manifests anew."""
    flip(store.object_path(family["sft"].files["weights"]["sha256"]), 0)
    flip(store.manifest_path(family["sft"].digest), 0)
    assert len(store.verify()) >= 2
    assert put(store, tmp_path / "sft") == family["sft"] and store.verify() == []


def test_a_hostile_manifest_with_the_right_hash_is_refused(store: Store, tmp_path: Path):
    artifact = put(store, fill(tmp_path / "files", {"weights": b"x"}))
    hostile = artifact.manifest | {"files": {"../../escaped": artifact.files["weights"]}}
    digest = digest_json(hostile)
    store.manifest_path(digest).write_bytes(canonical_json(hostile))
    with pytest.raises(AlignError, match="could name a file outside the artifact"):
        store.materialise(store.resolve(digest), tmp_path / "deep/out")
    assert not (tmp_path / "escaped").exists() and [damage.path for damage in store.verify()] == [
        store.manifest_path(digest)
    ]


def test_a_ref_that_holds_no_digest_is_named(store: Store, family: dict[str, Artifact]):
    (store.path / "refs/quickstart/sft").write_text("not a digest\n")
    for call in (store.refs, lambda: store.resolve("quickstart/sft")):
        with pytest.raises(AlignError, match="refs/quickstart/sft is damaged"):
            call()
    assert store.tag("quickstart/sft", family["sft"]) is None and store.verify() == []
