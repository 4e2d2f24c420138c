"""Several LoRA adapters as one, by PEFT's `add_weighted_adapter`: sums, TIES, DARE, and what is left of a low rank.

PEFT computes on a model that has the adapters' layers and no weights of its own, so that no base is loaded for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn

from align.adapters.methods import read_config
from align.folders.adapter import WEIGHTS
from align.ground.errors import InputError
from align.recipe.adapters import BlendMethod

PREFIX, DOWN, UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"


@dataclass(frozen=True)
class Weighed:
    """An adapter and how much of it is taken."""

    config: LoraConfig
    tensors: Mapping[str, Tensor]
    weight: float

    @property
    def layers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Name -> A (R, in) and B (out, R)."""
        names = [key.removeprefix(PREFIX).removesuffix(DOWN) for key in self.tensors if key.endswith(DOWN)]
        return {name: (self.tensors[f"{PREFIX}{name}{DOWN}"], self.tensors[f"{PREFIX}{name}{UP}"]) for name in names}


def part(folder: Path, weight: float) -> Weighed:
    """The adapter in a folder in PEFT's layout. Raises: InputError for one that is no LoRA."""
    config = read_config(folder)
    assert isinstance(config, LoraConfig)
    return Weighed(config, load_file(folder / WEIGHTS), weight)


def blend(
    parts: Sequence[Weighed],
    how: BlendMethod,
    rank: int | None = None,
    density: float | None = None,
    sign: Literal["total", "frequency"] = "total",
    seed: int = 0,
    order: Sequence[str] = (),
) -> tuple[LoraConfig, dict[str, Tensor]]:
    """Settings and tensors of one adapter, as PEFT makes it of several; `rank` is of what is cut by singular values,
    `density` the share of numbers that TIES and DARE keep, `seed` that of DARE's draws, which go through the layers in
    the `order` of the model's modules.

    Raises: InputError for factors of different ranks where they are added one by one, and for a rank that a matrix has
    not.
    """
    if how.endswith("svd"):
        check_rank(parts, rank or max(p.config.r for p in parts))
    if len(parts) == 1 and how == "svd":  # of one alone PEFT takes the factors as they are, whatever the method
        parts = [replace(parts[0], weight=parts[0].weight / 2)] * 2
    names = [f"part{i}" for i in range(len(parts))]
    model = carrier(parts, names, order)
    torch.manual_seed(seed)
    try:
        model.add_weighted_adapter(
            names, [p.weight for p in parts], "blend", how, rank, None, False, None, density, sign
        )
    except ValueError as error:
        raise InputError(f"method {how}: {error}") from error
    tensors = dict(get_peft_model_state_dict(model, adapter_name="blend", save_embedding_layers=False))
    made: Any = model.peft_config["blend"]
    first = parts[0].config
    places: dict[str, Any] = {}
    if any(_places(p.config) != _places(first) for p in parts):
        layers = {name for p in parts for name in p.layers}
        places = {"target_modules": layers, "layers_to_transform": None, "layers_pattern": None}
    # PEFT's own factors hold every scale: alpha / rank is 1, which rsLoRA's would not be
    config = replace(first, r=made.r, lora_alpha=made.r, use_rslora=False, rank_pattern={}, alpha_pattern={}, **places)
    return config, {key: tensor.contiguous() for key, tensor in tensors.items()}


def check_rank(parts: Sequence[Weighed], rank: int) -> None:
    """Raises: InputError where a matrix has fewer singular values than `rank`."""
    for p in parts:
        for name, (down, up) in sorted(p.layers.items()):
            if (most := min(down.shape[1], up.shape[0])) < rank:
                raise InputError(
                    f"the rank is {rank}, and {name} of {up.shape[0]} x {down.shape[1]} has no more than {most}. Take "
                    "a lower one, or method cat, which cuts nothing."
                )


@torch.no_grad()
def fill(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter's tensors, by their stored names, into a live one's. Raises: InputError where these differ."""
    if wrong := {f"{PREFIX}{key}" for key in state} ^ tensors.keys():
        raise InputError(f"the blend does not fit the base: {len(wrong)} tensors differ, such as {sorted(wrong)[0]}.")
    for key, tensor in state.items():
        tensor.copy_(tensors[f"{PREFIX}{key}"])


def carrier(parts: Sequence[Weighed], names: Sequence[str], order: Sequence[str] = ()) -> PeftModel:
    """A model of the layers that any of the adapters has, whose own matrices are one zero each, and the adapters."""
    root = nn.Module()
    place = {name: i for i, name in enumerate(order)}
    layers = {name: factors for p in parts for name, factors in p.layers.items()}
    for name, (down, up) in sorted(layers.items(), key=lambda item: place.get(item[0], 0)):
        *path, last = name.split(".")
        at = root
        for step in path:
            if step not in dict(at.named_children()):
                at.add_module(step, nn.Module())
            at = at.get_submodule(step)
        linear = nn.Linear(1, 1, bias=False)
        linear.in_features, linear.out_features = down.shape[1], up.shape[0]
        linear.weight = nn.Parameter(torch.zeros(1).expand(up.shape[0], down.shape[1]), requires_grad=False)
        at.add_module(last, linear)
    model: Any = None
    for name, p in zip(names, parts, strict=True):
        own: dict[str, Any] = {"target_modules": set(p.layers), "layers_to_transform": None, "layers_pattern": None}
        config = replace(p.config, task_type=None, base_model_name_or_path=None, fan_in_fan_out=False, **own)
        model = model or get_peft_model(root, config, adapter_name=name)
        if name not in model.peft_config:
            model.add_adapter(name, config)
        set_peft_model_state_dict(model, dict(p.tensors), adapter_name=name)
    made: PeftModel = model
    return made


def singular_values(parts: Sequence[Weighed]) -> list[Tensor]:
    """(sum of R) of each layer: of the weighted sum of what the adapters add."""
    names = [f"part{i}" for i in range(len(parts))]
    model: Any = carrier(parts, names)
    found = []
    for name in sorted({name for p in parts for name in p.layers}):
        layer: Any = model.base_model.model.get_submodule(name)
        held = [(n, p.weight) for n, p in zip(names, parts, strict=True) if n in layer.lora_A]
        down = torch.cat([layer.lora_A[n].weight.detach() * layer.scaling[n] * weight for n, weight in held])
        up = torch.cat([layer.lora_B[n].weight.detach() for n, _ in held], 1)
        # of B A = Q_B R_B R_A^T Q_A^T those of the small one in the middle
        small = torch.linalg.qr(up.double())[1] @ torch.linalg.qr(down.double().T)[1].T
        found.append(torch.linalg.svdvals(small))
    return found


def kept(values: Sequence[Tensor], rank: int) -> float:
    """The share of all squared singular values that the `rank` largest of each layer are."""
    whole = sum(float(s.square().sum()) for s in values)
    return sum(float(s[:rank].square().sum()) for s in values) / whole if whole else 1.0


def rank_for(values: Sequence[Tensor], share: float) -> int:
    """The smallest rank that keeps this share."""
    return next(rank for rank in range(1, 1 + max(map(len, values))) if kept(values, rank) >= share - 1e-12)


def _places(config: LoraConfig) -> tuple[object, ...]:
    targets = config.target_modules
    named = frozenset(targets) if not isinstance(targets, str) and targets is not None else targets
    return named, str(config.layers_to_transform), str(config.layers_pattern)
