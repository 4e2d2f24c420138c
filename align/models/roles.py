"""One frozen base, several named roles on it: policy, reference, reward, value.

A role is a list of adapters (all active together) and perhaps a head. Entering a role activates its adapters and
restores the previous ones on exit, also after an exception; `requires_grad` is never touched (PEFT's `set_adapter`
flips it). With activation checkpointing, recompute in the backward re-enters the role that was active in the forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.data.examples import Example
from align.folders.config import is_multimodal
from align.ground.errors import AlignError, InputError
from align.models.adapted import AdaptedBase
from align.models.heads import ScoreHead
from align.packed import context, forward
from align.packed.pack import Batch, microbatches, pack
from align.packed.probe import difference
from align.parallel.narrow import kept
from align.parallel.shards import Shards


class Roles(AdaptedBase):
    """A base model, its adapters, and who uses which.

    Attributes: adapters (role -> adapter names), heads (role -> ScoreHead).
    """

    def __init__(self, base: PreTrainedModel, shards: Shards | None = None):
        super().__init__(base, shards)
        self.heads: Any = nn.ModuleDict()  # role -> ScoreHead
        self.adapters: dict[str, tuple[str, ...]] = {"base": ()}
        # whether samples grow in our cache: found by `sampling.rollout`, where someone samples
        self.grows: bool | None = None
        self.sampled_together: str | None = None  # which rows `generate` may take in a batch: found there too
        self.active = "base"
        self.rows_cut = False
        """Whether each process of the run computes a part of every row that is trained on: `packed/context.py`."""

    # ---- who is on the base ------------------------------------------------------------------------------------------

    def new_head(self) -> ScoreHead:
        """A head of zeros, as wide as what the base's own head reads, which is not always the decoder's width
        (OPT-350M)."""
        return ScoreHead(kept(self.base.get_output_embeddings()).shape[1])

    def assign(self, role: str, adapters: Sequence[str], head: ScoreHead | None = None) -> None:
        """Give a role its adapters, all active together, and its head."""
        self._changed(role)
        self.adapters[role] = tuple(adapters)
        if head is not None:
            self.heads[role] = head.to(self.base.device)

    def remove(self, role: str) -> None:
        """Take a role's adapters and head off the base again."""
        self._changed(role)
        names = self.adapters.pop(role)
        # PEFT warns where it deletes what is active
        self._activate(self.active if self.active in self.adapters else "base")
        for name in names:
            for layer in self.adapted:
                layer.delete_adapter(name)
            for rows in self.tokens:
                rows.delete_adapter(name, None)
            self.base.peft_config.pop(name, None)
            del self.configs[name]
        if role in self.heads:
            del self.heads[role]

    def train_only(self, *names: str, heads: Sequence[str] = ()) -> None:
        """Make the adapters `names` and the weights of `heads` trainable, and nothing else. Of an adapter that only
        scoring roles have, rows of the language model's head do not train: scores do not read them."""
        self._freeze_all()
        for name in names:
            for parameter in self.adapter_parameters(name):
                parameter.requires_grad_(True)
            held = [role in self.heads for role, adapters in self.adapters.items() if name in adapters]
            if held and all(held):
                self.head.freeze_rows(name)
        for role in heads:
            self.heads[role].weight.requires_grad_(True)

    def train_base(self) -> None:
        """Make every weight of the base that reads or writes text trainable: pretraining without adapters."""
        self.trunk = None
        parts = [self.base]
        if is_multimodal(self.base.config.to_dict()):
            parts = [self.base.get_decoder(), self.base.get_output_embeddings()]
        for parameter in chain.from_iterable(part.parameters() for part in parts):
            parameter.requires_grad_(True)

    def trainable(self) -> dict[str, Tensor]:
        return {k: p for k, p in self.named_parameters() if p.requires_grad}

    def _changed(self, role: str) -> None:
        """Its lower layers may not be those of the others any more."""
        if self.trunk is not None:
            self.trunk.roles.discard(role)

    def cut_rows(self, title: str) -> None:
        """Have each process compute a part of every row that is trained on. All enter together. Raises: InputError
        for a base of which parts of rows are not what they are of a whole one."""
        why = f"packed rows are not what it takes: {self.why_padded}"
        if self.packed:
            with torch.no_grad():
                why = difference(self.tried, lambda: self.tried.packed(context.hidden_states), "rows in parts")
        if why:
            raise InputError(
                f"{title}: parallel is context, but this base cannot compute a row in parts ({why}). Take replicate or "
                "shard."
            )
        self.rows_cut = True

    # ---- using a role ------------------------------------------------------------------------------------------------

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Activate `role`'s adapters inside."""
        before = self.active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: str) -> None:
        if role not in self.adapters:
            raise AlignError(f"no role {role!r} on this base; there are {', '.join(sorted(self.adapters))}.")
        names = list(self.adapters[role])
        self.active = role
        for layer in self.adapted:
            layer._active_adapter = names
        for rows in self.tokens:
            rows.use(names)

    def enable_activation_checkpointing(self) -> None:
        """Recompute activations in the backward, inside the role of the forward."""
        self.base.train()  # transformers checkpoints only in training mode; every dropout is 0
        self.base.activation_checkpointing_enable(
            activation_checkpointing_kwargs={
                "use_reentrant": False,
                "context_fn": lambda: (nullcontext(), self.use(self.active)),
            }
        )

    def batches(self, examples: Sequence[Example], budget: int) -> Iterator[tuple[list[int], Batch]]:
        """Every example once, packed: (indices into `examples`, batch). Over a base in shards all processes get equally
        many, the last ones of no example: forwards gather. How many is asked before the first of them: whoever has
        fewer would ask while others gather, and all wait."""
        mine, more = microbatches(examples, budget) if examples else [], 0
        if self.shards is not None and not self.shards.held:
            more = self.shards.most(len(mine)) - len(mine)
        for indices in mine:
            yield indices, pack([examples[i] for i in indices]).to(self.base.device)
        for _ in range(more):
            yield [], pack([examples[0] if examples else self._blank()]).to(self.base.device)

    def _blank(self) -> Example:
        """Two tokens, with what enters the first trained layer where examples have that."""
        width = self.base.config.get_text_config().hidden_size
        trunk = None if self.trunk is None else (torch.zeros(0, width), torch.zeros(2, width))
        return Example(((0, 0),), ((False, True),), trunk=trunk)

    def hidden(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Last hidden states of the active role: (T, D), or (N, D) of `rows (N)`, which costs less; from what is kept
        of its lower layers, where the batch has that."""
        if batch.trunk is not None and self.trunk is not None and self.active in self.trunk.roles:
            return self.trunk.top(batch, rows)
        if self.rows_cut and torch.is_grad_enabled():
            return context.hidden_states(self.base, batch, rows)
        return forward.hidden_states(self.base, batch, rows, self.packed)

    def hidden_as(self, role: str, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Last hidden states of `role`, as `hidden` gives those of the active one."""
        with self.use(role):
            return self.hidden(batch, rows)

    def logprobs(self, role: str, batch: Batch, temperature: float = 1.0) -> Tensor:
        """log-probabilities (T) of the batch's targets under `role`, 0 where they do not count."""
        with self.use(role):
            return forward.logprobs(self.hidden(batch, batch.rows), self.head, batch, temperature)

    def scores(self, role: str, batch: Batch) -> Tensor:
        """Reward scores (S), read at each branch's last token."""
        with self.use(role):
            return self.heads[role](self.hidden(batch, batch.ends))

    def scores_at(self, role: str, batch: Batch) -> Tensor:
        """Scores (N), read at each target that counts: what ends there has been seen."""
        with self.use(role):
            return self.heads[role](self.hidden(batch, batch.rows + 1))

    def values(self, role: str, batch: Batch) -> Tensor:
        """Values (T): of the state after `input_ids[t]`, before `targets[t]` is chosen; 0 where that target does not
        count."""
        return self.values_of(role, self.hidden_as(role, batch, batch.rows), batch)

    def values_of(self, role: str, hidden: Tensor, batch: Batch) -> Tensor:
        """Values (T) by the role's head on `hidden (N, D)` of `batch.rows`."""
        return forward.placed(self.heads[role](hidden), batch)
