"""Online DPO beside TRL's `OnlineDPOTrainer.training_step` on the same samples and scores: value and gradient, in fp64,
on packed rows against padded ones."""

from __future__ import annotations

import os
from collections import defaultdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
from trl.experimental.online_dpo import OnlineDPOTrainer

from align import online_dpo
from align.data.examples import Example
from align.losses import policy
from align.packed.pack import pack
from align.rl.advantages import Rollout, best_and_worst
from align.rl.groups import attach
from align.rl.shaping import Moments, shaped
from align.sampling.rollout import as_example
from align.training.steps import make_step
from tests.losses.tables import Padded, Tables, coarse, trainer

EOS = 2
PROMPTS = [[5, 9, 11], [7, 4], [12, 3, 8, 6]]
ANSWERS = [[[9, 6, EOS], [8, 3, 7, 5]], [[4, EOS], [3, 3, EOS]], [[10, 11, 12, 13], [14, EOS]]]
REWARDS = [0.3, 0.9, 1.2, -0.4, 0.8, 0.1]
"""The second answer of the first prompt is the better one, until it is charged for its missing end."""


def config(**settings: Any) -> online_dpo.Config:
    return online_dpo.Config(base="none", data="none", judges={"a": "b"}, **settings)


def flat() -> list[list[int]]:
    return [answer for several in ANSWERS for answer in several]


def samples(reference: Tables, settings: online_dpo.Config) -> list[Example]:
    """With the columns that the stage attaches."""
    ended = np.array([answer[-1] == EOS for answer in flat()])
    lengths = np.array(list(map(len, flat())))
    scores = shaped(np.array(REWARDS), lengths, ended, settings, Moments())
    examples = [as_example(prompt, several) for prompt, several in zip(PROMPTS, ANSWERS, strict=True)]
    ref = []
    for example in examples:
        batch = pack([example])
        found = coarse(reference.logprobs("reference", batch)).detach()
        ref += [v[m].numpy() for v, m in zip(batch.split(found), batch.split(batch.loss_mask), strict=True)]
    rollout = Rollout(scores, {"old_logprobs": ref, "ref_logprobs": ref}, 2, 0.0)
    return attach(examples, {"old_logprobs": ref, **online_dpo.advantages(rollout, settings).columns}, 2)


def ours(rows: int = 1, **settings: Any) -> tuple[Tensor, Tensor]:
    roles: Any = Tables()
    given = config(**settings)
    examples = samples(Tables(35), given)
    counts = make_step(examples, 4096).counts
    parts = [online_dpo.loss(roles, pack(examples[i::rows]), given).scalar(counts) for i in range(rows)]
    total = torch.stack(parts).sum()
    return total.detach(), roles.gradients(total)


def theirs(**settings: Any) -> tuple[Tensor, Tensor]:
    given = config(**settings)
    roles, seen = Tables(), []
    ids = [several[i] for i in range(2) for several in ANSWERS]  # first answers, then second ones
    long, most = max(map(len, ids)), max(map(len, PROMPTS))
    drawn = (
        torch.tensor([[0] * (most - len(p)) + p for p in 2 * PROMPTS]),
        torch.tensor([[0] * (most - len(p)) + [1] * len(p) for p in 2 * PROMPTS]),
        torch.tensor([answer + [0] * (long - len(answer)) for answer in ids]),
        torch.tensor([[1] * len(answer) + [0] * (long - len(answer)) for answer in ids]),
        None,
    )
    fake = trainer(
        args={
            "use_vllm": False,
            "missing_eos_penalty": given.missing_eos_penalty,
            "loss_type": given.loss,
            "torch_empty_cache_steps": None,
            "optim": "adamw_torch",
            "n_gpu": 1,
            "gradient_accumulation_steps": 1,
        },
        _generate=lambda *_: drawn,
        eos_token_ids=[EOS],
        ref_model=Reference(Tables(35)),
        model=Padded(roles),
        processing_class=SimpleNamespace(batch_decode=lambda *_, **__: ["x"] * len(ids)),
        _calculate_rewards_from_functions=lambda **_: torch.tensor(REWARDS[0::2] + REWARDS[1::2], dtype=torch.float64),
        max_length=512,
        beta=given.beta,
        stats=defaultdict(list),
        reward_funcs=[],
        state=SimpleNamespace(global_step=0),
    )
    fake._forward = partial(OnlineDPOTrainer._forward, fake)
    fake.accelerator.backward = lambda loss, **_: seen.append(loss)
    OnlineDPOTrainer.training_step(fake, fake.model, {"prompt": ["x"] * len(PROMPTS)})
    return seen[0].detach(), roles.gradients(seen[0])


class Reference(Padded):
    """Log-probs that round as in fp32."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **_: object) -> Any:
        logits = super().forward(input_ids, attention_mask).logits.log_softmax(-1)
        return SimpleNamespace(logits=Rounded(logits.detach()))


class Rounded(Tensor):
    """Log-probs that `log_softmax` leaves as they are, but for rounding."""

    def log_softmax(self, dim: int) -> Tensor:  # type: ignore[override]
        return coarse(self.as_subclass(Tensor))


def close(one: Tensor, other: Tensor) -> bool:
    return bool((one - other).abs().max() <= 1e-6 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("settings", [{}, {"beta": 0.5, "missing_eos_penalty": 0.0}, {"loss": "ipo", "beta": 0.3}])
def test_value_and_gradient(settings: dict[str, Any], rows: int) -> None:
    """In one micro-batch and in three; the price of a missing end turns a pair round."""
    (value, gradient), (right, slope) = ours(rows, **settings), theirs(**settings)
    assert close(value, right) and close(gradient, slope) and slope.abs().max() > 1e-4


def test_negative_controls() -> None:
    """Another beta, another loss, and ends without a price are seen."""
    value, gradient = ours()
    for other in (theirs(beta=0.11), theirs(loss="ipo"), theirs(missing_eos_penalty=0.0)):
        assert not close(value, other[0]) and not close(gradient, other[1])


def test_pairs_by_hand() -> None:
    """Of four the best and the worst; without a score neither; of equal scores, and of one score alone, no pair, which
    weighs nothing in value and gradient."""
    nan = float("nan")
    scores = np.array([1.0, 3.0, nan, 2.0, 5.0, 5.0, 5.0, nan, nan, nan, nan, 4.0])
    sides = best_and_worst(scores, 4)
    assert sides.tolist() == [-1, 1, 0, 0, *[0] * 8]
    ratios = torch.linspace(-1, 1, 12, dtype=torch.float64).requires_grad_()
    found = policy.online_dpo(ratios, torch.tensor(sides), 4, 0.7, "sigmoid")
    gap = (ratios[1] - ratios[0]).item()
    scalar = found.scalar({"sequences": 12})
    assert scalar.item() == pytest.approx(np.log1p(np.exp(-0.7 * gap)) / 3)
    (slope,) = torch.autograd.grad(scalar, ratios)
    assert slope.nonzero()[:, 0].tolist() == [0, 1]
