"""A stage's roles and loss as one module: the forward of a micro-batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import nn

from align.losses.loss import Loss, combine
from align.models.roles import Roles
from align.packed.pack import Batch
from align.training.noise import noisy
from align.training.offload import Offload

LossFunction = Callable[[Roles, Batch], Loss | Iterator[Loss]]
"""A loss, or its parts one after the other where their graphs have nothing in common."""


class StepModule(nn.Module):
    """Roles and a loss as one module, so that DDP sees one forward and one backward per micro-batch. Without DDP a loss
    is taken part by part, each differentiated before the next is computed.

    `noise`: NEFTune's alpha, where embeddings are to have noise.
    A base that is held in fp32 because its own weights train computes in `compute` (autocast); frozen bases have that
    dtype anyway.
    """

    def __init__(
        self,
        roles: Roles,
        loss: LossFunction,
        compute: torch.dtype,
        offload: bool = False,
        noise: float | None = None,
    ):
        super().__init__()
        self.roles, self.loss, self.compute, self.offload, self.noise = roles, loss, compute, offload, noise

    def forward(self, batch: Batch) -> Loss:
        return combine(*self.parts(batch))

    def parts(self, batch: Batch) -> Iterator[Loss]:
        """Each is computed when it is asked for."""
        with self._computing(batch):
            made = self.loss(self.roles, batch)
        waiting = iter((made,)) if isinstance(made, Loss) else made
        while True:
            with self._computing(batch):
                part = next(waiting, None)
            if part is None:
                return
            yield part

    @contextmanager
    def _computing(self, batch: Batch) -> Iterator[None]:
        autocast = self.compute == torch.bfloat16 != self.roles.base.dtype
        with (
            Offload(self.roles) if self.offload else nullcontext(),
            nullcontext() if self.noise is None else noisy(self.roles, batch, self.noise),
            torch.autocast(self.roles.base.device.type, self.compute, enabled=autocast),
        ):
            yield
