"""Prompts that are answered over and over while a run of reinforcement learning goes: about `LOOKS` times, and once
more at its end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict, cast

from align.data.records import Prompt
from align.guard.answers import Answers, Look
from align.store import News

if TYPE_CHECKING:
    from align.rl.server.sampler import ServedSampler
    from align.sampling.rollout import Sampler

LOOKS = 10
"""About so many times in a run, at equal distances; an answer costs as much time as one of a rollout."""


class WatchState(TypedDict):
    """What a checkpoint keeps of a watch."""

    trained_on: int
    answers: list[Look]


class Watch(Answers):
    """Answers to some of the prompts of a run of about so many `rollouts`."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        prompt_ids: Sequence[Sequence[int]],
        read: Callable[[Sequence[int]], str],
        *,
        count: int,
        seed: int,
        rollouts: int,
        max_new_tokens: int,
        title: str,
        news: News,
    ):
        messages = [[m.plain() for m in prompt.messages] for prompt in prompts]
        super().__init__(
            messages,
            prompt_ids,
            read,
            count=count,
            seed=seed,
            max_new_tokens=max_new_tokens,
            title=title,
            unit="rollout",
            news=news,
        )
        self.every, self.trained_on = max(1, rollouts // LOOKS), 0

    def rollout(self, index: int, figures: Mapping[str, float], sampler: Sampler | ServedSampler) -> None:
        if index % self.every == 0:
            self.ask(sampler, self.trained_on)
        self.trained_on = index + 1

    def first_step(self, means: Mapping[str, float]) -> None:
        """Nothing to see."""

    def end(self, sampler: Sampler | ServedSampler, folder: Path) -> None:
        """Ask once more, and write."""
        self.ask(sampler, self.trained_on)
        self.write(folder)

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> WatchState:
        return {"trained_on": self.trained_on, "answers": self.answers}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(WatchState, state)
        self.trained_on, self.answers = saved["trained_on"], saved["answers"]
