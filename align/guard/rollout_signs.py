"""Signs that reinforcement learning goes wrong: each is a function of the figures of all rollouts so far."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from align.guard.rollout_limits import RolloutLimits
from align.guard.signs import Figures, Sign


def kl(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """Runaway KL: the policy has left the region in which the reward was fitted (Gao et al. 2022, arXiv 2210.10760,
    section 3)."""
    now = rollouts[-1]["kl"]
    if now <= limits.kl:
        return None
    return (
        f"KL from the reference is {now:.1f} nats per answer (limit {limits.kl:g}; it was "
        f"{_ago(rollouts, 'kl'):.1f} five rollouts ago)"
    )


def negative_kl(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """The mean of log p(y) - log p_ref(y) over the policy's own answers estimates a KL; far below 0 they are not its
    own."""
    now = rollouts[-1]["kl"]
    if now >= -limits.negative_kl:
        return None
    return f"the estimate of KL is {now:.1f} nats per answer (limit -{limits.negative_kl:g})"


def eos_rate(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """Answers that do not end by themselves."""
    first, now = rollouts[0]["eos_rate"], rollouts[-1]["eos_rate"]
    if now >= limits.eos_rate:
        return None
    return f"{now:.0%} of answers end by themselves (limit {limits.eos_rate:.0%}; {first:.0%} in the first rollout)"


def length(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """Answers that grow."""
    first, now = rollouts[0]["length"], rollouts[-1]["length"]
    if now <= limits.length * first:
        return None
    return (
        f"answers have {now:.1f} tokens, {now / first:.1f} times the {first:.1f} of the first rollout (limit "
        f"{limits.length:g} times)"
    )


def entropy(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """A policy that has become certain, so that nothing new is tried."""
    first, now = rollouts[0]["entropy"], rollouts[-1]["entropy"]
    if now >= limits.entropy * first:
        return None
    return (
        f"entropy is {now:.3g} nats per token, {now / first:.0%} of the first rollout's {first:.3g} (limit "
        f"{limits.entropy:.0%})"
    )


def reward_hacking(
    rollouts: Sequence[Figures], limits: RolloutLimits, monitors: Sequence[str], groups: int
) -> str | None:
    """The trained reward rises while one that is not trained on falls from its best (Gao et al. 2022, figure 1).

    Means over `window` rollouts are compared, the last with the earlier one in which the monitor was highest. The fall
    must exceed the setting and three standard errors, both in the monitor's standard deviations among answers; `groups`
    prompts are asked in a rollout.
    """
    w = limits.window
    if len(rollouts) < 2 * w:
        return None
    for name in monitors:
        if any(f"reward/{name}" not in r for r in rollouts):
            continue  # a judge that gave no answer of a rollout a score
        means = [fmean(r[f"reward/{name}"] for r in rollouts[end - w : end]) for end in range(w, len(rollouts) + 1)]
        best = max(range(len(means) - w), key=lambda i: means[i])
        windows = (rollouts[best : best + w], rollouts[-w:])
        spread = max(fmean(r[f"reward/{name}/std"] for r in window) for window in windows)
        fall = means[best] - means[-1]
        before, now = (fmean(r["reward/mean"] for r in window) for window in windows)
        if now > before and fall > spread * max(limits.reward_hacking, 3 * math.sqrt(2 / (w * groups))):
            fell = f"{name}, which is not trained on, fell from {means[best]:.3g} to {means[-1]:.3g}"
            by = (
                f"{fall / spread if spread else math.inf:.2f} of its standard deviations (limit "
                f"{limits.reward_hacking:g})"
            )
            return f"the trained reward rose from {before:.3g} to {now:.3g} while {fell}, {by}"
    return None


def no_variance(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """Groups whose answers all score the same, which say nothing about which is better."""
    now = rollouts[-1].get("groups_without_variance", 0.0)
    if now <= limits.no_variance:
        return None
    found = f"in {now:.0%} of groups all answers score the same (limit {limits.no_variance:.0%})"
    missing = rollouts[-1].get("unscored", 0.0)
    return f"{found}, where {missing:.0%} of answers have no score at all (None)" if missing else found


def ratio(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """In a rollout's first step the policy is the one that was measured. The mean of the ratio is 1 on its own samples
    whatever the policy has become, so its spread is looked at: sqrt(2 x approx_kl) is about the root mean square of log
    ratio."""
    found = rollouts[-1]
    if "first/ratio" not in found:
        return None
    off = max(abs(found["first/ratio"] - 1), math.sqrt(2 * max(found["first/approx_kl"], 0.0)))
    if off <= limits.ratio:
        return None
    return f"in the first step of a rollout the ratio is {off:.2g} from 1 (limit {limits.ratio:g})"


def explained_variance(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """Values that are worse than their mean; at the start they may be."""
    w, name = limits.window, "value/explained_variance"
    if len(rollouts) < 2 * w or name not in rollouts[-1]:
        return None
    found = [r[name] for r in rollouts[-w:]]
    if max(found) >= limits.explained_variance:
        return None
    return (
        f"values explain {found[-1]:.2f} of the returns' variance, below {limits.explained_variance:g} for {w} "
        "rollouts on end"
    )


def sampler_gap(rollouts: Sequence[Figures], limits: RolloutLimits) -> str | None:
    """Sampler and trainer are the same policy, so they give a token the same log-prob, up to rounding."""
    now = rollouts[-1].get("sampler_gap/max", 0.0)
    if now <= limits.sampler_gap:
        return None
    return f"sampler and trainer differ by {now:.2g} nats on a token (limit {limits.sampler_gap:g})"


def _ago(rollouts: Sequence[Figures], name: str, back: int = 5) -> float:
    return rollouts[max(0, len(rollouts) - 1 - back)][name]


SIGNS: dict[str, Sign] = {
    "kl": Sign(
        kl,
        "kl_coef is too low, or learning_rate too high, for this reward",
        "raise kl_coef (double it) or halve learning_rate; look at the answers: far from the reference the reward is "
        "a guess",
    ),
    "negative_kl": Sign(
        negative_kl,
        "answers were not drawn from the policy that is trained",
        "report it with `align show`: sampling takes no top-k, top-p or penalties, so this should not happen",
    ),
    "eos_rate": Sign(
        eos_rate,
        "the reward pays for going on, or missing_eos_penalty is too low beside it",
        "raise missing_eos_penalty, or max_new_tokens where longer answers are wanted",
    ),
    "length": Sign(
        length,
        "the reward pays for length: reward models often prefer the longer answer",
        "compare eval/accuracy with eval/length_baseline_accuracy of the reward model; raise kl_coef, or add a judge "
        "that takes length off",
    ),
    "entropy": Sign(
        entropy,
        "the policy has settled on few answers: learning_rate is too high or kl_coef too low",
        "halve learning_rate or raise kl_coef; train for fewer steps where the reward has stopped rising",
    ),
    "reward_hacking": Sign(
        reward_hacking,
        "the policy exploits errors of the trained reward",
        "take an earlier stop (max_steps) or a higher kl_coef, or train the reward model again on pairs of this "
        "policy's answers",
    ),
    "no_variance": Sign(
        no_variance,
        "these prompts are too easy or too hard by now, or the reward gives few different scores",
        "take prompts that are answered right sometimes, a larger group_size, or end here where the reward is high",
    ),
    "ratio": Sign(
        ratio,
        "log-probs are measured otherwise than they are trained on: a module draws at random, or rounding adds up "
        "over long answers",
        "set precision: fp32; where that does not help, report it: the first step should find the policy as it was "
        "measured",
    ),
    "explained_variance": Sign(
        explained_variance,
        "the value role does not follow the returns: its head learns too slowly, or rewards are on a far larger scale "
        "than values",
        "raise head_learning_rate or value_coef, or set whiten_rewards; learning goes on, but noisier than without "
        "values",
    ),
    "sampler_gap": Sign(
        sampler_gap,
        "the sampler's merged weights round otherwise than base and adapter apart, as in bf16 or on a quantised base",
        "set precision: fp32, or lower learning_rate so that adapters stay small",
    ),
}


SERVED = {
    "negative_kl": (
        "the server draws from another policy than the one that is trained, or not from all of its distribution",
        "see that it serves the very base, and that it reads adapters from where they are put (rollouts.folder); start "
        "it anew",
    ),
    "sampler_gap": (
        "the server rounds otherwise than the trainer: another precision, quantisation, or other kernels",
        "start it in the trainer's precision (vLLM: --dtype), or weigh answers by importance (token_truncate)",
    ),
}
"""Cause and remedy of a sign where a server draws the answers."""
RESAMPLED = (
    "these prompts are too easy or too hard by now, or the reward gives few different scores; groups drawn anew were "
    "no others",
    "raise resample or group_size, take prompts that are answered right sometimes, or end here where the reward is "
    "high",
)
"""Of `no_variance`, where groups without variance are drawn anew."""
UNSCORED = (
    "answers have no score, and a group needs two that have one",
    "look at what the judge gives None for, and for which prompts",
)
"""Of `no_variance`, where half of the answers or more have no score."""
CUT = (
    "max_new_tokens is too short for these prompts, as it was so before anything was trained; or what is trained was "
    "never taught to end an answer",
    "raise max_new_tokens; where few answers end however high it is, go on from sft, which teaches their end",
)
"""Of `eos_rate`, where few answers ended in the first rollout."""


def rollout_signs(served: object, resample: int) -> dict[str, Sign]:
    """The signs, with causes and remedies as they are where a server draws, or groups are drawn anew."""
    advice = (SERVED if served else {}) | ({"no_variance": RESAMPLED} if resample else {})
    return SIGNS | {name: Sign(SIGNS[name].seen, *said) for name, said in advice.items()}


def as_found(signs: Mapping[str, Sign], rollouts: Sequence[Figures], limits: RolloutLimits) -> Mapping[str, Sign]:
    """The signs, with causes and remedies as they are where answers have no score, and where few ended from the
    start."""
    found = {"no_variance": UNSCORED} if rollouts[-1].get("unscored", 0.0) >= 0.5 else {}
    found |= {"eos_rate": CUT} if rollouts[0]["eos_rate"] < limits.eos_rate else {}
    return {**signs, **{name: Sign(signs[name].seen, *said) for name, said in found.items()}}


def unseen(weights: Mapping[str, float], values: bool, groups: bool) -> dict[str, str]:
    """Signs that a run cannot show, and why: without a reward of weight 0, without values, without several answers to a
    prompt."""
    watched = any(weight == 0 for weight in weights.values())
    why = {
        "reward_hacking": None if watched else "no reward has weight 0, which is what it looks at",
        "explained_variance": None if values else "this stage has no values",
        "no_variance": None if groups else "answers have no group here",
    }
    return {sign: text for sign, text in why.items() if text}
