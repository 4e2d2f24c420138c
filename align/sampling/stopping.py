"""Where sampled answers end: at a stop id, or at the token that completes a stop string.

An answer keeps every id that was drawn up to and including that token, so a stop string stays in the ids, whole and
with whatever else its last token holds; `Renderer.answer` leaves it out of the text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from align.ground.progress import Task, clock, remaining

SLACK = 4
"""Tokens decoded beyond the longest stop string: a decoder may strip a space or lack a part of a character where a
piece begins."""


class StopStrings:
    """Says which answers' text just came to hold one of some strings, wherever tokens are cut.

    Only an answer's last tokens are decoded: a token is one byte of text at least, so a string of n bytes that the
    newest token completes lies within the last n tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: Sequence[str]):
        self.tokenizer, self.strings = tokenizer, list(strings)
        self.window = max(len(s.encode()) for s in strings) + SLACK

    def completed(self, tails: Tensor) -> Tensor:
        """(r,) booleans for the last tokens of answers, `tails (r, at most window)`, none of which held one before its
        newest."""
        texts = self.tokenizer.batch_decode(tails, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return torch.tensor([any(s in text for s in self.strings) for text in texts], device=tails.device)


Told = Callable[[Sequence[int]], None]
"""Told the ids of an answer so far, at each of its tokens. What it raises ends the sampling."""


EARLY = 4
"""Tokens before which their pace says little."""


class Growing(Task):
    """Answers under way: how many are whole, and at which of at most `limit` tokens those are that grow in step."""

    def __init__(self, answers: int, limit: int) -> None:
        super().__init__("sampling", answers, "answers")
        self.limit = limit
        self.before, self.whole, self.token = 0, 0, 0
        """Answers of the batches before, those that are whole, and the newest token of the others."""
        self.first: tuple[float, float] | None = None
        """Seconds after which the first token was there, and what was done then: prompts are read before it."""

    def grow(self, token: int, ended: int, rows: int) -> None:
        """Of a batch of `rows` answers so many have ended, and all others have `token` tokens."""
        self.token = token
        self.whole = self.before + (ended if token < self.limit else rows)
        self.done = self.before + ended + (rows - ended) * token / self.limit
        self.first = self.first or (time.monotonic() - self.start, self.done)

    def parts(self, seconds: float) -> list[str]:
        at = [f"token {self.token:,} of {self.limit:,}"] if self.token else []
        since, before = self.first or (seconds, self.done)
        known = [clock(seconds)]
        if self.done > before and (self.before or self.token >= EARLY):
            known = remaining((self.total - self.done) * (seconds - since) / (self.done - before))
        return [f"{self.whole:,}/{self.total:,.0f} {self.unit}", *at, *known, *super().parts(seconds)[2:]]


class Ends:
    """Which of R answers that grow in step have ended, and after how many tokens. `told` hears of the first of them,
    `task` how far they are."""

    def __init__(
        self,
        rows: int,
        limit: int,
        stop_ids: Sequence[int],
        strings: StopStrings | None,
        device: torch.device,
        told: Told | None = None,
        task: Growing | None = None,
    ):
        self.stop_ids, self.strings, self.told, self.task = torch.tensor(stop_ids, device=device), strings, told, task
        self.length = torch.full((rows,), limit, device=device)
        self.ended = torch.zeros(rows, dtype=torch.bool, device=device)

    def see(self, rows: Tensor, ids: Tensor) -> None:
        """Take note of the newest token of those `rows (r,)` that still grow, the last of `ids (R, tokens)`."""
        now = torch.isin(ids[rows, -1], self.stop_ids)
        if self.strings is not None:
            now |= self.strings.completed(ids[rows, -self.strings.window :])
        now &= ~self.ended[rows]
        self.length[rows[now]] = ids.shape[1]
        self.ended[rows[now]] = True
        if self.task is not None:
            self.task.grow(ids.shape[1], int(self.ended.sum()), len(self.ended))
        if self.told is not None:
            self.told(ids[0].tolist())
