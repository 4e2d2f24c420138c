"""Statistics: a loss over held-out examples, and how well scores order preference pairs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence

import numpy as np

from align.data.examples import Example
from align.ground.json import Json
from align.measures.intervals import share_interval
from align.measures.passes import sequence_logprobs
from align.models.roles import Roles


def held_out_loss(roles: Roles, role: str, examples: Sequence[Example], budget: int) -> dict[str, float]:
    """Mean negative log-likelihood per token that counts, in nats, and its exponential; nothing where nothing is held
    out."""
    if not examples:
        return {}
    total = sum(float(p.sum()) for row in sequence_logprobs(roles, role, examples, budget) for p in row)
    tokens = sum(sum(s) for e in examples for s in e.supervised)
    loss = -total / tokens
    return {"eval/loss": loss, "eval/perplexity": math.exp(min(loss, 50.0))}


def pair_statistics(
    pair_scores: Sequence[float] | np.ndarray, lengths: np.ndarray, prompts: Sequence[Hashable], longer: bool | None
) -> Json:
    """How well scores order preference pairs.

    Args:
        pair_scores: (S,), chosen 2i and rejected 2i+1.
        lengths: (S,), tokens of each completion.
        prompts: (S / 2,), what each pair answers; pairs of one prompt are taken together in intervals.
        longer: whether the rule that looks at nothing but length takes the longer completion, as `prefers_longer` finds
            on other pairs; None where there is no such rule.
    Returns: accuracy (ties count half) with its 95 % interval, the accuracy of the length rule, and the expected
        calibration error of sigmoid(gap) over ten equal bins (Guo et al. 2017, arXiv 1706.04599, eq. 3); nothing where
        there are no pairs.
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
    rule = {}
    if longer is not None:
        sign = 1 if longer else -1
        rule = {"eval/length_baseline_accuracy": float(0.5 + sign * _longer(lengths).mean() / 2)}
    return {
        "eval/accuracy": float(right.mean()),
        "eval/accuracy_ci95": list(share_interval(np.bincount(of, right) / sizes, sizes)),
        **rule,
        "eval/calibration_error": float(error),
        "eval/pairs": len(gaps),
        "eval/prompts": len(sizes),
    }


def step_statistics(scores: np.ndarray, labels: Sequence[Sequence[bool]], prompts: Sequence[Hashable]) -> Json:
    """How well scores tell right steps from wrong ones.

    Args:
        scores: (N,), of each step, one answer after the other: above 0 it is called right.
        labels: of each answer, whether each step is right.
        prompts: what each answer answers; those to one prompt are taken together in intervals.
    Returns: the mean loss, the accuracy (a score of 0 counts half) with its 95 % interval over prompts, and what the
        commoner label alone would reach; nothing where there are no steps.
    """
    right = np.array([label for each in labels for label in each], dtype=float)
    if not len(right):
        return {}
    told = (np.sign((2 * right - 1) * scores) + 1) / 2
    places = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    of = np.repeat([places[prompt] for prompt in prompts], [len(each) for each in labels])
    sizes = np.bincount(of)
    return {
        "eval/loss": float(np.logaddexp(0.0, -(2 * right - 1) * scores).mean()),
        "eval/step_accuracy": float(told.mean()),
        "eval/step_accuracy_ci95": list(share_interval(np.bincount(of, told) / sizes, sizes)),
        "eval/commoner_label": float(max(right.mean(), 1 - right.mean())),
        "eval/steps": len(right),
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
