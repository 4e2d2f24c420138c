"""EVA: LoRA's A starts at the directions in which what enters a layer varies most over the data, B at nothing.

Paischer et al. 2024 (arXiv 2410.07170), by PEFT's own incremental PCA of each layer's inputs, over records of the run
as they are packed; every layer keeps the rank that is asked for (PEFT's `rho` 1). With B at nothing the model is the
base, so that a reference on it needs no part of the start.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from peft import EvaConfig, LoraConfig, get_eva_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.adapters.targets import places
from align.data.examples import Example
from align.packed.batches import batches
from align.packed.pack import Batch
from align.recipe import Adapter

RECORDS = 256
"""Records that are looked at, the first of the data."""
TOKENS = 4096
"""Tokens of a packed row: how many are taken in at a time decides what is found, so no setting of memory does."""


def directions(
    base: PreTrainedModel, settings: Adapter, examples: Sequence[Example], forward: Callable[[Batch], object]
) -> dict[str, Tensor]:
    """Layer -> A (R, in), for a base without adapters, by PEFT; `forward` runs a packed row through it."""
    rows = [batch for _, batch in batches(examples[:RECORDS], TOKENS, base.device)]
    names = sorted(places(settings.targets, base, settings.layers).names)
    config = LoraConfig(r=settings.rank, target_modules=names, init_lora_weights="eva", eva_config=EvaConfig(rho=1.0))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is initialized")
        found: dict[str, Tensor] = get_eva_state_dict(
            base,
            rows,
            peft_config=config,
            forward_fn=lambda model, batch: forward(batch),
            prepare_model_inputs_fn=lambda batch, config: None,
            prepare_layer_inputs_fn=_rows,
            gather_distributed_inputs=False,
            show_progress_bar=False,
        )
    return found


def _rows(entered: Tensor | tuple[Tensor, ...], batch: object, name: str) -> Tensor:
    """(tokens, in): what enters a layer."""
    tensor = entered[0] if isinstance(entered, tuple) else entered
    return tensor.reshape(-1, tensor.shape[-1])


@torch.no_grad()
def start(base: nn.Module, name: str, found: dict[str, Tensor]) -> None:
    """Have adapter `name` start there."""
    for layer, first in found.items():
        module: Any = base.get_submodule(layer)
        module.lora_A[name].weight.copy_(first)
