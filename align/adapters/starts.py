"""Starts of LoRA's factors that are parts of the base's own matrices: PiSSA and OLoRA, and LoftQ.

PEFT computes the factors A0, B0 and takes them off the base: W = W' + s B0 A0, and W' x + s B A x is computed. Here the
base, which all roles share, stays as it is, and a second adapter of A0 and -B0 that never trains takes them off
instead: W x - s B0 A0 x + s B A x, the same function. It is PEFT's own conversion to plain LoRA
(`path_initial_model_for_weight_conversion`), in two parts.

LoftQ takes nothing off: the base Q that all roles share is in 4 bits, and Q + s B0 A0 is as near to the matrix W that
it was made from as a rank allows: one step of Li et al. 2023 (arXiv 2310.08659) algorithm 1, as PEFT's
`replace_lora_weights_loftq` takes it on a base that is quantised already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora.layer import Linear
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from peft.utils.loftq_utils import _low_rank_decomposition
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.adapters.lora import is_conv1d
from align.adapters.targets import places
from align.ground.errors import InputError
from align.recipe import Adapter


def check_rank(settings: Adapter, model: PreTrainedModel) -> None:
    """Raises: InputError where a matrix has not as many singular vectors as the rank asks for."""
    for name in sorted(places(settings.targets, model, settings.layers).names):
        sizes = matrix(model.get_submodule(name)).shape
        if settings.rank > min(sizes):
            raise InputError(
                f"adapter.rank is {settings.rank}, and {name} of {sizes[0]} x {sizes[1]} has no more than {min(sizes)} "
                f"parts, of which init_lora_weights {settings.init_lora_weights} takes the first. Take no more."
            )


def matrix(module: object) -> Tensor:
    """(out, in): the matrix of a linear layer of the base, or of what PEFT put around it."""
    inner: Any = module
    while hasattr(inner, "get_base_layer"):
        inner = inner.get_base_layer()
    weight: Tensor = dequantize_module_weight(inner)
    return weight.T if is_conv1d(inner) else weight


@torch.no_grad()
def take_off(layers: Iterable[BaseTunerLayer], kind: str, trained: str, frozen: str) -> None:
    """Have adapter `trained` start at PEFT's factors of each matrix, and `frozen` take them off again."""
    layer: Any
    for layer in layers:
        if trained in layer.lora_A:
            a, b = factors(layer, trained, kind)
            for name, sign in ((trained, 1), (frozen, -1)):
                layer.lora_A[name].weight.copy_(a)
                layer.lora_B[name].weight.copy_(sign * b)


def factors(module: BaseTunerLayer, name: str, kind: str) -> tuple[Tensor, Tensor]:
    """A0 (R, in) and B0 (out, R), by PEFT on a copy of the layer's matrix in fp32."""
    layer: Any = module
    weight = matrix(module)
    copied = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=torch.float32)
    copied.weight.copy_(weight)
    config = LoraConfig(use_rslora=layer.use_rslora[name], init_lora_weights=kind)  # type: ignore[arg-type]
    made: Any = Linear(copied, name, config, r=layer.r[name], lora_alpha=layer.lora_alpha[name])
    return made.lora_A[name].weight, made.lora_B[name].weight


@torch.no_grad()
def correct(layers: Mapping[str, BaseTunerLayer], name: str, whole: Callable[[str], Tensor]) -> None:
    """Have adapter `name` start where s B A is what 4 bits took from each matrix, as far as its rank reaches: eq. 7
    there. `layers` by the names under which `whole` gives their matrices (out, in) in full.

    PEFT leaves s = alpha / rank out, and so starts elsewhere unless that is 1; half of it is taken off each factor.
    """
    layer: Any
    for key, layer in layers.items():
        if name in layer.lora_A:
            there = matrix(layer).float()
            lost = whole(key).to(there.device, torch.float32) - there
            found = _low_rank_decomposition(lost, reduced_rank=layer.r[name])
            half = layer.scaling[name] ** 0.5
            layer.lora_A[name].weight.copy_(found["R"] / half)
            layer.lora_B[name].weight.copy_(found["L"] / half)
