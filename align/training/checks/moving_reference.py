"""A reference that follows the policy: every so many steps reference <- alpha policy + (1 - alpha) reference.

Gorbatovski et al. 2024 (TR-DPO, arXiv 2404.09656): its soft update with alpha below 1, and with 1 its hard one, which
is GRPO's iterated reference too (arXiv 2402.03300, algorithm 1). It is the model's weights that are mixed, as in TRL,
which has it for whole models alone. What adapters add to these is a sum,

    dW_ref <- alpha dW + (1 - alpha) dW_ref,

so that the reference is the policy's former adapters, each with its share: B is scaled, no product is multiplied out,
and the base stays as it is. One whose share is below fp32's rounding gives its place to the newest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import TypedDict, cast

import torch
from torch import Tensor

from align.ground.errors import InputError
from align.models.roles import Roles
from align.recipe.training import ReferenceConfig

FILE = "reference.jsonl"
"""Where an artifact notes after which steps its reference moved, and the digest of the policy that it moved to."""


class MovesState(TypedDict):
    """What a checkpoint keeps."""

    moves: list[tuple[int, str]]
    due: int
    tensors: list[Tensor]


class MovingReference:
    """Role "reference" of `roles`, which starts where it is and moves as `config` says. To be made once the policy is
    on the base, before it is said what trains.

    Raises: InputError where the policy's adapter is not the sum of its factors alone and a part of it is asked for.
    """

    def __init__(self, roles: Roles, config: ReferenceConfig):
        assert config.ref_model_sync_steps is not None
        self.roles, self.every, self.alpha = roles, config.ref_model_sync_steps, config.ref_model_mixup_alpha
        self.policy = roles.adapters["policy"]
        if self.alpha < 1:
            check_is_sum(roles, self.policy[-1])
        self.slots = [f"reference_then_{i}" for i in range(config.snapshots)]
        for slot in self.slots:
            roles.add_adapter(slot, deepcopy(roles.configs[self.policy[-1]]))
        for tensor, now in zip(self._tensors(self.slots[0]), self._tensors(self.policy[-1]), strict=True):
            tensor.data.copy_(now)
        self.moves: list[tuple[int, str]] = []
        self.due = 0

    def after(self, steps: int) -> None:
        """Move it where so many optimizer steps are done and that is a time to."""
        if steps // self.every > self.due:
            self.due = steps // self.every
            self._move(steps)

    @torch.no_grad()
    def _move(self, steps: int) -> None:
        if self.alpha < 1:
            for slot in self.slots:
                self._scale(slot, 1 - self.alpha)
        slot = self.slots[(len(self.moves) + 1) % len(self.slots)]
        seen = hashlib.sha256()
        for tensor, now in zip(self._tensors(slot), self._tensors(self.policy[-1]), strict=True):
            tensor.copy_(now)
            seen.update(now.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        if self.alpha < 1:
            self._scale(slot, self.alpha)
        self.moves.append((steps, seen.hexdigest()))
        self._take_part()

    def _scale(self, slot: str, by: float) -> None:
        for key, tensor in self.roles.base.named_parameters():
            if f"lora_B.{slot}." in key:
                tensor.mul_(by)

    def _take_part(self) -> None:
        self.roles.assign("reference", [*self.policy[:-1], *self.slots[: len(self.moves) + 1]])

    def _tensors(self, name: str) -> list[torch.nn.Parameter]:
        return list(self.roles.adapter_parameters(name))

    def figures(self) -> dict[str, float]:
        return {"reference/moves": len(self.moves)}

    def note(self, folder: Path) -> None:
        """Write where it went."""
        rows = [json.dumps({"step": step, "policy": digest}) + "\n" for step, digest in self.moves]
        (folder / FILE).write_text("".join(rows), encoding="utf-8")

    def state_dict(self) -> MovesState:
        tensors = [tensor.detach().clone() for slot in self.slots for tensor in self._tensors(slot)]
        return {"moves": list(self.moves), "due": self.due, "tensors": tensors}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        saved = cast(MovesState, state)
        self.moves, self.due = [(step, digest) for step, digest in saved["moves"]], saved["due"]
        mine = [tensor for slot in self.slots for tensor in self._tensors(slot)]
        for tensor, its in zip(mine, saved["tensors"], strict=True):
            tensor.data.copy_(its)
        if self.moves:
            self._take_part()


def check_is_sum(roles: Roles, name: str) -> None:
    """Raises: InputError for an adapter of more than two factors, as one with rows of tokens is."""
    more = [key for key in roles.adapter_state(name) if "lora_A" not in key and "lora_B" not in key]
    if more:
        raise InputError(
            f"ref_model_mixup_alpha is below 1, which mixes products of two factors, and the adapter has {more[0]} "
            "beside them. Set it to 1."
        )
