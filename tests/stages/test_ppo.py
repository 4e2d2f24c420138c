"""PPO: where values come from, and its memory: one base, adapters, heads, and one merged copy of the adapted weights,
at every moment."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from align import measures, ppo, sampling
from align.ground.errors import InputError
from align.models.roles import Roles
from align.rl import collect, setup
from align.rl.collect import Rollouts
from align.rl.shaping import Moments, shaped
from align.sampling.decode import Cache
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.training.trainer import StageTrainer
from tests.conftest import Pipeline
from tests.stages.helpers import history, run, settings


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
    """Counts, at each moment it is called, the storages in the shape of a base weight that the expected ones do not
    explain."""

    def __init__(self) -> None:
        self.roles: Roles | None = None
        self.rollouts: Rollouts | None = None
        self.moments: dict[str, list[int]] = {}
        self.copied: dict[str, set[int]] = {}
        """Matrices of the merged copy that lay in memory at each moment."""

    def take(self, moment: str) -> None:
        assert self.roles is not None and self.rollouts is not None
        base = dict(self.roles.base_parameters())
        shapes = {tuple(p.shape) for p in base.values() if p.dim() == 2}
        assert self.rollouts.sampler.copy is not None
        copied = [plain.weight for _, plain, _ in self.rollouts.sampler.copy.matrices if plain.weight is not None]
        self.copied.setdefault(moment, set()).add(len(copied))
        assert not storages(copied) & storages(base.values())
        expected = storages(base.values()) | storages(copied) | storages(self.roles.parameters())
        extra = [
            t for address, t in alive().items() if address not in expected and t.dim() == 2 and tuple(t.shape) in shapes
        ]
        self.moments.setdefault(moment, []).append(len(extra))


@pytest.fixture
def census(monkeypatch: pytest.MonkeyPatch) -> Iterator[Census]:
    found = Census()
    init = Rollouts.__init__

    def remember(self: Rollouts, roles: Roles, *args: Any, **kwargs: Any) -> None:
        init(self, roles, *args, **kwargs)
        found.roles, found.rollouts = roles, self

    def around(owner: object, name: str, moment: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def watched(*args: Any, **kwargs: Any) -> Any:
            found.take(f"before {moment}")
            result = original(*args, **kwargs)
            found.take(f"after {moment}")
            return result

        monkeypatch.setattr(owner, name, watched)

    monkeypatch.setattr(Rollouts, "__init__", remember)
    around(Rollouts, "collect", "rollout")
    around(collect, "measured", "measuring")
    around(StageTrainer, "training_step", "step")
    gc.collect()
    gc.freeze()  # what other tests hold is not looked at
    yield found
    gc.unfreeze()


def test_one_base_and_one_merged_copy(census: Census, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Base once, adapters, heads, and while sampling one copy of what the adapters touch: nothing else has the shape of
    a weight."""
    grow = Cache.grow

    def watched(self: Cache) -> None:
        grow(self)
        if self.grown == 3 and census.rollouts is not None:  # not while it is tried whether the base can grow
            census.take("while sampling")

    monkeypatch.setattr(Cache, "grow", watched)
    run(pipeline, "ppo", max_steps=4, name="watched")
    assert set(census.moments) == {
        f"{when} {what}" for when in ("before", "after") for what in ("rollout", "measuring", "step")
    } | {"while sampling"}
    assert {moment: sum(counts) for moment, counts in census.moments.items()} == dict.fromkeys(census.moments, 0)
    assert [len(census.moments[m]) for m in ("before rollout", "before step")] == [2, 4]
    # every linear layer of two blocks, once, and gone while the policy trains
    sampled = {
        "before rollout": {0},
        "while sampling": {14},
        "before measuring": {14},
        "after measuring": {14},
        "after rollout": {14},
    }
    assert census.copied == sampled | {"before step": {0}, "after step": {0}}
    # Figures of the issue: distinct storages of the base's own weights, each held once.
    assert census.roles is not None and census.rollouts is not None and census.rollouts.sampler.copy is not None
    weights = [p for _, p in census.roles.base_parameters()]
    shared = storages(census.rollouts.sampler.copy.merged().parameters()) & storages(weights)
    # 14 linear layers are copied; 5 norms and the tied embedding are not
    assert len(storages(weights)) == 20 and len(shared) == 6


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


# ---- the value -------------------------------------------------------------------------------------------------------


def test_a_value_on_the_trunk_is_a_head_on_the_policys_adapter(pipeline: Pipeline) -> None:
    """Its role in the artifact is the policy's adapter and a head that has moved from zero; no adapter is copied from
    the reward model."""
    made = run(pipeline, "ppo", value="trunk", max_steps=4, name="trunk")
    adapter, value = (made.files[f"{place}adapters/0/adapter_model.safetensors"]["sha256"] for place in ("", "value/"))
    assert adapter == value
    head = load_file(pipeline.store.folder(made) / "value/head.safetensors")
    assert head["weight"].abs().max() > 0
    own = pipeline.made["ppo"]  # negative control: by default it has an adapter of its own
    assert own.files["value/adapters/0/adapter_model.safetensors"] != own.files["adapters/0/adapter_model.safetensors"]


@pytest.mark.parametrize("value", ["adapter", pytest.param("trunk", marks=pytest.mark.slow)])
def test_in_the_warm_up_the_value_alone_trains(value: str, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """One rollout of two steps: the policy stays bit for bit, weight decay or not, and has no state in the optimizer;
    then it moves."""
    states: list[dict[str, Any]] = []
    step = StageTrainer.training_step

    def noting(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        found = {k: p.detach().clone() for k, p in self.roles.trainable().items()}
        states.append(
            found | {"optimized": {k for k, p in self.roles.trainable().items() if p in self.optimizer.optimizer.state}}
        )
        return step(self, *args, **kwargs)

    monkeypatch.setattr(StageTrainer, "training_step", noting)
    changes: dict[str, Any] = {"value": value, "max_steps": 4, "weight_decay": 0.1}
    made = run(pipeline, "ppo", value_warmup=1, name="warm", **changes)
    policy = [k for k in states[0] if ".policy." in k]
    others = [k for k in states[0] if ".policy." not in k and k != "optimized"]
    moved = [
        [k for k in states[0] if k != "optimized" and not torch.equal(states[i][k], states[0][k])] for i in range(4)
    ]
    assert policy and not set(policy) & {*moved[1], *moved[2]} and set(policy) & set(moved[3])
    assert set(others) & set(moved[1]) and not set(policy) & states[2]["optimized"]
    rows = history(made, pipeline.store)
    assert ["clip_fraction" in row for row in rows] == [False, False, True, True] and rows[2]["kl"] == pytest.approx(
        0.0, abs=1e-5
    )
    states.clear()
    run(pipeline, "ppo", name="cold", **changes)
    assert any(not torch.equal(states[1][k], states[0][k]) for k in policy)  # negative control


def start_of(pipeline: Pipeline, **changes: Any) -> tuple[Roles, Any]:
    """The roles of a run whose value role is made, and what is to be called after the first rollout."""
    start = setup.set_up(Workbench(prepare(ppo.STAGE, settings(pipeline, "ppo", **changes), pipeline.store)))
    return start.roles, ppo.add_value(start.bench, start.roles)


@pytest.fixture
def rewards(pipeline: Pipeline) -> list[str]:
    """Two reward models that have learnt something, and have a bias."""
    more: dict[str, Any] = {"learning_rate": 0.01, "head_learning_rate": 0.5, "centre_samples": 8}
    run(pipeline, "reward", name="tiny/first", **more)
    run(pipeline, "reward", name="tiny/second", seed=9, **more)
    return ["tiny/first", "tiny/second"]


def scores_of(roles: Roles, role: str) -> Any:
    ids = [[5, 6, 7, 8, 9], [5, 6, 7, 11], [12, 13, 14, 15, 16, 17]]
    return measures.passes.scores(roles, role, [sampling.rollout.as_example(row[:2], [row[2:]]) for row in ids], 64)


def test_values_start_as_the_first_reward_that_trains(pipeline: Pipeline, rewards: list[str]) -> None:
    """Times its weight, bias and all. Negative controls: the other reward, and the same one without its weight."""
    for weights, which, by in (
        ({}, "reward", 1.0),
        ({"first": -0.1}, "reward", -0.1),
        ({"first": 0.0, "second": 2.0}, "reward_1", 2.0),
    ):
        roles, begin = start_of(pipeline, reward=rewards, weights=weights)
        by_role = {role: scores_of(roles, role) for role in ("reward", "reward_1")}
        assert begin is None and roles.heads[which].bias.item() != 0.0
        np.testing.assert_allclose(scores_of(roles, "value"), by * by_role[which], rtol=1e-5)
        other = by_role["reward_1" if which == "reward" else "reward"]
        assert not np.allclose(scores_of(roles, "value"), by * other, rtol=1e-2)


def test_values_start_normalised_where_rewards_are(pipeline: Pipeline, rewards: list[str]) -> None:
    """What the value role gives of whole answers is what `shaped` makes of their rewards. Equal rewards tell no scale:
    zeros."""
    for weight in (1.0, -0.5):
        roles, begin = start_of(pipeline, reward=rewards[0], weights={"reward": weight}, normalise_rewards="running")
        scores = scores_of(roles, "reward")
        config = SimpleNamespace(
            normalise_rewards="running",
            reward_clip=None,
            length_penalty=0.0,
            missing_eos_penalty=0.0,
            overlong_buffer=0,
        )
        truth = shaped(weight * scores, np.ones(3), np.ones(3, bool), config, Moments())
        assert not np.allclose(scores_of(roles, "value"), truth, atol=0.1)
        begin({"reward": scores.mean()}, (weight * scores).std())
        np.testing.assert_allclose(scores_of(roles, "value"), truth, atol=1e-4)
    roles, begin = start_of(pipeline, reward=rewards[0], normalise_rewards="rollout")
    begin({"reward": 1.0}, 1e-9)
    assert not scores_of(roles, "value").any()


def test_values_start_at_zero_where_no_reward_model_trains(pipeline: Pipeline, rewards: list[str]) -> None:
    judge = pipeline.recipe.with_name("length.py")
    judge.write_text("def length(prompts, completions, **columns):\n    return [float(len(c)) for c in completions]\n")
    roles, begin = start_of(pipeline, reward=rewards[0], weights={"reward": 0.0}, judges={"length": f"{judge}:length"})
    assert begin is None and not scores_of(roles, "value").any() and scores_of(roles, "reward").any()


def test_a_warm_up_that_never_ends_is_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=r"value_warmup \(2\) leaves nothing of 2 rollouts to train the policy in"):
        run(pipeline, "ppo", value_warmup=2, max_steps=4)
