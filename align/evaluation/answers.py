"""What is measured of answers: their ends and lengths, KL, judges' scores and a reward model's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from statistics import fmean
from typing import TYPE_CHECKING, Any

from align import judges, measures, sampling
from align.data.examples import Example
from align.data.records import Prompt
from align.evaluation import comparison

if TYPE_CHECKING:
    from align.models.roles import Roles

Answers = list[list[dict[str, Any]]]
"""Of each prompt, what `align.sampling.answers.sample` gives of each answer to it."""
Scores = dict[str, list[list[judges.Score]]]
"""By model or by judge, (prompts, answers to each)."""
KL_SAMPLES = 256
"""Answers that KL is measured on."""


def judged(
    functions: Mapping[str, judges.Judge], prompts: list[Prompt], texts: list[list[str]], ids: list[list[list[int]]]
) -> Scores:
    """By judge: its scores, asked for in one call."""
    asked = [prompt for prompt, several in zip(prompts, texts, strict=True) for _ in several]
    scores = {
        name: iter(found)
        for name, found in judges.call(functions, asked, list(chain(*texts)), list(chain(*ids))).items()
    }
    return {name: [[next(found) for _ in several] for several in texts] for name, found in scores.items()}


def measure_answers(roles: Roles, answers: Answers, temperature: float, tokens_per_microbatch: int) -> dict[str, float]:
    """Share that ended by itself, length in tokens, and KL from the stage compared with, in nats per answer."""
    everything = list(chain(*answers))
    found = {"eos_rate": fmean(a["ended"] for a in everything), "length": fmean(len(a["ids"]) for a in everything)}
    if not temperature:
        return found
    examples = [as_group(several) for several in answers[: -(-KL_SAMPLES // len(answers[0]))]]
    measured = (tokens_per_microbatch, temperature)
    own, other = (measures.passes.sequence_logprobs(roles, role, examples, *measured) for role in ("model", "against"))
    gaps = [float(o.sum() - r.sum()) for o, r in zip(chain(*own), chain(*other), strict=True)]
    return {"kl": fmean(gaps), **found}


def measure_reward(
    roles: Roles, pairs: Sequence[Example], answers: dict[str, Answers], rule: str | None, tokens_per_microbatch: int
) -> dict[str, Any]:
    """The reward model's accuracy on held-out pairs, beside the rule of length that its own training pairs taught
    (`rule`: longer or shorter), and its mean score of every model's answers."""
    metrics: dict[str, Any] = {}
    if pairs:
        lengths = measures.statistics.completion_lengths(pairs)
        scores = measures.passes.scores(roles, "reward", pairs, tokens_per_microbatch)
        found = measures.statistics.pair_statistics(
            scores, lengths, [p.head for p in pairs], None if rule is None else rule == "longer"
        )
        metrics |= {f"reward/{k.removeprefix('eval/')}": v for k, v in found.items()}
    for name, rows in answers.items():
        groups = [as_group(several) for several in rows]
        values = measures.passes.scores(roles, "reward", groups, tokens_per_microbatch).reshape(len(rows), -1)
        metrics |= comparison.mean_of(f"{name}/reward", values, share=False)
    return metrics


def as_group(several: list[dict[str, Any]]) -> Example:
    """One model's answers to a prompt."""
    return sampling.rollout.as_example(several[0]["prompt_ids"], [a["ids"] for a in several])
