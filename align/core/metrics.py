"""Measures: a loss over held-out examples, and the statistics of preference pairs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from align.core.intervals import share_interval
from align.core.pack import Batch, microbatches, pack
from align.core.roles import Roles
from align.data.examples import Example


def batches(examples: Sequence[Example], tokens_per_microbatch: int, device: torch.device) -> Iterator[tuple[list[int], Batch]]:
    """Every example once, packed: (indices into `examples`, batch)."""
    for indices in microbatches(examples, tokens_per_microbatch):
        yield indices, pack([examples[i] for i in indices]).to(device)


@torch.no_grad()
def sequence_logprobs(
    roles: Roles, role: str, examples: Sequence[Example], budget: int, temperature: float = 1.0
) -> list[list[np.ndarray]]:
    """Per example and sequence: the log-prob of each of its branch's positions (0 where the target does not count)."""
    out: list[list[np.ndarray]] = [[] for _ in examples]
    for indices, batch in batches(examples, budget, roles.base.device):
        pieces = iter(batch.split(roles.logprobs(role, batch, temperature).float().cpu()))
        for i in indices:
            out[i] = [next(pieces).numpy() for _ in examples[i].sequences]
    return out


def flat_logprobs(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> np.ndarray:
    """`sequence_logprobs`, one after the other: fp32."""
    rows = [row for several in sequence_logprobs(roles, role, examples, budget) for row in several]
    return np.concatenate([np.zeros(0), *rows]).astype(np.float32)


def with_column(examples: Sequence[Example], name: str, flat: bytes) -> list[Example]:
    """The same examples with a column from what `flat_logprobs` gave."""
    values, out, at = np.frombuffer(flat, dtype=np.float32), [], 0
    for example in examples:
        rows = []
        for sequence in example.sequences:
            rows.append(values[at : (at := at + len(sequence) - example.prefix)])
        out.append(replace(example, columns={**example.columns, name: tuple(rows)}))
    assert at == len(values)
    return out


@torch.no_grad()
def scores(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> np.ndarray:
    """Reward scores of every sequence, in the order of the examples and within them."""
    out: list[list[float]] = [[] for _ in examples]
    for indices, batch in batches(examples, budget, roles.base.device):
        values = iter(roles.scores(role, batch).float().cpu().tolist())
        for i in indices:
            out[i] = [next(values) for _ in examples[i].sequences]
    return np.array([s for row in out for s in row])


def held_out_loss(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> dict[str, float]:
    """Mean negative log-likelihood per token that counts, in nats, and its exponential; nothing where nothing is held out."""
    if not examples:
        return {}
    total = sum(float(p.sum()) for row in sequence_logprobs(roles, role, examples, budget) for p in row)
    tokens = sum(sum(s) for e in examples for s in e.supervised)
    loss = -total / tokens
    return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 50.0))}


def pair_statistics(
    pair_scores: Sequence[float] | np.ndarray, lengths: np.ndarray, prompts: Sequence[Hashable], longer: bool | None
) -> dict[str, Any]:
    """How well scores order preference pairs.

    Args:
        pair_scores: (S,), chosen 2i and rejected 2i+1.
        lengths: (S,), tokens of each completion.
        prompts: (S / 2,), what each pair answers; pairs of one prompt are taken together in intervals.
        longer: whether the rule that looks at nothing but length takes the longer completion, as `prefers_longer` finds on other pairs;
            None where there is no such rule.
    Returns: accuracy (ties count half) with its 95 % interval, the accuracy of the length rule, and the expected calibration error of
        sigmoid(gap) over ten equal bins (Guo et al. 2017, arXiv 1706.04599, eq. 3); nothing where there are no pairs.
    """
    pair_scores = np.asarray(pair_scores)
    if not len(pair_scores):
        return {}
    gaps = pair_scores[0::2] - pair_scores[1::2]
    right = (np.sign(gaps) + 1) / 2
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    error = 0.0
    which = np.minimum((confidence - 0.5) * 20, 9).astype(int)
    for b in range(10):
        inside = which == b
        if inside.any():
            error += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    of = [places[prompt] for prompt in prompts]
    sizes = np.bincount(of)
    rule = {} if longer is None else {"eval/length_baseline_accuracy": float(0.5 + (1 if longer else -1) * _longer(lengths).mean() / 2)}
    return {
        "eval/accuracy": float(right.mean()),
        "eval/accuracy_ci95": list(share_interval(np.bincount(of, right) / sizes, sizes)),
        **rule,
        "eval/calibration_error": float(error),
        "eval/pairs": len(gaps),
        "eval/prompts": len(sizes),
    }


def prefers_longer(lengths: np.ndarray) -> bool:
    """Whether the longer completion is the chosen one as often as not. lengths: (S,), chosen 2i and rejected 2i+1."""
    return bool(_longer(lengths).sum() >= 0)


def _longer(lengths: np.ndarray) -> np.ndarray:
    """(S / 2,): 1 where the chosen completion is the longer one, -1 where the rejected one is, else 0."""
    return np.sign(lengths[0::2] - lengths[1::2]).astype(float)


def completion_lengths(examples: Sequence[Example]) -> np.ndarray:
    """(S,): tokens that count in each sequence."""
    return np.array([sum(s) for e in examples for s in e.supervised])


@torch.no_grad()
def probe_logits(roles: Roles, role: str, examples: Sequence[Example]) -> torch.Tensor:
    """Logits (N, V) of a role at every position of a few examples whose target counts. Small inputs only: V is not cut."""
    batch = pack(list(examples)).to(roles.base.device)
    with roles.use(role):
        return roles.head(roles.hidden(batch, batch.rows))


def compare_logits(before: torch.Tensor, after: torch.Tensor) -> dict[str, Any]:
    """Largest difference, mean KL(before || after) in nats per token, and how often the likeliest token agrees."""
    p, q = torch.log_softmax(before.double(), -1), torch.log_softmax(after.double(), -1)
    return {
        "logit_max_abs_diff": (before - after).abs().max().item(),
        "kl": (p.exp() * (p - q)).sum(-1).mean().clamp(min=0.0).item(),  # NaN stays NaN
        "greedy_agreement": (before.argmax(-1) == after.argmax(-1)).double().mean().item(),
    }
