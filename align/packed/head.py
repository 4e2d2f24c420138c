"""The language-model head as a function of hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.packed.token_rows import TokenRows, bare
from align.parallel.gather import gathered
from align.parallel.narrow import Narrow, dtype_of, kept, product

COLUMNS = 2048
"""Block of the vocabulary that is drawn from at a time on a CPU: a quarter faster than all at once at 152k, with 16 and
64 rows (fp32)."""


class Head:
    """The language-model head of a transformers model as a function of hidden rows, with its logit scaling and
    soft-capping.

    Transformers applies those inside `forward`, where they would be lost by calling `lm_head` alone; the probe compares
    this head with the model's own logits.
    """

    def __init__(self, model: PreTrainedModel):
        config = model.config.get_text_config()
        head: Any = model.get_output_embeddings()
        self.module: Any = bare(head)
        embedding = bare(model.get_input_embeddings())
        self.owner: Any = embedding if kept(self.module) is kept(embedding) else self.module
        """What holds the matrix, and gathers it where the base is in shards."""
        self.rows: TokenRows | None = head if isinstance(head, TokenRows) else None
        self.softcap: float | None = getattr(config, "final_logit_softcapping", None)
        scale = getattr(config, "logit_scale", None)  # Cohere multiplies, Granite divides
        self.scale = float(scale) if scale is not None else 1.0 / float(getattr(config, "logits_scaling", 1.0))
        if getattr(config, "scale_decoder_outputs", False):  # T5 with tied embeddings
            self.scale *= float(config.hidden_size) ** -0.5
        more = getattr(model, "final_logits_bias", None)  # (1, V), of BART, Marian and their kin
        self.more: Tensor | None = more[0] if more is not None and more.any() else None

    @property
    def matrix(self) -> Tensor:
        """(V, D) as it is kept; of a base in shards whole inside `gathered(owner)`."""
        return kept(self.owner)

    @property
    def dtype(self) -> torch.dtype:
        """What its rows are used in."""
        return dtype_of(self.owner)

    @property
    def trainable(self) -> bool:
        return any(p.requires_grad for p in self.module.parameters())

    def replaced(self) -> list[tuple[Tensor, nn.Parameter]]:
        """(ids (k), rows (k, D)) that the active adapters put in the place of the head's."""
        return self.rows.replaced() if self.rows else []

    def freeze_rows(self, name: str) -> None:
        """Have the rows that adapter `name` has in the head alone, not in the embedding too, not train."""
        if self.rows is not None and self.rows.token_adapter.tied_adapter is None and self.rows.having([name]):
            self.rows.delta(name).requires_grad_(False)

    def weight(self, block: slice) -> Tensor:
        """A block of the head's rows, (block, D), those of the active adapters in their places."""
        weight = self.matrix[block].to(self.dtype)
        for ids, rows in self.replaced():
            inside = (ids >= block.start) & (ids < block.start + len(weight))
            if inside.any():
                weight = weight.index_copy(0, ids[inside] - block.start, rows[inside].to(weight.dtype))
        return weight

    def rows_of(self, targets: Tensor) -> Tensor:
        """The head's rows (N, D) of `targets (N)`."""
        found = self.matrix[targets].to(self.dtype)
        for ids, rows in self.replaced():
            hit = targets[:, None] == ids
            found = torch.where(hit.any(1, keepdim=True), rows.to(found.dtype)[hit.int().argmax(1)], found)
        return found

    def logits_of(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Logits (N) of `targets (N)`, one of each row of `hidden (N, D)`, computed in at least fp32: what the model
        rounds to its own precision is finer here."""
        with gathered(self.owner):
            x = hidden.to(_at_least_fp32(hidden))
            raw = (x * self.rows_of(targets).to(x.dtype)).sum(-1)
            for added in (self.module.bias, self.more):
                raw = raw if added is None else raw + added[targets]
        return self.shaped(raw, 1.0)[0]

    def __call__(self, hidden: Tensor) -> Tensor:
        """(N, D) -> logits (N, V) in at least fp32, each rounded as the model rounds it."""
        with gathered(self.owner):
            x = hidden.to(self.dtype)
            if self.rows:
                raw = self.rows(x)
            elif isinstance(self.module, Narrow):
                raw = product(x, self.module)
            else:
                raw = nn.functional.linear(x, self.matrix, self.module.bias)
        return self.shaped(raw if self.more is None else raw + self.more, 1.0)[0]

    def block(self, hidden: Tensor, block: slice, temperature: float) -> tuple[Tensor, Tensor | None, Tensor]:
        """Logits of a block of the vocabulary over `temperature`: (N, block), at least fp32; their derivative by the
        product with W over scale / temperature, where that is not 1; and that block of W."""
        weight = self.weight(block)
        return *self.product(hidden, weight, block, temperature), weight

    def product(
        self, hidden: Tensor, weight: Tensor, which: slice | Tensor, temperature: float
    ) -> tuple[Tensor, Tensor | None]:
        """Logits of the tokens `which` (k), whose rows are `weight (k, D)`, over `temperature`: (N, k), and their
        derivative as `shaped` gives it."""
        bias = self.module.bias
        raw = nn.functional.linear(hidden, weight, None if bias is None else bias[which])
        return self.shaped(raw if self.more is None else raw + self.more[which], temperature)

    def blocks(self, hidden: Tensor, temperature: float = 1.0) -> Iterator[Tensor]:
        """Logits block by block, each to be used while it is in the cache: (N, block) from left to right, at least
        fp32."""
        with gathered(self.owner):
            x, whole = hidden.to(self.dtype), len(self.matrix)
            size = COLUMNS if x.device.type == "cpu" else whole
            for start in range(0, whole, size):
                yield self.block(x, slice(start, start + size), temperature)[0]

    def shaped(self, raw: Tensor, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Scaled and capped in the dtype of the product, as the model does before anyone takes its logits to fp32."""
        bend = None
        if self.scale != 1.0:
            raw = raw * self.scale
        if self.softcap is not None:
            bent = torch.tanh(raw / self.softcap)
            raw, bend = bent * self.softcap, 1 - bent.to(_at_least_fp32(bent)).square()
        logits = raw.to(_at_least_fp32(raw))
        return (logits if temperature == 1.0 else logits * (1.0 / temperature)), bend


def _at_least_fp32(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
