"""The same prompts answered over the course of a run, so that a person sees what the figures mean.

Answers are the likeliest ones (greedy), which draws no random number: training goes the same with and without them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Literal, TypedDict

from align.ground.json import Json
from align.ground.terminal import say
from align.report.training import when
from align.store import News

if TYPE_CHECKING:
    from align.sampling.rollout import Answer

Draws = Callable[..., "list[list[Answer]]"]
"""A sampler, as `align.sampling.rollout.Sampler` is called."""

SHOWN = 60
"""Characters of a prompt or an answer in a line of progress."""


class Look(TypedDict):
    """Answers to all prompts, in their order, after so many steps or rollouts."""

    after: int
    texts: list[str]


class Answers:
    """Answers to `count` of the prompts, drawn by the seed.

    Args:
        prompts, prompt_ids: all prompts, as messages and as token ids.
        read: the text of sampled ids.
        unit: what a run is counted in.
        news: whom the answers are told, as soon as they are given.
    """

    def __init__(
        self,
        prompts: Sequence[list[Json]],
        prompt_ids: Sequence[Sequence[int]],
        read: Callable[[Sequence[int]], str],
        *,
        count: int,
        seed: int,
        max_new_tokens: int,
        title: str,
        unit: Literal["step", "rollout"],
        news: News,
    ):
        chosen = Random(seed).sample(range(len(prompts)), min(count, len(prompts)))
        self.prompts, self.ids, self.read = [prompts[i] for i in chosen], [prompt_ids[i] for i in chosen], read
        self.max_new_tokens, self.title, self.unit, self.news = max_new_tokens, title, unit, news
        self.answers: list[Look] = []

    def ask(self, sampler: Draws, after: int) -> None:
        """Ask again, and show one of the prompts, another one each time."""
        if not self.prompts:
            return
        answers = sampler(self.ids, n=1, max_new_tokens=self.max_new_tokens, temperature=0.0)
        self.answers.append({"after": after, "texts": [self.read(several[0].ids) for several in answers]})
        which = (len(self.answers) - 1) % len(self.prompts)
        asked, said = str(self.prompts[which][-1]["content"]), self.answers[-1]["texts"][which]
        moment = when(self.unit, after)
        say(f"{self.title}: {moment}: {short(asked)} -> {short(said)}")
        prompts = ["\n".join(str(m["content"]) for m in prompt) for prompt in self.prompts]
        self.news.answers(moment, list(zip(prompts, self.answers[-1]["texts"], strict=True)))

    def write(self, folder: Path) -> None:
        """Write `watched.jsonl`: per prompt its messages, and what was answered after how many steps or rollouts."""
        if not self.prompts:
            return
        counted = {} if self.unit == "rollout" else {"unit": self.unit}
        with open(folder / "watched.jsonl", "w", encoding="utf-8") as file:
            for i, messages in enumerate(self.prompts):
                answers = [{"after": a["after"], "text": a["texts"][i]} for a in self.answers]
                row = {"prompt": messages, "answers": answers, **counted}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def short(text: str) -> str:
    """One line of at most `SHOWN` printable characters."""
    line = "".join(c for c in " ".join(text.split()) if c.isprintable())
    return line if len(line) <= SHOWN else line[: SHOWN - 1] + "…"
