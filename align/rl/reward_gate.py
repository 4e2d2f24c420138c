"""The gate before reinforcement learning: a reward model that is worse than a rule of length teaches length, or
nothing; one of steps that is worse than the commoner label, nothing.

It reads what the reward stage measured on its own held-out pairs, in the manifest; no tensor is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping

from align.ground.errors import InputError
from align.store import Artifact

FEW = 10
"""Held-out pairs below which nothing is refused: of two, a rule of length has both right in every fourth case."""
MEASURED = {"eval/accuracy", "eval/accuracy_ci95", "eval/length_baseline_accuracy", "eval/pairs"}
"""What the reward stage measures where pairs are held out."""


def check_rewards(artifacts: Mapping[str, Artifact], weights: Mapping[str, float], trust: bool) -> list[str]:
    """What is to be said of reward artifacts before they are trained on; of one of weight 0, which only watches,
    nothing is asked.

    Raises: InputError where a reward model is surely worse on held-out pairs than a length rule, unless `trust`ed.
    """
    notes = []
    for name, artifact in artifacts.items():
        if weights.get(name, 1.0) == 0:
            continue
        found = artifact.metrics
        if artifact.config.get("steps"):
            notes.append(of_steps(name, artifact, trust))
            continue
        if not found.keys() >= MEASURED:
            notes.append(
                f"{name} ({artifact.short}) was never measured: it had no held-out pairs. Set eval_fraction or "
                "eval_data in reward."
            )
            continue
        accuracy, rule, pairs = found["eval/accuracy"], found["eval/length_baseline_accuracy"], found["eval/pairs"]
        low, high = found["eval/accuracy_ci95"]
        seen = (
            f"{name} ({artifact.short}) orders {accuracy:.1%} of its {pairs:,} held-out pairs rightly (95 %: {low:.1%} "
            f"to {high:.1%}); a rule that looks at nothing but length orders {rule:.1%}"
        )
        known = found.get("trained_on/held_out", 0)
        if known:
            seen += f"; {known:,} of these pairs have a prompt that was trained on"
        worse = high < rule and pairs >= FEW
        if worse and not trust:
            raise InputError(
                f"reward: {seen}. Training on it would teach length, or nothing. Train it on more or cleaner pairs or "
                "for more epochs. Set trust_reward: true to go on all the same."
            )
        if worse:
            notes.append(f"{seen}. It is trained on all the same, since trust_reward is set.")
        elif low <= rule:
            notes.append(f"{seen}, so that it may be no better. More held-out pairs would tell (eval_fraction).")
        elif known:
            notes.append(f"{seen}.")
    return notes


def of_steps(name: str, artifact: Artifact, trust: bool) -> str:
    """What is to be said of a process reward model, which answers' last steps are scored by. Raises: InputError as
    `check_rewards`."""
    found = artifact.metrics
    if "eval/steps" not in found:
        return (
            f"{name} ({artifact.short}) was never measured: it had no held-out steps. Set eval_fraction or eval_data "
            "in reward."
        )
    low, high = found["eval/step_accuracy_ci95"]
    seen = (
        f"{name} ({artifact.short}) tells {found['eval/step_accuracy']:.1%} of its {found['eval/steps']:,} held-out "
        f"steps rightly (95 %: {low:.1%} to {high:.1%}); the commoner label alone would be "
        f"right of {found['eval/commoner_label']:.1%}"
    )
    if high < found["eval/commoner_label"] and not trust:
        raise InputError(
            f"reward: {seen}. Training on it would teach nothing. Train it on more steps or for more epochs. Set "
            "trust_reward: true to go on all the same."
        )
    return f"{seen}. An answer's score is that of its last step."
