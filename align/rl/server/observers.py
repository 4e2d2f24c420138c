"""Who looks on while a server draws the answers: whether it serves the policy, and what it draws ahead."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

import numpy as np

from align.data.steps import in_seeded_passes
from align.ground.errors import AlignError
from align.rl.server.sampler import SampleRequest, ServedSampler
from align.sampling.rollout import Answer, Sampler
from align.training.processes import rank_and_world

if TYPE_CHECKING:
    from align.rl.collect import Rollouts
    from align.rl.observer import Observer

GAP = ("sampler_gap/mean", "sampler_gap/max")


def of(source: Rollouts) -> list[Observer]:
    """Who looks on, by the settings of a run."""
    settings = source.config.rollouts
    assert settings is not None
    limit = GapLimit(settings.gap_limit, source.config.temperature, settings.ahead)
    return [limit, Ahead(source)] if settings.ahead else [limit]


class Quiet:
    """An observer that sees nothing, writes nothing and has nothing to keep."""

    def first_step(self, means: Mapping[str, float]) -> None:
        """Nothing to see."""

    def end(self, sampler: Sampler | ServedSampler, folder: Path) -> None:
        """Nothing to write."""

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> Mapping[str, object]:
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Nothing to know."""


class GapLimit(Quiet):
    """Ends the run where the server's log-probs are too far from the trainer's. What is drawn `ahead` is of another
    policy but in the first rollout."""

    def __init__(self, limit: float, temperature: float, ahead: bool):
        self.limit, self.temperature, self.ahead = limit, temperature, ahead

    def rollout(self, index: int, figures: Mapping[str, float], sampler: Sampler | ServedSampler) -> None:
        """Raises: AlignError."""
        gap = figures["sampler_gap/mean"]
        if gap <= self.limit or (self.ahead and index):
            return
        raw = "" if self.temperature == 1 else ", and with --logprobs-mode processed_logprobs (vLLM)"
        raise AlignError(
            f"rollout {index + 1}: the rollout server's log-probs are {gap:.3g} nats a token from the trainer's "
            f"(rollouts.gap_limit {self.limit:g}). Start it with the very base, in its precision{raw}; or raise the "
            "limit and set importance."
        )


class AheadState(TypedDict):
    """What a checkpoint keeps of what was drawn ahead: what was asked, and per prompt its answers."""

    asked: tuple[list[list[int]], int, int, float] | None
    answers: list[list[tuple[list[int], list[float], bool]]]


class Ahead(Quiet):
    """Has the server draw the next rollout by the policy that drew this one, which is trained on meanwhile. The gap of
    what was drawn so is logged as `off_policy_gap`: rounding, and what one rollout taught."""

    def __init__(self, source: Rollouts):
        self.source = source
        self.gap: dict[str, float] = {}

    def rollout(self, index: int, figures: Mapping[str, float], sampler: Sampler | ServedSampler) -> None:
        s, c = self.source, self.source.config
        self.gap = {name.replace("sampler", "off_policy"): figures[name] for name in GAP} if index else {}
        if s.taken + s.period >= s.steps or not isinstance(sampler, ServedSampler):
            return  # the last one
        rank, world = rank_and_world()
        which = in_seeded_passes(range(s.asked, s.asked + s.groups), len(s.prompt_ids), c.seed)[rank::world]
        prompts = [s.prompt_ids[i] for i in which]
        sampler.draw_ahead(prompts, n=s.group_size, max_new_tokens=c.max_new_tokens, temperature=c.temperature)

    def metrics(self) -> dict[str, float]:
        return self.gap

    def state_dict(self) -> AheadState:
        """Waits for what the server draws."""
        sampler = self.source.sampler
        if not isinstance(sampler, ServedSampler) or sampler.ahead is None:
            return {"asked": None, "answers": []}
        asked, answers = sampler.ahead[0], sampler.drawn_ahead()
        return {
            "asked": (list(map(list, asked.prompts)), asked.n, asked.max_new_tokens, asked.temperature),
            "answers": [[(a.ids, a.logprobs.tolist(), a.ended) for a in several] for several in answers],
        }

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved, sampler = cast(AheadState, state), self.source.sampler
        if saved["asked"] is not None and isinstance(sampler, ServedSampler):
            answers = [
                [Answer(ids, np.array(logprobs, dtype=np.float32), ended) for ids, logprobs, ended in several]
                for several in saved["answers"]
            ]
            sampler.ahead = SampleRequest(*saved["asked"]), lambda: answers
