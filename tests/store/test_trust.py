"""The figures of `tests.benchmarks.store`, small here and in full where they are slow."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.store import Store
from tests.benchmarks.store import crowd, flips, full_store, kill_at_random, lasting, lookups, refused


@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.slow)])
def test_kill_9_loses_nothing(kills: int, tmp_path: Path):
    """Of put, ref and gc in turn: what was reported is there, before and after a collection; no object is damaged; no
    file is left over."""
    found = kill_at_random(tmp_path, kills, seed=kills)
    assert found.kills == kills and found.reported >= kills
    assert (found.lost, found.damages, found.left) == ([], [], 0)


def test_a_lost_commit_would_be_noticed(tmp_path: Path):
    """The control: a store that forgets one name and cuts one object short after every kill."""

    def flaw(store: Store) -> None:
        (store.path / "refs" / min(store.refs())).unlink()
        objects = sorted(store.path.glob("objects/*/*"))
        objects[0].chmod(0o644)
        objects[0].write_bytes(b"")

    found = kill_at_random(tmp_path, 3, flaw=flaw)
    assert found.lost and found.damages


@pytest.mark.parametrize("artifacts", [40, pytest.param(500, marks=pytest.mark.slow)])
def test_eight_processes_two_of_them_collecting(artifacts: int, tmp_path: Path):
    found = crowd(tmp_path, artifacts)
    assert (found.written, found.errors, found.lost, found.damages) == (artifacts, [], [], [])
    assert found.collections > 0 and found.removed > 0


def test_one_flipped_byte_in_every_file(tmp_path: Path):
    """test_damage does this by hand at three places of each file; here at a random place."""
    count, missed = flips(tmp_path, seed=3)
    assert count == 20 and missed == []
    store = full_store(tmp_path / "control")
    assert store.verify() == [] and not any(refused(store, path) for path in lasting(store))


def test_looking_up_lists_no_more_than_it_must(tmp_path: Path):
    """A store of 200 beside one of 20: the same memory. Times are for the benchmark."""
    small, large = lookups(tmp_path, 20), lookups(tmp_path, 200)
    assert small.keys() == large.keys() and large["MiB"] < small["MiB"] + 1
