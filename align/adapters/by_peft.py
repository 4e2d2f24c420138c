"""What any adapter of PEFT's is asked, answered by PEFT's own layers: how it is read from a folder, whether it adds
something, and what its base is once it is merged."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.delora import DeloraLayer
from peft.tuners.ln_tuning.layer import LNTuningLayer
from torch import Tensor, nn

from align.folders.adapter import check_folder, resolved

ROUNDING = 16
"""How many times the precision of the base's numbers a merge that adds nothing may move the largest of a matrix:
rotations and rescaled norms round."""


def read(folder: Path) -> PeftConfig:
    """Settings in a folder. Raises: InputError where the adapter is of no kind that is known."""
    config = PeftConfig.from_peft_type(**check_folder(folder, resolved))
    config.inference_mode = False
    return config


def numbers(config: PeftConfig) -> Tensor:
    """The numbers among an adapter's settings, by their names' order: beside its tensors they decide what it adds."""
    found = [value for _, value in sorted(config.to_dict().items()) if isinstance(value, int | float)]
    return torch.tensor(found, dtype=torch.float64)


@torch.no_grad()
def merged(layer: Any, names: Sequence[str], matrix: str) -> Tensor:
    """The layer's parameter `matrix` (weight or bias) with the adapters `names` merged, by PEFT's own `merge` on a
    copy; the layer stays as it is."""
    own = {id(p) for p in layer.get_base_layer().parameters()}
    shared = {id(t): t for t in (*layer.parameters(), *layer.buffers()) if id(t) not in own}
    twin = copy.deepcopy(layer, shared)
    twin.merge(adapter_names=list(names))
    found: Tensor = getattr(twin.get_base_layer(), matrix)
    return found.detach()


def compute_as_base(base: nn.Module, name: str) -> None:
    """Have adapter `name`, whose weights are fp32, run on a base in 16 bits, where its layers do not see to it
    themselves: DeLoRA's norms become fp32 too, and norms give what they were given. What AdaLoRA divides by is no
    weight."""
    for layer in base.modules():
        if isinstance(layer, AdaLoraLayer) and name in layer.lora_E:
            plain_ranks(layer)
        if isinstance(layer, DeloraLayer) and name in layer.delora_w_norm:
            layer.delora_w_norm[name] = layer.delora_w_norm[name].float()
        if isinstance(layer, LNTuningLayer) and name in layer.ln_tuning_layers:
            norm = layer.ln_tuning_layers[name]
            if isinstance(norm, nn.LayerNorm):  # whose input has the type of its weights
                norm.register_forward_pre_hook(lambda norm, given: (given[0].to(norm.weight.dtype),))
            layer.register_forward_hook(lambda layer, given, found: found.to(given[0].dtype))


def adds_nothing(layers: Iterable[Any], name: str) -> bool:
    """Whether the base with this adapter merged is the base, but for rounding."""
    return all(_same(layer.get_base_layer().weight, merged(layer, [name], "weight")) for layer in layers)


def plain_ranks(layer: AdaLoraLayer) -> None:
    """Have the ranks by which PEFT divides be no weights of the model, as they never train; in fp32, as PEFT has those
    of a layer's first adapter in the base's 16 bits, and so computes two copies of one adapter differently."""
    module: Any = layer
    device = module.get_base_layer().weight.device
    ranks = {name: rank.detach().to(device, torch.float32) for name, rank in module.ranknum.items()}
    if "ranknum" in module._modules:
        del module.ranknum
    module.ranknum = ranks


def _same(weight: Tensor, other: Tensor) -> bool:
    largest, eps = weight.abs().max().item(), torch.finfo(weight.dtype).eps
    return bool(((other - weight).abs() <= ROUNDING * eps * largest).all())
