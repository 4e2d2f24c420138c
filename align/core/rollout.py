"""Sampling from exactly the policy's distribution: temperature and nothing else, no top-k, no top-p, no penalties.

Where the base is not quantised, adapters are merged into a copy for sampling: tensors that no adapter touches are shared, the shared base
is never changed. The gap that merging makes between sampler and trainer is rounding; PPO recomputes log-probs with the adapters.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from align.core.decode import Cache
from align.core.forward import Head
from align.core.roles import Roles
from align.data.examples import Example

KEEP_ALL_ABOVE = 0.75
"""Samples that have ended leave the batch when no more than this share still grows: dropping rows copies what is kept."""


class Sampler:
    """Samples completions from one role. Call `refresh` after its adapters have changed."""

    def __init__(self, roles: Roles, role: str, stop_ids: Sequence[int], pad_id: int):
        self.roles, self.role, self.stop_ids, self.pad_id = roles, role, list(stop_ids), pad_id
        quantised = getattr(roles.base, "quantization_method", None) is not None
        self.copy = None if quantised or not roles.adapters[role] else MergedCopy(roles, role)

    def refresh(self) -> None:
        if self.copy is not None:
            self.copy.refresh()

    @contextmanager
    def _model(self) -> Iterator[PreTrainedModel]:
        with nullcontext() if self.copy is not None else self.roles.use(self.role):
            model = self.roles.base if self.copy is None else self.copy.model
            was_training = model.training
            model.eval()
            yield model
            model.train(was_training)

    @torch.no_grad()
    def __call__(
        self, prompts: Sequence[Sequence[int]], *, n: int, max_new_tokens: int, temperature: float, tokens: int = 65536
    ) -> list[list[list[int]]]:
        """`n` completions of each prompt, each ending in a stop id unless it was cut at `max_new_tokens`.

        `tokens` bounds the tokens held at a time, each prompt once. `temperature` 0 is greedy. Draws come from torch's global generator.
        """
        out: list[list[list[int]]] = [[] for _ in prompts]
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        with self._model() as model:
            grow = self._grow if self.roles.packed else self._generate
            while order:
                longest = len(prompts[order[-1]]) + n * max_new_tokens
                group = order[-max(1, tokens // longest) :]
                del order[-len(group) :]
                rows = grow(model, [prompts[i] for i in group], n, max_new_tokens, temperature)
                for j, i in enumerate(group):
                    out[i] = [self._trim(row) for row in rows[j * n : (j + 1) * n]]
        return out

    def _grow(
        self, model: PreTrainedModel, prompts: list[Sequence[int]], n: int, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """Rows of `n` samples of each prompt, with whatever follows their first stop id."""
        device, head, decoder = model.device, Head(model), model.base_model
        stops = torch.tensor(self.stop_ids, device=device)
        lengths = [len(p) for p in prompts]
        cache = Cache(lengths, n, max_new_tokens, device)
        ids = torch.tensor(list(chain(*prompts)), device=device)[None]
        positions = torch.cat([torch.arange(length) for length in lengths]).to(device)[None]
        hidden = decoder(input_ids=ids, position_ids=positions, layout=cache, use_cache=False).last_hidden_state[0]
        logits = head(hidden[cache.lengths.cumsum(0) - 1])[cache.owner]
        out = torch.full((len(prompts) * n, max_new_tokens), self.pad_id, device=device)
        rows = torch.arange(len(out), device=device)  # those that still grow
        running = torch.ones_like(rows, dtype=torch.bool)
        for step in range(max_new_tokens):
            new = draw(logits, temperature)
            out[rows, step] = new
            running &= ~torch.isin(new, stops)
            left = int(running.sum())
            if left == 0 or step + 1 == max_new_tokens:
                break
            if left <= KEEP_ALL_ABOVE * len(rows):
                alive = running.nonzero()[:, 0]
                cache.keep(alive)
                rows, new, running = rows[alive], new[alive], running[alive]
            hidden = decoder(input_ids=new[None], position_ids=cache.positions, layout=cache, use_cache=False).last_hidden_state[0]
            cache.grow()
            logits = head(hidden)
        return out.tolist()

    def _generate(
        self, model: PreTrainedModel, prompts: list[Sequence[int]], n: int, max_new_tokens: int, temperature: float
    ) -> list[list[int]]:
        """The same by transformers, for bases that packed attention cannot serve."""
        config = generation_config(self.stop_ids, self.pad_id, max_new_tokens, temperature, n)
        ids, mask = left_pad(prompts, self.pad_id, model.device)
        return cast(Any, model).generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :].tolist()

    def _trim(self, row: list[int]) -> list[int]:
        end = next((i + 1 for i, token in enumerate(row) if token in self.stop_ids), len(row))
        return row[:end]


def draw(logits: Tensor, temperature: float) -> Tensor:
    """One token per row of `logits (N, V)`: (N,)."""
    if temperature == 0:
        return logits.argmax(-1)
    # by the inverse of the distribution function, in fp64: torch.multinomial draws a number per token of the vocabulary
    ends = torch.softmax(logits / temperature, -1).cumsum(-1, dtype=torch.float64)
    at = torch.rand(len(logits), 1, dtype=torch.float64, device=logits.device) * ends[:, -1:]
    return torch.searchsorted(ends, at, right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


def generation_config(stop_ids: Sequence[int], pad_id: int, max_new_tokens: int, temperature: float, n: int = 1) -> GenerationConfig:
    """Built from scratch: the library's default keeps only 50 tokens, and checkpoints ship their own top-p and penalties.

    Every EOS id stops. `temperature` 0 is greedy.
    """
    sampling: dict[str, Any] = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0} if temperature > 0 else {"do_sample": False}
    )
    return GenerationConfig(
        **sampling,
        max_new_tokens=max_new_tokens,
        eos_token_id=list(stop_ids),
        pad_token_id=pad_id,
        num_return_sequences=n,
        repetition_penalty=1.0,
        use_cache=True,
    )


def left_pad(rows: Sequence[Sequence[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """ids and mask, each (len(rows), longest)."""
    longest = max(map(len, rows))
    ids = torch.full((len(rows), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = 1
    return ids.to(device), mask.to(device)


def as_example(prompt: Sequence[int], completions: Sequence[Sequence[int]]) -> Example:
    """Samples of one prompt as a group, with their sampled ids: they are never tokenised again."""
    return Example(
        tuple([*prompt, *c] for c in completions), tuple([False] * len(prompt) + [True] * len(c) for c in completions), shared=len(prompt)
    )


class MergedCopy:
    """A plain model whose adapted linears hold W + (alpha / rank) B A of one role; every other tensor is the base's own storage."""

    def __init__(self, roles: Roles, role: str):
        self.names = roles.adapters[role]
        tensors = chain(roles.base.parameters(), roles.base.buffers())
        self.model: PreTrainedModel = copy.deepcopy(roles.base, {id(t): t for t in tensors})
        self.layers: list[tuple[Any, Any]] = []  # adapted layer, its merged twin
        for name, layer in list(roles.base.named_modules()):
            if isinstance(layer, LoraLayer):
                plain: Any = copy.copy(layer.get_base_layer())
                parent, _, leaf = name.rpartition(".")
                setattr(self.model.get_submodule(parent), leaf, plain)
                if any(name in layer.lora_A for name in self.names):
                    plain._parameters = dict(plain._parameters)
                    plain.weight = nn.Parameter(plain.weight.detach().clone(), requires_grad=False)
                    self.layers.append((layer, plain))
        self.refresh()

    @torch.no_grad()
    def refresh(self) -> None:
        """Merge the adapters as they are now."""
        for layer, plain in self.layers:
            weight = layer.get_base_layer().weight
            delta = sum(layer.get_delta_weight(name) for name in self.names if name in layer.lora_A)
            plain.weight.copy_(weight + delta)
