"""A language model that is two tables, of tokens and of places, in fp64: its log-probs packed as Align takes them, and
padded as TRL's trainers take them, so that both differentiate to the same tensors."""

from __future__ import annotations

from collections import defaultdict
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from align.data.examples import Example
from align.packed.forward import logprobs
from align.packed.head import Head
from align.packed.pack import Batch
from tests.models.models import VOCAB


def table(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(VOCAB, VOCAB, generator=generator, dtype=torch.float64) / 2).requires_grad_()


class Tables:
    """As `Roles`: the logits at a position are the row of its token plus the row of its place."""

    base: Any = SimpleNamespace(device=torch.device("cpu"))
    shards = None

    def __init__(self, seed: int = 0) -> None:
        self.tokens, self.places = table(seed), table(seed + 1)
        identity = SimpleNamespace(weight=torch.eye(VOCAB, dtype=torch.float64), bias=None, parameters=list)
        config = SimpleNamespace(get_text_config=SimpleNamespace)
        matrices = dict.fromkeys(("get_input_embeddings", "get_output_embeddings"), lambda: identity)
        self.head = Head(SimpleNamespace(config=config, **matrices))  # type: ignore[arg-type]

    def use(self, role: str) -> Any:
        return nullcontext()

    def hidden(self, batch: Batch, rows: Tensor) -> Tensor:
        return (self.tokens[batch.input_ids[0]] + self.places[batch.position_ids[0]])[rows]

    def logprobs(self, role: str, batch: Batch, temperature: float = 1.0) -> Tensor:
        return logprobs(self.hidden(batch, batch.rows), self.head, batch, temperature)

    def gradients(self, loss: Tensor) -> Tensor:
        return torch.cat(torch.autograd.grad(loss, [self.tokens, self.places]))


def coarse(values: Tensor) -> Tensor:
    """Rounded so that sums of them are exact in 32 bits, in which a reference's log-probs are kept."""
    return (values * 64).round() / 64


class Padded(torch.nn.Module):
    """The same model as TRL calls one."""

    is_gradient_checkpointing = False

    def __init__(self, tables: Tables, dtype: torch.dtype = torch.float64, reference: bool = False) -> None:
        super().__init__()
        self.tables, self.dtype, self.reference = tables, dtype, reference

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None, **_: object
    ) -> SimpleNamespace:
        places = (attention_mask.cumsum(1) - 1).clamp(min=0)
        logits = self.tables.tokens[input_ids] + self.tables.places[places]
        if labels is None:
            return SimpleNamespace(logits=logits)
        every = logits[:, :-1].log_softmax(-1)
        targets, counts = labels[:, 1:].clamp(min=0), labels[:, 1:] != -100
        found = torch.where(counts, every.gather(-1, targets[..., None])[..., 0], 0.0).to(self.dtype)
        found = coarse(found) if self.reference else found
        nothing = torch.zeros_like(found)
        return SimpleNamespace(
            log_probs=found,
            log_sum_sq_probs=(2 * every).logsumexp(-1),
            entropy=nothing,
            mean_logits=nothing,
            is_top1=nothing.bool(),
        )


def padded(examples: list[Example]) -> dict[str, Tensor]:
    """Their first sequences, then their second ones, where they have such, padded on the right."""
    rows = [(list(e.sequences[i]), list(e.supervised[i])) for i in range(len(examples[0].sequences)) for e in examples]
    longest = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in rows])
    return {
        "input_ids": ids,
        "attention_mask": torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in rows]),
        "completion_mask": torch.tensor([[*map(int, mask), *[0] * (longest - len(mask))] for _, mask in rows]),
    }


def trainer(**more: Any) -> Any:
    """What a trainer's loss reads of the trainer."""
    everyone = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x, unwrap_model=lambda x: x
    )
    args = SimpleNamespace(gradient_checkpointing_kwargs=None, **more.pop("args", {}))
    common = dict(aux_loss_enabled=False, precompute_ref_logps=False, _total_train_tokens=0, _tp_size=1)
    return SimpleNamespace(
        accelerator=everyone, args=args, _metrics=defaultdict(lambda: defaultdict(list)), **{**common, **more}
    )
