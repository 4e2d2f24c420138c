"""GRPO's losses beside those of TRL's own trainers, `GRPOTrainer` and `GMPOTrainer`: value and gradient of a step, in
fp64, of answers of several lengths; rollout, advantages and loss are the stage's, on packed rows against padded
ones."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOTrainer
from trl.experimental.gmpo import GMPOTrainer

from align import grpo
from align.data.examples import Example
from align.losses import grpo as losses
from align.losses import policy
from align.packed.pack import Batch, pack
from align.rl.advantages import Rollout
from align.rl.groups import attach
from align.rl.measured import measured
from align.sampling.rollout import as_example
from align.training.steps import make_step
from tests.losses.tables import Tables, table, trainer
from tests.models.models import settings

SCORES = np.array([1.0, 0.0, 0.25, 2.0, -1.0, 0.5, 0.0, 0.0, 3.0])
GROUP, LONGEST = 3, 9
COMMON: dict[str, Any] = dict(
    reward="none", group_size=GROUP, rollout_size=18, batch_size=9, max_new_tokens=LONGEST, kl_coef=0.3
)
CLIPPED = {"epsilon_low": 0.2, "epsilon_high": 0.28}
LIMITED = {"epsilon_low": 0.2, "epsilon_high": 1.3}
WHOLE = {"importance_sampling_level": "sequence"}
SAPO: dict[str, Any] = {"sapo_temperature_pos": 2.0, "sapo_temperature_neg": 3.0}
VESPO: dict[str, Any] = {"vespo_k_pos": 1.5, "vespo_lambda_pos": 2.5, "vespo_k_neg": 1.0, "vespo_lambda_neg": 0.5}
CASES: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    # ours, theirs, and what makes it another loss
    "grpo": ({"clip_high": 0.28}, {"loss_type": "grpo", **CLIPPED}, {"clip_high": 0.5}),
    "dapo": ({"clip_high": 0.28, "normalise": "token"}, {"loss_type": "dapo", **CLIPPED}, {"normalise": "sum"}),
    "dr_grpo": ({"clip_high": 0.28, "normalise": "constant"}, {"loss_type": "dr_grpo", **CLIPPED}, {"clip": 0.5}),
    "gspo": ({"clip_high": 0.28, "ratio": "sequence"}, {"loss_type": "grpo", **CLIPPED, **WHOLE}, {"ratio": "token"}),
    "luspo": (
        {"clip_high": 0.28, "ratio": "sequence", "normalise": "sum"},
        {"loss_type": "luspo", **CLIPPED, **WHOLE},
        {"normalise": "sequence"},
    ),
    "two-sided": (
        {"clip_high": 0.1, "ratio_max": 1.15},
        {"loss_type": "grpo", "epsilon_low": 0.2, "epsilon_high": 0.1, "delta": 1.15},
        {"ratio_max": None},
    ),
    "cispo": (
        {"loss": "cispo", "clip_high": 0.3, "normalise": "token"},
        {"loss_type": "cispo", **LIMITED},
        {"clip_high": 0.5},
    ),
    "sapo": ({"loss": "sapo", **SAPO}, {"loss_type": "sapo", **SAPO}, {"sapo_temperature_neg": 2.0}),
    "sapo of answers": (
        {"loss": "sapo", "ratio": "sequence", **SAPO},
        {"loss_type": "sapo", **SAPO, **WHOLE},
        {"ratio": "token"},
    ),
    "vespo": (
        {"loss": "vespo", "normalise": "token", **VESPO},
        {"loss_type": "vespo", **VESPO},
        {"vespo_lambda_neg": 1.0},
    ),
    "gmpo": (
        {"loss": "gmpo", "clip": 0.2, "clip_high": 0.28},
        {"loss_type": "gmpo", **CLIPPED},
        {"loss": "clip"},
    ),
    "KL by the ratio": (
        {"clip_high": 0.28, "kl_by_ratio": True},
        {"loss_type": "grpo", **CLIPPED, "use_bias_correction_kl": True},
        {"kl_by_ratio": False},
    ),
    "vespo, KL by the ratio": (
        {"loss": "vespo", "normalise": "token", "kl_by_ratio": True, **VESPO},
        {"loss_type": "vespo", "use_bias_correction_kl": True, **VESPO},
        {"vespo_k_pos": 2.0},
    ),
    "open tokens": (
        {"clip_high": 0.28, "normalise": "token", "top_entropy_quantile": 0.4},
        {"loss_type": "dapo", **CLIPPED, "top_entropy_quantile": 0.4},
        {"top_entropy_quantile": 0.5},
    ),
    "cispo of open tokens": (
        {"loss": "cispo", "clip_high": 0.3, "normalise": "token", "top_entropy_quantile": 0.4},
        {"loss_type": "cispo", **LIMITED, "top_entropy_quantile": 0.4},
        {"top_entropy_quantile": 1.0},
    ),
    "open tokens of answers": (
        {"clip_high": 0.28, "ratio": "sequence", "top_entropy_quantile": 0.4},
        {"loss_type": "grpo", **CLIPPED, **WHOLE, "top_entropy_quantile": 0.4},
        {"top_entropy_quantile": 1.0},
    ),
}


def groups() -> list[Example]:
    """Three groups of three answers of different lengths."""
    lengths, draw = ((3, 6, 1), (2, 2, 5), (4, 1, 8)), np.random.default_rng(0)
    return [
        as_example(draw.integers(3, 97, 4 + i).tolist(), [draw.integers(3, 97, n).tolist() for n in several])
        for i, several in enumerate(lengths)
    ]


class Moved(Tables):
    """The policy that drew, a reference, and how far the policy has moved since."""

    def __init__(self, by: float = 0.0) -> None:
        super().__init__()
        self.tokens = (self.tokens.detach() + by * table(7).detach()).requires_grad_()
        self.reference = Tables(35)

    def logprobs(self, role: str, batch: Batch, temperature: float = 1.0) -> Tensor:
        return (self.reference if role == "reference" else super()).logprobs(role, batch, temperature)


def rollout(config: Any) -> Rollout:
    return Rollout(SCORES, measured(Moved(), groups(), GROUP, config), GROUP, config.kl_coef)  # type: ignore[arg-type]


def ours(changes: dict[str, Any], rows: int = 1) -> tuple[Tensor, Tensor]:
    """The loss of one optimizer step in so many micro-batches, and its gradient."""
    config: Any = settings(grpo.Config, **COMMON, **changes)
    roles: Any = Moved(0.8)
    drawn = rollout(config)
    columns = {"old_logprobs": drawn.columns["old_logprobs"], **grpo.advantages(drawn, config).columns}
    examples = attach(groups(), columns, GROUP)
    counts = make_step(examples, 4096).counts
    parts = [grpo.loss(roles, pack(examples[i::rows]), config, config.kl_coef).scalar(counts) for i in range(rows)]
    total = torch.stack(parts).sum()
    return total.detach(), roles.gradients(total)


def their_logprobs(roles: Tables) -> Tensor:
    """(answers, longest), padded with zeros."""
    rows = []
    for example in groups():
        for ids, counts in zip(example.sequences, example.supervised, strict=True):
            row = torch.tensor(ids)
            logits = roles.tokens[row[:-1]] + roles.places[torch.arange(len(row) - 1)]
            picked = logits.log_softmax(-1).gather(-1, row[1:, None])[:, 0]
            rows.append(picked[torch.tensor(counts[1:])])
    return pad_sequence(rows, batch_first=True)


def theirs(changes: dict[str, Any]) -> tuple[Tensor, Tensor]:
    given: dict[str, Any] = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1, **changes}
    of_trainer = ("epsilon_low", "epsilon_high", "loss_type", "importance_sampling_level", "top_entropy_quantile")
    defaults = {"importance_sampling_level": "token", "top_entropy_quantile": 1.0}
    own = {**defaults, **{key: given.pop(key) for key in of_trainer if key in given}}
    config: Any = settings(grpo.Config, **COMMON)
    roles, drawn = Moved(0.8), rollout(config)
    columns = {name: pad_sequence([*map(torch.from_numpy, values)], batch_first=True).double()
               for name, values in drawn.columns.items()}  # fmt: skip
    advantages = [float(np.float32(a[0])) for a in grpo.advantages(drawn, config).columns["advantages"]]
    mask = pad_sequence([torch.ones(len(v)) for v in drawn.columns["entropy"]], batch_first=True).double()
    fake = trainer(
        args=given,
        beta=config.kl_coef,
        off_policy_mask_threshold=None,
        max_completion_length=LONGEST,
        current_gradient_accumulation_steps=1,
        use_vllm=False,
        _entropy_bonus_enabled=False,
        model=SimpleNamespace(training=True),
        get_gamma_weights=GRPOTrainer.get_gamma_weights,
        # entropies are those of the rollout, where TRL has them of the step, which is the rollout's first as a rule
        _get_per_token_logps_and_entropies=lambda *_, **__: (their_logprobs(roles), columns["entropy"], None),
        **own,
    )
    fake.get_high_entropy_mask = partial(GRPOTrainer.get_high_entropy_mask, fake)
    fake.accelerator.reduce = lambda x, reduction: x
    fake.accelerator.pad_across_processes = lambda x, dim, pad_index: x
    fake.accelerator.num_processes = 1
    nothing = torch.zeros(len(mask), 0, dtype=torch.long)
    inputs = {"prompt_ids": nothing, "prompt_mask": nothing, "completion_ids": mask.long(), "completion_mask": mask}
    inputs |= {"old_per_token_logps": columns["old_logprobs"], "ref_per_token_logps": columns["ref_logprobs"]}
    inputs |= {"advantages": torch.tensor(advantages, dtype=torch.float64), "num_items_in_batch": mask.sum()}
    method = GMPOTrainer if own["loss_type"] == "gmpo" else GRPOTrainer
    total = method._compute_loss(fake, None, inputs)
    return total.detach(), roles.gradients(total)


@pytest.mark.parametrize("case", CASES)
def test_losses_equal_trl(case: str) -> None:
    """In one packed row and in three; another weight is another loss."""
    mine, their, other = CASES[case]
    value, gradient = theirs(their)
    for rows in (1, 3):
        found, slope = ours(mine, rows)
        assert found.item() == pytest.approx(value.item(), rel=1e-9, abs=1e-12)
        torch.testing.assert_close(slope, gradient, rtol=1e-7, atol=1e-11)
    _, wrong = ours({**mine, **other})
    assert (wrong - gradient).norm() / gradient.norm() > 1e-3


# ---- by hand ---------------------------------------------------------------------------------------------------------


def actions(new: Tensor, old: Tensor, advantages: Tensor, batch: Batch, **changes: Any) -> losses.Actions:
    told: dict[str, Any] = dict(
        clip_low=0.2,
        clip_high=0.28,
        ratio_max=2.0,
        sapo_temperature=(1.0, 1.05),
        vespo_k=(2.0, 3.0),
        vespo_lambda=(3.0, 2.0),
    )
    return losses.Actions(new, old, advantages, batch, **{**told, **changes})


def drawn(scale: float = 0.4) -> tuple[Tensor, Tensor, Tensor, Batch]:
    """New and old log-probs and advantages of the three groups in one packed row."""
    batch, generator = pack(groups()), torch.Generator().manual_seed(1)
    old = -torch.randn(len(batch.targets), generator=generator, dtype=torch.float64).abs()
    new = old + scale * torch.randn(len(old), generator=generator, dtype=torch.float64)
    gains = torch.randn(len(batch.ends), generator=generator, dtype=torch.float64)[batch.segment_ids]
    new, old, gains = (torch.where(batch.loss_mask, values, 0.0) for values in (new, old, gains))
    return new, old, gains, batch


KINDS: dict[str, losses.PolicyLoss] = {name: getattr(losses, name) for name in grpo.READS}


def slope_of(kind: str, new: Tensor, *rest: Any, **changes: Any) -> Tensor:
    """The gradient of the sum over tokens."""
    new = new.clone().requires_grad_()
    return torch.autograd.grad(KINDS[kind](actions(new, *rest, **changes)).sum(), new)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_all_have_one_gradient_where_nothing_has_moved(kind: str) -> None:
    """That of -A log p; where the policy has moved, others (negative control)."""
    new, old, gains, batch = drawn()
    torch.testing.assert_close(slope_of(kind, old, old, gains, batch), -gains)
    assert (slope_of(kind, new, old, gains, batch) + gains).abs().max() > 0.1


def test_gradients_by_hand() -> None:
    """An answer of two tokens whose probabilities became 2 and 3/4 times what they were, advantage 1 and -1: the weight
    of each token's score function."""
    batch = pack([as_example([5, 6], [[7, 8]])])
    log_ratio, rows = torch.zeros(len(batch.targets), dtype=torch.float64), batch.rows
    log_ratio[rows] = torch.tensor([2.0, 0.75], dtype=torch.float64).log()
    whole = 1.5  # the product
    for gain, k, decay, t in ((1.0, 2.0, 3.0, 1.0), (-1.0, 3.0, 2.0, 1.05)):
        gains = torch.where(batch.loss_mask, gain, 0.0).double()

        def weights(kind: str, gains: Tensor = gains, **changes: Any) -> list[float]:
            found = slope_of(kind, log_ratio, torch.zeros_like(log_ratio), gains, batch, **changes)
            return (-found / gains)[rows].tolist()

        # with A > 0 the first is clipped above, with A < 0 the second below, and the first at most ratio_max
        assert weights("clip") == pytest.approx([0.0, 0.75] if gain > 0 else [2.0, 0.0])
        assert weights("clip", ratio_max=1.9) == pytest.approx([0.0, 0.75] if gain > 0 else [0.0, 0.0])
        assert weights("cispo") == pytest.approx([1.28, 0.75])
        gates = [1 / (1 + np.exp(-t * (r - 1))) for r in (2.0, 0.75)]
        by_hand = [4 * g * (1 - g) * r for g, r in zip(gates, (2.0, 0.75), strict=True)]
        assert weights("sapo") == pytest.approx(by_hand, rel=1e-6)
        assert weights("vespo") == pytest.approx([whole**k * np.exp(decay * (1 - whole))] * 2, rel=1e-6)
        clipped = (0.28, np.log(0.75)) if gain > 0 else (np.log(2), -0.2)
        mean = np.exp(sum(clipped) / 2)
        assert weights("gmpo") == pytest.approx([0.0, mean] if gain > 0 else [mean, 0.0])


def test_gradients_in_fp64() -> None:
    """By finite differences; cispo and vespo, whose weights are held fixed, have gradients by hand above."""
    new, old, gains, batch = drawn()
    for kind in ("clip", "sapo", "gmpo"):
        for whole in (False, True):
            terms = lambda x, k=kind, w=whole: KINDS[k](actions(x, old, gains, batch, of_sequences=w)).sum()  # noqa: E731
            assert torch.autograd.gradcheck(terms, (new.clone().requires_grad_(),), atol=1e-7), kind


def test_weights_of_answers_far_away_are_finite() -> None:
    """Hundreds of nats away vespo's weight is 0, as TRL's is, and nothing is NaN."""
    _, old, gains, batch = drawn()
    for by in (200.0, -200.0):
        far = torch.where(batch.loss_mask, old + by, 0.0)
        slope = slope_of("vespo", far, old, gains, batch)
        assert torch.isfinite(slope).all() and slope.abs().max() < 1e-6


def test_what_clips_counts_what_it_cut() -> None:
    """Of ratios, of ratios above alone, and of log ratios; sapo and vespo cut nothing."""
    new, old, gains, batch = drawn()
    found = {
        k: losses.summed(actions(new, old, gains, batch), f, "sequence", LONGEST).metrics for k, f in KINDS.items()
    }
    gaps = (new - old)[batch.rows]
    above, below = gaps.exp() > 1.28, gaps.exp() < 0.8
    by_hand = {"clip": above | below, "cispo": above, "gmpo": (gaps > 0.28) | (gaps < -0.2)}
    counted = {k: int(m["clip_fraction"][0]) for k, m in found.items() if "clip_fraction" in m}
    assert counted == {k: int(beyond.sum()) for k, beyond in by_hand.items()} and len({*counted.values()}) == 3


def test_kl_by_the_ratio_is_kl_with_its_gradient() -> None:
    """Over all tokens of a distribution, each as often as the old policy draws it, though the policy has moved; without
    the ratio neither value nor gradient are (negative control)."""
    generator = torch.Generator().manual_seed(0)
    logits, old, ref = (torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(3))
    batch = pack([as_example([5], [[6 + i] for i in range(5)])])
    logits.requires_grad_()
    new = logits.log_softmax(0)
    truth = (new.exp() * (new - ref)).sum()

    def mean(weights: Tensor) -> Tensor:
        def at(values: Tensor) -> Tensor:
            return torch.zeros(len(batch.targets), dtype=torch.float64).index_copy(0, batch.rows, values)

        return policy.kl_penalty(at(new), at(ref), batch, 1.0, "token", 1, at(old.exp() * weights)).terms["kl"][0]

    weighted, plain = mean((new - old).exp()), mean(torch.ones_like(old))

    def slope(value: Tensor) -> Tensor:
        return torch.autograd.grad(value, logits, retain_graph=True)[0]

    assert weighted.item() == pytest.approx(truth.item())
    torch.testing.assert_close(slope(weighted), slope(truth))
    assert (plain - truth).abs() > 1e-2 and (slope(plain) - slope(truth)).abs().max() > 1e-2
