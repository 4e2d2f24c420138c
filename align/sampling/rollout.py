"""Sampling from exactly the policy's distribution: temperature and nothing else, no top-k, no top-p, no penalties.

Where the base is not quantised, adapters are merged into a copy for sampling: tensors that no adapter touches are
shared, the shared base is never changed. The gap that merging makes between the sampler's log-probs and the trainer's
is rounding; RL trains on the trainer's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import cast

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from align.data.examples import Example
from align.ground.progress import Task
from align.ground.terminal import say
from align.models.merged import MergedCopy, merge_gathered
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.packed.head import Head
from align.rendering.render import Renderer
from align.sampling.decode import Cache
from align.sampling.draw import draw, uniforms
from align.sampling.generating import Drawing, contiguous_inputs, generation_config, plainly
from align.sampling.growing import probe_growing
from align.sampling.stopping import Ends, Growing, StopStrings, Told
from align.sampling.together import Together, rows_together

KEEP_ALL_ABOVE = 0.9
"""Samples that have ended leave the batch when no more than this share still grows: dropping rows copies what is
kept."""


@dataclass(frozen=True)
class Answer:
    """One sampled completion."""

    ids: list[int]
    """As drawn; they are never tokenised again."""
    logprobs: np.ndarray
    """(tokens,): each under the distribution that it was drawn from, temperature included; 0 where the likeliest was
    taken."""
    ended: bool
    """By itself, at a stop id or a stop string, rather than cut for length."""


class Sampler:
    """Samples completions from one role, which end at any of `stop_ids` and `strings`. Call `forget` before its
    adapters change."""

    def __init__(
        self, roles: Roles, role: str, stop_ids: Sequence[int], pad_id: int, strings: StopStrings | None = None
    ):
        self.roles, self.role, self.stop_ids, self.pad_id, self.strings = roles, role, list(stop_ids), pad_id, strings
        self.grows = grows(roles)
        quantised = getattr(roles.base, "quantization_method", None) is not None
        self.merges = not quantised and bool(roles.adapters[role])
        self.copy = MergedCopy(roles, role) if self.merges and roles.shards is None else None

    def forget(self) -> None:
        """Drop what was merged, which is as large as the base's adapted matrices; the next call merges the adapters as
        they then are."""
        if self.copy is not None:
            self.copy.drop()

    @contextmanager
    def _model(self) -> Iterator[PreTrainedModel]:
        # into what shards are gathered to, which is dropped at the end
        in_place = self.merges and self.roles.shards is not None
        with self.roles.whole(), nullcontext() if self.copy else self.roles.use("base" if in_place else self.role):
            if in_place:
                merge_gathered(self.roles, self.role)
            model = self.roles.base if self.copy is None else self.copy.merged()
            was_training = model.training
            model.eval()
            yield model
            model.train(was_training)

    @torch.no_grad()
    def __call__(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        n: int,
        max_new_tokens: int,
        temperature: float,
        tokens: int = 65536,
        told: Told | None = None,
    ) -> list[list[Answer]]:
        """`n` completions of each prompt, cut at `max_new_tokens` where they have not ended before.

        `tokens` bounds the tokens held at a time, each prompt once. `temperature` 0 is greedy. Draws come from torch's
        global generator. `told` is told of every token of a single answer as it is drawn, and may raise to end it.
        """
        with Growing(len(prompts) * n, max_new_tokens) as task, self._model() as model:
            together = "all" if self.grows else sampled_together(self.roles, model, self.pad_id)
            times = n if together == "none" else 1
            prompts, n = [p for p in prompts for _ in range(times)], n // times
            out: list[list[Answer]] = [[] for _ in prompts]
            order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
            grow = self._grow if self.grows else self._generate
            while order:
                longest = len(prompts[order[-1]]) + n * max_new_tokens
                group = order[-max(1, tokens // longest) :] if together != "none" else order[-1:]
                if together.startswith("equal lengths"):
                    group = [i for i in group if len(prompts[i]) == len(prompts[order[-1]])]
                del order[-len(group) :]
                ends = Ends(len(group) * n, max_new_tokens, self.stop_ids, self.strings, model.device, told, task)
                ids, logprobs = grow(model, [prompts[i] for i in group], n, max_new_tokens, temperature, ends)
                columns = (ids.tolist(), logprobs.cpu().numpy(), ends.length.tolist(), ends.ended.tolist())
                answers = [Answer(row[:k], p[:k].copy(), ended) for row, p, k, ended in zip(*columns, strict=True)]
                for j, i in enumerate(group):
                    out[i] = answers[j * n : (j + 1) * n]
                task.before += len(answers)
        return [[a for answers in out[i : i + times] for a in answers] for i in range(0, len(out), times)]

    def _grow(
        self,
        model: PreTrainedModel,
        prompts: list[Sequence[int]],
        n: int,
        max_new_tokens: int,
        temperature: float,
        ends: Ends,
    ) -> tuple[Tensor, Tensor]:
        """Ids and log-probs, each (R, max_new_tokens), of `n` samples of each prompt, and whatever follows where they
        have ended."""
        # of a merged copy, which may have rows of its own
        head = self.roles.head if self.copy is None else Head(model)
        device, decoder = model.device, model.base_model
        lengths = [len(p) for p in prompts]
        cache = Cache(lengths, n, max_new_tokens, device)
        ids = torch.tensor(list(chain(*prompts)), device=device)[None]
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)[None]
        hidden = decoder(input_ids=ids, position_ids=positions, layout=cache, use_cache=False).last_hidden_state[0]
        cache.grow()
        hidden = hidden[cache.lengths.cumsum(0) - 1][cache.owner]
        out = torch.full((len(prompts) * n, max_new_tokens), self.pad_id, device=device)
        logprobs = torch.zeros(out.shape, dtype=torch.promote_types(hidden.dtype, torch.float32), device=device)
        rows = torch.arange(len(out), device=device)  # those that still grow
        for step in range(max_new_tokens):
            # a row's draws do not depend on when others leave
            at = uniforms(len(out), device)[rows] if temperature > 0 else None
            new, logprobs[rows, step] = draw(head.blocks(hidden, temperature or 1.0), at)
            out[rows, step] = new
            ends.see(rows, out[:, : step + 1])
            running = ~ends.ended[rows]
            left = int(running.sum())
            if left == 0 or step + 1 == max_new_tokens:
                break
            if left <= KEEP_ALL_ABOVE * len(rows):
                alive = running.nonzero()[:, 0]
                cache.keep(alive)
                rows, new = rows[alive], new[alive]
            hidden = decoder(
                input_ids=new[None], position_ids=cache.positions, layout=cache, use_cache=False
            ).last_hidden_state[0]
            cache.grow()
        return out, logprobs

    def _generate(
        self,
        model: PreTrainedModel,
        prompts: list[Sequence[int]],
        n: int,
        max_new_tokens: int,
        temperature: float,
        ends: Ends,
    ) -> tuple[Tensor, Tensor]:
        """Ids and log-probs, as `_grow` gives them, by transformers: for bases that packed attention cannot serve."""
        uses_cache = not sampled_together(self.roles, model, self.pad_id).endswith("without a cache")
        config = generation_config(self.stop_ids, self.pad_id, max_new_tokens, uses_cache)
        drawing = Drawing(ends, temperature)
        with native_attention(model), contiguous_inputs(model):
            each = [p for p in prompts for _ in range(n)]
            _, rows = plainly(model, each, config, logits_processor=[drawing], stopping_criteria=[drawing.ended])
        return rows[:, -len(drawing.logprobs) :], torch.stack(drawing.logprobs, 1)


def grows(roles: Roles) -> bool:
    """Whether samples grow in our cache, or else by transformers' `generate`; tried once per base, whatever its
    adapters."""
    if roles.grows is None:
        with roles.whole(), roles.use("base"), Task("checking sampling on a few tokens"):
            why = probe_growing(roles.tried) if roles.packed else roles.why_padded
        if roles.packed and why:
            say(f"this base is sampled from by transformers' generate ({why})")
        roles.grows = not why
    return roles.grows


def sampled_together(roles: Roles, model: PreTrainedModel, pad_id: int) -> Together:
    """Which rows `generate` may take in one batch from the base, or from a merged copy of it; tried once per base."""
    if roles.sampled_together is None:
        with native_attention(model), contiguous_inputs(model):
            roles.sampled_together = rows_together(model, pad_id)
    return cast(Together, roles.sampled_together)


def sampler(roles: Roles, role: str, renderer: Renderer, stop: Sequence[str] = ()) -> Sampler:
    """Of answers that end at the renderer's end-of-turn tokens and at any of `stop`."""
    strings = StopStrings(renderer.tokenizer, stop) if stop else None
    return Sampler(roles, role, renderer.stop_ids, renderer.tokenizer.pad_token_id, strings)


def as_example(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Example:
    """Samples of one prompt as a group, with their sampled ids: they are never tokenised again."""
    return Example(
        tuple([*prompt, *c] for c in completions),
        tuple([False] * len(prompt) + [True] * len(c) for c in completions),
        shared=len(prompt),
    )
