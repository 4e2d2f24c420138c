"""The same prompts answered over the course of a run, so that a person sees what the figures mean.

Answers are the likeliest ones (greedy), which draws no random number: training goes the same with and without them.
About `LOOKS` times a run, and once more at its end, a line goes to stderr; all answers are stored as `watched.jsonl`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, TypedDict, cast

from align.data.records import Prompt
from align.ground.terminal import say
from align.store import News

if TYPE_CHECKING:
    from align.sampling.rollout import Sampler

LOOKS = 10
"""About so many times in a run, at equal distances; an answer costs as much time as one of a rollout."""
SHOWN = 60
"""Characters of a prompt or an answer in a line of progress."""


class Look(TypedDict):
    """Answers to all prompts of a watch, in their order, after so many rollouts."""

    after: int
    texts: list[str]


class WatchState(TypedDict):
    """What a checkpoint keeps of a watch."""

    trained_on: int
    answers: list[Look]


class Watch:
    """Answers to `count` of the prompts, drawn by the seed.

    Args:
        rollouts: how many there will be, about.
        prompts, prompt_ids: all prompts, as records and as token ids.
        read: the text of sampled ids.
        news: whom the answers are told, as soon as they are given.
    """

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
        chosen = Random(seed).sample(range(len(prompts)), min(count, len(prompts)))
        self.prompts, self.ids, self.read = [prompts[i] for i in chosen], [prompt_ids[i] for i in chosen], read
        self.every, self.max_new_tokens, self.title = max(1, rollouts // LOOKS), max_new_tokens, title
        self.trained_on, self.news = 0, news
        self.answers: list[Look] = []

    def rollout(self, index: int, figures: Mapping[str, float], sampler: Sampler) -> None:
        if index % self.every == 0:
            self.look(sampler)
        self.trained_on = index + 1

    def first_step(self, means: Mapping[str, float]) -> None:
        """Nothing to see."""

    def end(self, sampler: Sampler, folder: Path) -> None:
        """Look once more, and write `watched.jsonl`: per prompt its messages and what was answered after how many
        rollouts."""
        if not self.prompts:
            return
        self.look(sampler)
        with open(folder / "watched.jsonl", "w", encoding="utf-8") as file:
            for i, prompt in enumerate(self.prompts):
                messages = [m.plain() for m in prompt.messages]
                answers = [{"after": a["after"], "text": a["texts"][i]} for a in self.answers]
                file.write(json.dumps({"prompt": messages, "answers": answers}, ensure_ascii=False) + "\n")

    def metrics(self) -> dict[str, float]:
        return {}

    def state_dict(self) -> WatchState:
        return {"trained_on": self.trained_on, "answers": self.answers}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(WatchState, state)
        self.trained_on, self.answers = saved["trained_on"], saved["answers"]

    def look(self, sampler: Sampler) -> None:
        """Ask again, and show one of the prompts, another one each time."""
        if not self.prompts:
            return
        answers = sampler(self.ids, n=1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        self.answers.append({"after": self.trained_on, "texts": [self.read(several[0].ids) for several in answers]})
        which = (len(self.answers) - 1) % len(self.prompts)
        asked, said = self.prompts[which].messages[-1].content, self.answers[-1]["texts"][which]
        when = f"after rollout {self.trained_on}" if self.trained_on else "at the start"
        say(f"{self.title}: {when}: {short(asked)} -> {short(said)}")
        prompts = ["\n".join(m.content for m in prompt.messages) for prompt in self.prompts]
        self.news.answers(when, list(zip(prompts, self.answers[-1]["texts"], strict=True)))


def short(text: str) -> str:
    """One line of at most `SHOWN` printable characters."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
