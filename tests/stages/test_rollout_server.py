"""Whole stages whose answers a server draws: three rollouts have the rewards of the local sampler, and a death, a
slow answer, a gap and a draw ahead go as they should. It is plain transformers and PEFT (tests/rl/vllm_server.py)."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from align.ground.errors import AlignError, InputError
from align.rl.server import client as over_http
from align.store import Artifact, Store
from tests.conftest import ROOT, write_rows
from tests.rl.vllm_server import Faults, Server
from tests.stages.helpers import history

BASE = ROOT / "data/tiny-base"
JUDGE = """\
def vowels(completions, **columns):
    texts = [c if isinstance(c, str) else c[0]["content"] for c in completions]
    return [sum(c in "aeiou" for c in text) / (1 + len(text)) for text in texts]
"""
ONE_STEP: dict[str, dict[str, int]] = {
    "ppo": {"ppo_epochs": 1},
    "reinforce_pp": {"rollout_epochs": 1},
    **{stage: {"group_size": 2, "rollout_epochs": 1} for stage in ("grpo", "rloo", "online_dpo")},
}
pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def greedy(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the lowest temperature that vLLM has, the middle of what may be drawn is the likeliest token: what the fake
    server takes there."""
    middle = lambda rows, device: torch.full((rows,), 0.5, dtype=torch.float64, device=device)  # noqa: E731
    monkeypatch.setattr("align.sampling.rollout.uniforms", middle)
    monkeypatch.setattr(over_http, "PAUSE", 0.01)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server(BASE)
    yield made
    made.close()


def run(folder: Path, stage: str, name: str, **more: Any) -> tuple[Artifact, Store]:
    folder.joinpath("judge.py").write_text(JUDGE)
    days = ("Monday", "Tuesday", "Wednesday", "Thursday")
    data = write_rows(folder / "prompts.jsonl", [{"prompt": f"Which day follows {day}?"} for day in days])
    settings: dict[str, Any] = {
        "base": BASE,
        "data": data,
        "judges": {"vowels": f"{folder}/judge.py:vowels"},
        "max_steps": 3,
        "rollout_size": 4,
        "batch_size": 4,
        "max_new_tokens": 6,
        "max_length": 96,
        "learning_rate": 1e-3,
        "precision": "fp32",
        "threads": 1,
        "logging_steps": 1,
        "temperature": 0.01,
        "watch_prompts": 1,
        "name": name,
        **ONE_STEP[stage],
    }
    module, store = importlib.import_module(f"align.{stage}"), Store(folder / "store")
    return module.run(module.Config(**settings | more), store), store


@pytest.mark.parametrize("stage", ["ppo", "reinforce_pp"])
def test_rewards_are_those_of_the_local_sampler(stage: str, server: Server, tmp_path: Path) -> None:
    (here, store), (there, _) = (
        run(tmp_path, stage, "here"),
        run(tmp_path, stage, "there", rollouts={"server": server.address}),
    )
    mine, theirs = history(here, store), history(there, store)
    assert [row["reward/mean"] for row in mine] == [row["reward/mean"] for row in theirs] and len(mine) == 3
    assert all(row["sampler_gap/max"] < 1e-3 for row in theirs)
    assert here.digest != there.digest and there.config["rollout_server"]["version"] == "0.0.fake"
    assert "http" not in str(there.config) and len(server.state.adapters()) == 4 and not server.state.loaded
    assert store.read(here, "watched.jsonl") == store.read(there, "watched.jsonl")


@pytest.mark.parametrize("stage", ["grpo", "rloo", "online_dpo"])
def test_groups_are_drawn_with_the_trainers_log_probs(stage: str, server: Server, tmp_path: Path) -> None:
    made, store = run(tmp_path, stage, "there", temperature=1.0, rollouts={"server": server.address})
    rows = history(made, store)
    assert len(rows) == 3 and all(row["sampler_gap/max"] < 1e-4 for row in rows)
    assert min(row["groups_without_variance"] for row in rows) < 1 and not server.state.loaded


def test_a_death_ends_the_run_and_it_goes_on_from_its_checkpoint(server: Server, tmp_path: Path) -> None:
    """The second rollout meets a dead server; with another one at another address the same run goes on, and ends with
    what a run that nobody stopped has."""
    server.state.faults = Faults(dies=5)
    steps = {"checkpoint_steps": 1}
    with pytest.raises(AlignError, match=r"does not answer /v1/completions .* The same command goes on from") as told:
        run(tmp_path, "ppo", "a", rollouts={"server": server.address}, **steps)
    assert "\n" not in str(told.value)
    (tmp_path / "b").mkdir()
    other, straight = Server(BASE), Server(BASE)
    try:
        stopped, store = run(tmp_path, "ppo", "a", rollouts={"server": other.address}, **steps)

        whole, _ = run(tmp_path / "b", "ppo", "a", rollouts={"server": straight.address}, **steps)
        assert other.state.completions < straight.state.completions
        assert (
            history(stopped, store)[-1]["reward/mean"] == history(whole, Store(tmp_path / "b/store"))[-1]["reward/mean"]
        )
        assert stopped.digest == whole.digest
    finally:
        other.close()
        straight.close()


def test_a_slow_answer_is_asked_for_again(tmp_path: Path) -> None:
    server = Server(BASE, Faults(slow=1, seconds=30.0))
    try:
        run(tmp_path, "ppo", "slow", max_steps=1, rollouts={"server": server.address, "timeout": 8.0})
        assert server.state.completions == 4 + 1 + 2  # and the watched prompt, twice
    finally:
        server.close()


def test_a_gap_is_reported_and_ends_the_run(server: Server, tmp_path: Path) -> None:
    """A gap below the limit is a figure, one above it the end; with importance set, tokens weigh less."""
    server.state.faults = Faults(gap=0.1)
    more = {"max_steps": 1, "importance": "token_truncate", "rollouts": {"server": server.address}}
    made, store = run(tmp_path, "ppo", "near", **more)
    (row,) = history(made, store)
    assert row["sampler_gap/mean"] == pytest.approx(0.1, abs=1e-3)
    assert row["importance/mean"] == pytest.approx(0.9048, abs=1e-3)  # exp(-0.1)
    server.state.faults = Faults(gap=0.5)
    with pytest.raises(AlignError, match=r"rollout 1: .* 0\.5 nats a token .*processed_logprobs"):
        run(tmp_path, "ppo", "far", seed=1, **more)
    assert not server.state.loaded


def test_the_next_rollout_is_drawn_while_this_one_is_trained_on(server: Server, tmp_path: Path) -> None:
    """The second rollout's adapter is the first one's, and its gap what a step taught; a stop changes nothing."""
    more = {
        "importance": "token_truncate",
        "rollouts": {"server": server.address, "ahead": True},
        "learning_rate": 0.01,
    }
    made, store = run(tmp_path, "ppo", "ahead", temperature=1.0, **more)
    rows = history(made, store)
    assert "off_policy_gap/mean" not in rows[0] and all(row["off_policy_gap/mean"] > 1e-3 for row in rows[1:])
    assert rows[0]["sampler_gap/mean"] < 1e-4
    names = [
        body["model"] for path, body in server.state.asked if path == "/v1/completions" and body["temperature"] > 0
    ]
    assert len(names) == 12 and len(set(names[:8])) == 1 and names[8] not in names[:8]
    assert not server.state.loaded and threading.active_count() < 40


def test_without_importance_nothing_is_drawn_ahead(tmp_path: Path) -> None:
    with pytest.raises(Exception, match=r"rollouts\.ahead trains on answers of the policy before"):
        run(tmp_path, "ppo", "x", rollouts={"server": "http://127.0.0.1:9", "ahead": True})


def test_a_server_that_is_not_there_is_told_before_the_base_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("align.models.base.load_base", lambda *_, **__: pytest.fail("the base was loaded"))
    with pytest.raises(
        InputError, match=r"rollouts.server: .* does not answer /v1/models \(Connection refused; one try"
    ):
        run(tmp_path, "ppo", "x", rollouts={"server": "http://127.0.0.1:9", "retries": 0})
