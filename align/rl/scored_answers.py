"""Answers of a policy with their scores, for stages that make data of them: settings, and the work up to the choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, ClassVar

from align import judges, measures, memory, rl, sampling
from align.data.formats import read_prompts
from align.data.records import Prompt
from align.ground.terminal import say
from align.judges.asked import NAME, AskedModel, answers_to_compare
from align.judges.scores import Score, none_at_all
from align.recipe import Count, File, Place, Processes, Ref, RowSettings, Runtime, Samples, Sampling, TextStage
from align.rl.reward_gate import check_rewards
from align.sampling.answers import sample
from align.stage import on_base, reading
from align.stage.describe import C, Outcome, Stage, all_with
from align.stage.workbench import Workbench
from align.store import Artifact

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.rendering.render import Renderer


class ScoredConfig(Sampling, AskedModel, TextStage, RowSettings, Processes):
    """Answers with scores"""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {
        **TextStage.needs_one_of,
        ("judge", "reward", "judge_prompt"): "none of judge, reward and judge_prompt is set; give a Python function "
        "(judge: FILE.py:FUNCTION), a reward artifact, or what a model is asked, to score the answers.",
    }

    data: File
    """Prompts; their other keys go to the judge as columns."""
    judge: Place | None = None
    """FILE.py:FUNCTION, called as TRL calls reward functions; higher is better, and None leaves an answer out."""
    reward: Ref | None = None
    """The reward artifact that scores in a judge's place; on the same base as the parent."""
    trust_reward: Annotated[bool, Runtime] = False
    """Take a reward model that on its own held-out pairs is surely worse than a rule that looks at nothing but
    length."""
    n: Samples = 4
    """Answers sampled per prompt."""
    limit: Count | None = None
    """Take only the first prompts."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        there = [name for name in ("judge", "reward", "judge_prompt") if given.get(name) is not None]
        if len(there) > 1:
            both = " and ".join(there) if len(there) > 2 else f"both {there[0]} and {there[1]}"
            found.append(f"{both} are set, and answers have one score each. Leave one of them out.")
        return [*found, *answers_to_compare(given, "n")]

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.reward is None:
            found["trust_reward"] = "no reward artifact scores here, and judges are not checked. Leave it out."
        return found

    def check_parents(self, parents: Mapping[str, Artifact]) -> list[str]:
        return check_rewards({k: a for k, a in parents.items() if k == "reward"}, {}, self.trust_reward)


@dataclass(frozen=True)
class Group:
    """A prompt, and the text of each of its n answers, whether it ended by itself, and its score."""

    prompt: Prompt
    texts: list[str]
    ended: list[bool]
    scores: list[Score]


def answer_and_score(bench: Workbench) -> tuple[Renderer, list[Group]]:
    """Answers of the parent, or of the base, to the stage's prompts. Raises: AlignError where none gets a score."""
    config = bench.config
    prompts = reading.read(bench, "data")[: config.limit]
    judge = judges.load(config.judge, prompts, bench.settings["judge"]) if config.judge else None
    renderer = bench.load_renderer()
    prompts, prompt_ids = renderer.prompts(prompts, config.max_new_tokens, bench.context)
    bench.say_counts(renderer)
    asks = measures.judgement.of_questions(renderer, bench.context)
    if config.judge_prompt:
        measures.judgement.check_room(renderer, prompts, config.judge_prompt, config.max_new_tokens, bench.context)
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    answers = sample(roles, "reference", renderer, prompt_ids, config, config.n)
    flat = [answer for several in answers for answer in several]
    each = [prompt for prompt in prompts for _ in range(config.n)]
    if config.judge_prompt:
        scores = by_asking(bench, roles, asks, prompts, [[a["text"] for a in several] for several in answers])
    elif judge is None:
        # after sampling, as loading an adapter draws numbers
        on_base.add_role(bench, roles, "reward", bench.store.folder(bench.parents["reward"]))
        scores = by_reward(roles, prompt_ids, [[a["ids"] for a in several] for several in answers])
    else:
        scores = judge(each, [a["text"] for a in flat], [a["ids"] for a in flat])
    if all(score is None for score in scores):
        raise none_at_all([config.judge or NAME], len(scores))
    groups = []
    for i, (prompt, several) in enumerate(zip(prompts, answers, strict=True)):
        texts, ended = [a["text"] for a in several], [a["ended"] for a in several]
        groups.append(Group(prompt, texts, ended, scores[i * config.n : (i + 1) * config.n]))
    return renderer, groups


def by_asking(
    bench: Workbench, roles: Roles, renderer: Renderer, prompts: list[Prompt], answers: list[list[str]]
) -> list[Score]:
    """Scores of a model that is asked of each prompt's answers, one after the other."""
    on_base.add_judge(bench, roles)  # after sampling, as loading an adapter draws numbers
    found = measures.judgement.scores(
        roles, "judge", renderer, prompts, answers, bench.config.judge_prompt, memory.kinds.SCORED_TOKENS
    )
    return [score for each in found for score in each]


def by_reward(roles: Roles, prompts: list[list[int]], answers: list[list[list[int]]]) -> list[Score]:
    """Scores of role "reward" for the token ids of each prompt's answers, one after the other. Raises: AlignError where
    one is no number."""
    examples = [sampling.rollout.as_example(*group) for group in zip(prompts, answers, strict=True)]
    reward = rl.rewards.by_model("reward", 1.0, roles, "reward", memory.kinds.SCORED_TOKENS)
    (scores,) = rl.rewards.scored([reward], rl.rewards.Samples(examples, [], []))
    rl.rewards.check_finite(reward, scores)
    return [float(score) for score in scores]


def figures(groups: list[Group]) -> dict[str, float]:
    """What the manifest has of all answers: prompts, the mean score, how many have none, and how many ended."""
    scores = [score for group in groups for score in group.scores]
    known = [score for score in scores if score is not None]
    found: dict[str, float] = {"prompts": len(groups), "score/mean": fmean(known)}
    if len(known) < len(scores):
        found["unscored"] = len(scores) - len(known)
    return found | {"eos_rate": fmean(ended for group in groups for ended in group.ended)}


def say_unscored(bench: Workbench, found: Mapping[str, float], answers: int, fate: str) -> None:
    if "unscored" in found:
        say(f"{bench.title}: {found['unscored']:,} of {answers:,} answers got no score (None) and {fate}")


def write(folder: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """The rows of a `data` artifact."""
    lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "data.jsonl").write_text("".join(lines), encoding="utf-8")


def from_answers(
    name: str, *, version: int, config: type[C], work: Callable[..., Outcome], does: str, feeds: str
) -> Stage[C]:
    """A stage whose data are answers with their scores."""
    return Stage(
        name,
        version=version,
        config=config,
        inputs={"parent": ("adapter", "model"), "reward": ("reward",), "judge_model": ("adapter",)},
        work=work,
        makes=("data",),
        reads=all_with(read_prompts),
        footprint=memory.Footprint(memory.kinds.scored, memory.rows.whole),
        does=does,
        feeds=feeds,
        encoder_decoders=True,
    )
