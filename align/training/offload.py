"""Activations in CPU memory between forward and backward: what autograd saves leaves the GPU, weights stay where they
are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from align.ground.errors import InputError

SMALLEST = 1 << 14
"""Tensors of fewer elements stay: moving them costs more than they take."""

Saved = Tensor | tuple[Tensor, torch.device]
"""A tensor that stayed, or its copy on the CPU and where it was."""


def check_device(device: torch.device) -> None:
    """Raises: InputError where there is no other memory to move to."""
    if device.type == "cpu":
        raise InputError(
            "activation_offload moves activations from a GPU to CPU memory; this machine computes on the CPU. Leave "
            "it out."
        )


class Offload(torch.autograd.graph.saved_tensors_hooks):
    """Within it, saved activations go to pinned CPU memory and come back when the backward asks for them."""

    def __init__(self, model: nn.Module, smallest: int = SMALLEST):
        weights = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
        self.moved = 0  # bytes, for whoever measures

        def pack(tensor: Tensor) -> Saved:
            if tensor.numel() < smallest or tensor.untyped_storage().data_ptr() in weights:
                return tensor
            kept = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            kept.copy_(tensor, non_blocking=tensor.is_cuda)
            self.moved += kept.nbytes
            return kept, tensor.device

        def unpack(saved: Saved) -> Tensor:
            if isinstance(saved, Tensor):
                return saved
            kept, device = saved
            return kept.to(device, non_blocking=True)

        super().__init__(pack, unpack)
