"""A role's adapters as one LoRA in PEFT's layout, which a server can load: its factors are those of all of them, one
above the other, and hold their scales.

With A = (A_1; A_2) and B = (s_1 B_1, s_2 B_2), B A = s_1 B_1 A_1 + s_2 B_2 A_2: exact but for the products with s.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from peft import LoraConfig
from safetensors.torch import save_file
from torch import Tensor

from align.adapters.arithmetic import DOWN, PREFIX, UP
from align.adapters.methods import holds
from align.adapters.targets import target_parameters
from align.folders.adapter import WEIGHTS
from align.ground.errors import InputError

if TYPE_CHECKING:
    from align.models.roles import Roles


def check_servable(roles: Roles, role: str) -> None:
    """Raises: InputError for adapters that a server cannot take."""
    for name in roles.adapters[role]:
        config = roles.configs[name]
        plain = isinstance(config, LoraConfig) and not config.use_dora and config.bias == "none"
        if not plain or target_parameters(config):
            raise InputError(
                "rollouts.server takes LoRA of linear layers, and the policy has an adapter of another kind "
                f"({config.peft_type}). Use `adapter: {{method: lora}}`, or leave out rollouts."
            )
        if any(rows.having([name]) for rows in roles.tokens):
            raise InputError("rollouts.server takes no adapters with rows of added tokens. Leave out rollouts.")


@torch.no_grad()
def save_as_one(roles: Roles, role: str, folder: Path) -> None:
    """Write all adapters of a role as one of a rank that all layers share, those of lower rank filled up with zeros."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    adapted = set(roles.adapted)
    for name, layer in roles.base.named_modules():
        held = [adapter for adapter in roles.adapters[role] if layer in adapted and holds(layer, adapter)]
        if held:
            factors[name] = _together(layer, held)
    rank = max(down.shape[0] for down, _ in factors.values())
    tensors = {}
    for name, (down, up) in factors.items():
        more = rank - down.shape[0]
        tensors[f"{PREFIX}{name}{DOWN}"] = torch.nn.functional.pad(down, (0, 0, 0, more)).cpu().contiguous()
        tensors[f"{PREFIX}{name}{UP}"] = torch.nn.functional.pad(up, (0, more)).cpu().contiguous()
    folder.mkdir(parents=True)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    first: Any = roles.configs[roles.adapters[role][0]]
    config = LoraConfig(
        r=rank,
        lora_alpha=rank,
        target_modules=sorted({name.rpartition(".")[2] for name in factors}),
        fan_in_fan_out=first.fan_in_fan_out,
        task_type="CAUSAL_LM",
        inference_mode=True,
    )
    config.save_pretrained(str(folder))
    for path in (folder, *folder.iterdir()):
        path.chmod(0o755 if path.is_dir() else 0o644)  # the server may be another user


def _together(layer: Any, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """(A (sum of R, in), B (out, sum of R)) of a layer's adapters, B with their scales."""
    down = torch.cat([layer.lora_A[name].weight for name in names])
    up = torch.cat([layer.lora_B[name].weight * layer.scaling[name] for name in names], 1)
    return down, up
