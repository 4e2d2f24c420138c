"""The reward head's bias: the parent's own answers score 0 on average."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align import measures
from align.sampling.rollout import Sampler, as_example
from align.stage import on_base
from align.stage.question import prepare
from align.stage.workbench import Workbench
from tests.conftest import Pipeline
from tests.stages.helpers import run, settings


def test_the_parents_answers_score_zero(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mean score of the very samples that the bias was set from; without centring it is something else."""
    drawn: list[Any] = []
    roles_used: list[str] = []
    original = Sampler.__call__

    def sample(self: Sampler, prompts: Any, **kwargs: Any) -> Any:
        answers = original(self, prompts, **kwargs)
        roles_used.append(self.role)
        drawn.extend(as_example(p, [x.ids for x in a]) for p, a in zip(prompts, answers, strict=True))
        assert kwargs == {"n": 1, "max_new_tokens": 8, "temperature": 1.0}
        return answers

    monkeypatch.setattr(Sampler, "__call__", sample)
    made = run(pipeline, "reward", centre_samples=16, learning_rate=0.01, head_learning_rate=0.5, name="centred")
    plain = run(pipeline, "reward", centre_samples=0, learning_rate=0.01, head_learning_rate=0.5, name="plain")
    assert roles_used == ["reference"] and len(drawn) == 16
    means = []
    for artifact in (made, plain):
        bench = Workbench(prepare(_ppo(), settings(pipeline, "ppo", reward=artifact.digest), pipeline.store))
        roles = bench.load_base()
        on_base.add_role(bench, roles, "reward", pipeline.store.folder(artifact))
        scores = measures.passes.scores(roles, "reward", drawn, 4096)
        assert scores.std() > 1e-2
        means.append(scores.mean())
        assert (roles.heads["reward"].bias.item() == 0.0) == (artifact is plain)
        # The bias moves every score alike: pairs are ordered as before.
        assert torch.is_tensor(roles.heads["reward"].bias)
    assert means[0] == pytest.approx(0.0, abs=1e-5) and abs(means[1]) > 1e-2
    assert made.metrics["eval/accuracy"] == plain.metrics["eval/accuracy"]


def _ppo() -> Any:
    from align import ppo

    return ppo.STAGE
