"""PPO's memory: one base, adapters, heads, and one merged copy of the adapted weights; at every moment of a step, rollout included."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from align.core.decode import Cache
from align.core.experience import Rollouts
from align.core.roles import Roles
from align.core.trainer import StageTrainer
from tests.conftest import Pipeline
from tests.stages.helpers import run


def alive() -> dict[int, Tensor]:
    """Storage address -> a tensor on it, for every tensor that came to life since `gc.freeze`."""
    found: dict[int, Tensor] = {}
    for thing in gc.get_objects():
        if issubclass(type(thing), Tensor):  # isinstance asks lazy objects, which warn
            found.setdefault(thing.untyped_storage().data_ptr(), thing)
    return found


def storages(tensors: Any) -> set[int]:
    return {t.untyped_storage().data_ptr() for t in tensors}


class Census:
    """Counts, at each moment it is called, the storages in the shape of a base weight that the expected ones do not explain."""

    def __init__(self) -> None:
        self.roles: Roles | None = None
        self.rollouts: Rollouts | None = None
        self.moments: dict[str, list[int]] = {}

    def take(self, moment: str) -> None:
        assert self.roles is not None and self.rollouts is not None
        base = dict(self.roles.base_parameters())
        shapes = {tuple(p.shape) for p in base.values() if p.dim() == 2}
        copied = [plain.weight for _, plain in self.rollouts.sampler.copy.layers] if self.rollouts.sampler.copy else []
        assert len(copied) == 14  # every linear layer of two blocks, once
        assert not storages(copied) & storages(base.values())
        expected = storages(base.values()) | storages(copied) | storages(self.roles.parameters())
        extra = [t for address, t in alive().items() if address not in expected and t.dim() == 2 and tuple(t.shape) in shapes]
        self.moments.setdefault(moment, []).append(len(extra))


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> Iterator[Census]:
    found = Census()
    init = Rollouts.__init__

    def remember(self: Rollouts, roles: Roles, *args: Any, **kwargs: Any) -> None:
        init(self, roles, *args, **kwargs)
        found.roles, found.rollouts = roles, self

    def around(owner: type, name: str, moment: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
            found.take(f"before {moment}")
            result = original(self, *args, **kwargs)
            found.take(f"after {moment}")
            return result

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(Rollouts, "__init__", remember)
    around(Rollouts, "collect", "rollout")
    around(Rollouts, "measure", "measuring")
    around(StageTrainer, "training_step", "step")
    gc.collect()
    gc.freeze()  # what other tests hold is not looked at
    yield found
    gc.unfreeze()


def test_one_base_and_one_merged_copy(census: Census, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base once, adapters, heads, one copy of what the adapters touch: nothing else has the shape of a weight, while sampling too."""
    grow = Cache.grow

    def watched(self: Cache) -> None:
        grow(self)
        if self.grown == 3:
            census.take("while sampling")

    monkeypatch.setattr(Cache, "grow", watched)
    run(pipeline, "ppo", max_steps=4, name="watched")
    assert set(census.moments) == {f"{when} {what}" for when in ("before", "after") for what in ("rollout", "measuring", "step")} | {
        "while sampling"
    }
    assert {moment: sum(counts) for moment, counts in census.moments.items()} == dict.fromkeys(census.moments, 0)
    assert [len(census.moments[m]) for m in ("before rollout", "before step")] == [2, 4]
    # Figures of the issue: distinct storages of the base's own weights, each held once.
    assert census.roles is not None and census.rollouts is not None and census.rollouts.sampler.copy is not None
    weights = [p for _, p in census.roles.base_parameters()]
    shared = storages(census.rollouts.sampler.copy.model.parameters()) & storages(weights)
    assert len(storages(weights)) == 20 and len(shared) == 6  # 14 linear layers are copied; 5 norms and the tied embedding are not


def test_the_census_sees_a_second_copy(census: Census, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a clone of one base weight, held anywhere, is counted."""
    kept: list[Tensor] = []
    collect = Rollouts.collect

    def clone(self: Rollouts, index: int) -> Any:
        kept.append(next(p for _, p in self.roles.base_parameters() if p.dim() == 2).detach().clone())
        return collect(self, index)

    monkeypatch.setattr(Rollouts, "collect", clone)
    run(pipeline, "ppo", name="cloned", learning_rate=0.02)
    assert census.moments["before step"] == [1, 1] and torch.is_tensor(kept[0])
