"""AdaLoRA: of the ranks that all matrices have together, those are kept that training shows to matter.

Zhang et al. 2023 (arXiv 2303.10512): W + (alpha / R) P diag(E) Q, with P and Q near orthogonal by a term of the loss
(eq. 4), and numbers of E set to 0 by PEFT's own `RankAllocator`, from `rank` to `target_rank` a matrix on average by a
cubic schedule (eq. 12). It starts as soon as a tenth of the steps are taken and leaves three tenths to what is left.
What goes on from such an adapter trains what is left, and takes no more away.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from peft import AdaLoraConfig
from peft.tuners.adalora import RankAllocator
from torch import Tensor, nn

from align.adapters import by_peft
from align.ground.errors import InputError

FIRST, LAST = 0.1, 0.3
"""Shares of the steps before ranks are taken away, and after."""
LEFT = 2 / 3
"""Of the ranks, where no `target_rank` says how many: the paper starts at one and a half times what it ends with."""


def config(*, init_r: int, lora_alpha: float, target_r: int | None, **places: object) -> AdaLoraConfig:
    """PEFT's settings. As PEFT has it no more than one such adapter of a base trains, and so to it none does: roles say
    what trains, and the steps are counted by `Allocation`."""
    left = target_r or max(1, int(LEFT * init_r))
    given: Mapping[str, Any] = places
    made = AdaLoraConfig(init_r=init_r, target_r=left, total_step=2, inference_mode=True, **given)
    made.lora_alpha = cast(int, lora_alpha)
    return made


def read(folder: Path) -> AdaLoraConfig:
    """Settings in a folder. Raises: InputError as `by_peft.read` does."""
    found = by_peft.read(folder)
    assert isinstance(found, AdaLoraConfig)
    found.inference_mode, found.lora_dropout = True, 0.0
    return found


def adds_nothing(tensors: Mapping[str, Tensor]) -> bool:
    return not any(bool(t.any()) for key, t in tensors.items() if "lora_E" in key)


def in_full(tensors: Mapping[str, Tensor], pattern: Mapping[str, list[bool]]) -> dict[str, Tensor]:
    """The tensors that PEFT saved of an adapter with what its `rank_pattern` left out put back: zeros in E, so that the
    function is the same, as each matrix is still scaled by the rank that it began with, and in P and Q what they began
    with in PEFT (a normal of 0.02), so that the term of the loss reaches them where a matrix has no rank left."""
    out, draw = dict(tensors), torch.Generator().manual_seed(0)
    for name, kept in pattern.items():
        layer, rows = name.rpartition(".lora_E")[0], torch.tensor(kept)
        for factor in ("lora_A", "lora_E", "lora_B"):
            key = next(key for key in out if f".{key}".endswith(f".{layer}.{factor}"))
            across = factor == "lora_B"
            held = out[key].T if across else out[key]
            drawn = 0.02 * torch.randn(len(kept), held.shape[1], generator=draw)
            whole = held.new_zeros(drawn.shape) if factor == "lora_E" else drawn.to(held)
            whole[rows] = held
            out[key] = (whole.T if across else whole).contiguous()
    return out


class Allocation:
    """Which ranks of adapter `name`, which trains for `steps`, are kept; in place, after each step."""

    def __init__(self, base: nn.Module, name: str, config: AdaLoraConfig, steps: int):
        self.base, self.name = base, name
        values = torch.cat([p.detach().flatten() for _, p in self._own("lora_E")])
        self.kept = [p.detach() != 0 for _, p in self._own("lora_E")] if bool(values.any()) else None
        if self.kept is None and steps < 2:
            raise InputError(
                f"adapter.method is adalora, which takes ranks away by what the steps before show, and {steps} is to "
                "be taken. Take at least 2, or lora."
            )
        whole = AdaLoraConfig(
            init_r=config.init_r,
            target_r=config.target_r,
            total_step=steps,
            tinit=int(FIRST * steps) if self.kept is None else 0,
            tfinal=int(LAST * steps) if self.kept is None else 0,
            orth_reg_weight=config.orth_reg_weight,
        )
        self.weight, self.ends = whole.orth_reg_weight, steps - whole.tfinal
        self.allocator = RankAllocator(base, whole, name)
        self.pattern: dict[str, list[bool]] = {}

    def _own(self, *marks: str) -> Iterator[tuple[str, nn.Parameter]]:
        for key, parameter in self.base.named_parameters():
            if any(key.endswith(f".{mark}.{self.name}") for mark in marks):
                yield key, parameter

    def penalty(self) -> Tensor:
        """How far P and Q are from orthogonal, the mean of their norms as PEFT adds it to a loss (eq. 4)."""
        norms = []
        for key, factor in self._own("lora_A", "lora_B"):
            square = factor @ factor.T if ".lora_A." in key else factor.T @ factor  # (R, R)
            norms.append(torch.linalg.matrix_norm(square - torch.eye(len(square)).to(square)))
        return self.weight * torch.stack(norms).mean()

    @torch.no_grad()
    def after(self, step: int) -> None:
        """`step` steps are taken, and gradients are still there: as `AdaLoraModel.update_and_allocate`."""
        if self.kept is not None:
            for (_, values), kept in zip(self._own("lora_E"), self.kept, strict=True):
                values.masked_fill_(~kept, 0.0)
        elif step > self.ends:
            self.allocator.mask_using_rank_pattern(self.base, self.pattern)
        else:
            _, found = self.allocator.update_and_allocate(self.base, step, force_mask=step == self.ends)
            self.pattern = found or self.pattern

    def ranks(self) -> float:
        """How many a matrix keeps, on average."""
        counts = [int((p != 0).sum()) for _, p in self._own("lora_E")]
        return sum(counts) / len(counts)

    def state_dict(self) -> dict[str, object]:
        a = self.allocator
        return {"ipt": a.ipt, "mean": a.exp_avg_ipt, "spread": a.exp_avg_unc, "pattern": self.pattern}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        a: Any = self.allocator
        a.ipt, a.exp_avg_ipt, a.exp_avg_unc = state["ipt"], state["mean"], state["spread"]
        self.pattern = cast("dict[str, list[bool]]", state["pattern"])
