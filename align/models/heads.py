"""Heads of scoring roles."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn


class ScoreHead(nn.Module):
    """A linear score or value of a hidden state: weight (D,), bias. Kept in its own safetensors file, never in PEFT's
    `modules_to_save`."""

    def __init__(self, hidden_size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()), requires_grad=False)  # set once, by centring

    def forward(self, hidden: Tensor) -> Tensor:
        """(N, D) -> (N,) in fp32 at least."""
        return hidden.to(torch.promote_types(hidden.dtype, self.weight.dtype)) @ self.weight + self.bias

    def save(self, path: Path) -> None:
        save_file({k: v.detach().contiguous().cpu() for k, v in self.state_dict().items()}, path)

    @staticmethod
    def load(path: Path) -> ScoreHead:
        tensors = load_file(path)
        head = ScoreHead(tensors["weight"].shape[0]).to(tensors["weight"].dtype)
        head.load_state_dict(tensors)
        return head
