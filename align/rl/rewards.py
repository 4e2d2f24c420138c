"""Rewards of sampled answers: reward models on the base, a model that is asked, and Python judges; several combine as a
weighted sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from align.data.examples import Example
from align.data.records import Prompt
from align.ground.errors import AlignError
from align.judges import Judge, call
from align.judges.asked import NAME
from align.judges.scores import LARGEST, none_at_all
from align.measures import judgement
from align.measures.passes import scores
from align.models.roles import Roles
from align.rendering.render import Renderer
from align.stage import on_base

if TYPE_CHECKING:
    from align.stage.workbench import Workbench
    from align.store import Artifact

ENSEMBLE = "ensemble"
"""What several reward models as one are called in messages."""


@dataclass(frozen=True)
class Samples:
    """S samples to be scored: as groups of token ids, and per sample its prompt, its text and its answer's ids."""

    groups: Sequence[Example]
    prompts: Sequence[Prompt]
    texts: Sequence[str]
    """Empty where nothing reads them."""
    ids: Sequence[Sequence[int]] = ()


@dataclass(frozen=True)
class Reward:
    """Something that scores samples: (S,), in a function, or a judge."""

    name: str
    weight: float
    score: Callable[[Samples], np.ndarray] | Judge
    asks: bool = False
    """Whether it is a model that is asked of texts."""

    @property
    def reads_text(self) -> bool:
        """Whether it is no reward model, which reads token ids."""
        return self.asks or isinstance(self.score, Judge)


def by_model(name: str, weight: float, roles: Roles, role: str, budget: int) -> Reward:
    """The scores of a reward model, one of the roles; `budget` tokens at a time."""
    return Reward(name, weight, lambda samples: scores(roles, role, samples.groups, budget))


def by_asking(weight: float, roles: Roles, renderer: Renderer, template: str, budget: int) -> Reward:
    """The scores of a model that is asked, role "judge": of answers that are compared, within their group."""

    def score(samples: Samples) -> np.ndarray:
        n = len(samples.texts) // max(1, len(samples.groups))
        each = [samples.texts[i : i + n] for i in range(0, len(samples.texts), n or 1)]
        found = judgement.scores(roles, "judge", renderer, samples.prompts[:: n or 1], each, template, budget)
        return np.array([score for several in found for score in several], dtype=float)

    return Reward(NAME, weight, score, asks=True)


def of_stage(
    bench: Workbench,
    roles: Roles,
    artifacts: Mapping[str, Artifact],
    functions: Mapping[str, Judge],
    renderer: Renderer,
    prompts: Sequence[Prompt],
) -> list[Reward]:
    """A stage's rewards: artifacts and who is asked as roles on its base, then its judges. Raises: InputError for a
    question without room."""
    c = bench.config
    rewards = []
    for i, (name, artifact) in enumerate(artifacts.items()):
        role = "reward" if i == 0 else f"reward_{i}"
        on_base.add_role(bench, roles, role, bench.store.folder(artifact))
        rewards.append(by_model(name, c.weights.get(name, 1.0), roles, role, c.tokens_per_microbatch))
    rewards += [Reward(name, c.weights.get(name, 1.0), function) for name, function in functions.items()]
    if c.judge_prompt:
        on_base.add_judge(bench, roles)
        asks = judgement.of_questions(renderer, bench.context)
        judgement.check_room(renderer, prompts, c.judge_prompt, c.max_new_tokens, bench.context)
        rewards.append(by_asking(c.weights.get(NAME, 1.0), roles, asks, c.judge_prompt, c.tokens_per_microbatch))
    return rewards


def scored(rewards: Sequence[Reward], samples: Samples) -> list[np.ndarray]:
    """Every reward's (S,), nan where a judge gave none; judges are asked together."""
    judges = {r.name: r.score for r in rewards if isinstance(r.score, Judge)}
    found = call(judges, samples.prompts, samples.texts, samples.ids)
    return [np.array(found[r.name], dtype=float) if isinstance(r.score, Judge) else r.score(samples) for r in rewards]


def check_finite(reward: Reward, scores: np.ndarray) -> None:
    """Of a reward model every (S,) score is a number. Raises: AlignError."""
    if not reward.reads_text and (bad := int((~np.isfinite(scores)).sum())):
        found = f"reward {reward.name} gave {bad} of {len(scores)} answers a score that is not finite"
        raise AlignError(f"{found}; every answer needs a number.")


def members(rewards: Sequence[Reward], by_name: Mapping[str, np.ndarray]) -> np.ndarray:
    """(M, S): the scores of the reward models that are trained on."""
    return np.stack([by_name[r.name] for r in rewards if r.weight and not r.reads_text])


def pooled(
    rewards: Sequence[Reward], by_name: Mapping[str, np.ndarray], deviations: float
) -> tuple[list[Reward], dict[str, np.ndarray]]:
    """The reward models as one reward, `ENSEMBLE`, beside all others: what they agree on, their mean less so many of
    their standard deviations (Coste et al. 2023, arXiv 2310.02743, section 4, where it is their variance)."""
    scores = members(rewards, by_name)
    others = [r for r in rewards if r.reads_text or not r.weight]
    one = Reward(ENSEMBLE, 1.0, lambda samples: np.zeros(0))
    return [one, *others], {**by_name, ENSEMBLE: scores.mean(0) - deviations * scores.std(0)}


def total(rewards: Sequence[Reward], by_name: Mapping[str, np.ndarray], deviations: float | None = None) -> np.ndarray:
    """(S,): the weighted sum of the scores that there are, nan where no reward with a weight gave one (as TRL has it);
    reward models `pooled` where `deviations` says how.

    Raises: AlignError where a reward model's score is no number, a sum is too large to train on, and where there is not
    one score.
    """
    for r in rewards:
        check_finite(r, by_name[r.name])
    if deviations is not None:
        rewards, by_name = pooled(rewards, by_name, deviations)
    unscored = np.all([np.isnan(by_name[r.name]) for r in rewards if r.weight], axis=0)
    if unscored.all():
        raise none_at_all([r.name for r in rewards if r.weight], len(unscored), " of this rollout")
    with np.errstate(over="ignore", invalid="ignore"):
        parts = [r.weight * np.nan_to_num(by_name[r.name]) for r in rewards]
        sums = sum(parts[1:], parts[0])
    if not (np.abs(sums) <= LARGEST).all():
        worst = int(np.argmax(~(np.abs(sums) <= LARGEST)))
        of = " and ".join(f"{r.name} {by_name[r.name][worst]:g} x {r.weight:g}" for r in rewards if r.weight)
        raise AlignError(
            f"rewards of answer {worst + 1:,} add up to {sums[worst]:g} ({of}); expected at most {LARGEST:g} either "
            "way."
        )
    return np.where(unscored, np.nan, sums) if unscored.any() else sums
