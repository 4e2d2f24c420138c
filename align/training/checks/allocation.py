"""Adapters whose ranks are given out anew after each step: AdaLoRA's, as a callback of the trainer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from peft import AdaLoraConfig
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from align.adapters.adalora import Allocation
from align.models.roles import Roles

FILE = "allocation.pt"


class Allocating(TrainerCallback):
    """The ranks of all such adapters that train. `penalties` belong to the loss of each step."""

    def __init__(self, roles: Roles, steps: int):
        trained = {name for name in roles.configs if any(p.requires_grad for p in roles.adapter_parameters(name))}
        found = {name: config for name, config in roles.configs.items() if isinstance(config, AdaLoraConfig)}
        self.each = {
            name: Allocation(roles.base, name, config, steps) for name, config in found.items() if name in trained
        }

    def penalties(self) -> Iterator[Tensor]:
        return (allocation.penalty() for allocation in self.each.values())

    def figures(self) -> dict[str, float]:
        """Ranks that a matrix keeps on average; with several such adapters, of each by its name."""
        one = len(self.each) == 1
        return {"ranks" if one else f"ranks/{name}": found.ranks() for name, found in self.each.items()}

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """transformers has taken a step, and counts it later."""
        for allocation in self.each.values():
            allocation.after(state.global_step + 1)

    def save(self, folder: Path) -> None:
        if self.each:
            torch.save({name: found.state_dict() for name, found in self.each.items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        if self.each:
            saved = torch.load(folder / FILE, weights_only=True)
            for name, found in self.each.items():
                found.load_state_dict(saved[name])
