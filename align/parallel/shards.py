"""The frozen base in shards over the processes of a run, by torch's FSDP2 (Zhao et al. 2023, arXiv 2304.11277).

Each holds 1 / N of every layer, of the embedding and of a head of its own. A layer is whole in its forward and in its
backward, for which it is gathered again. What lies on it, adapters, heads of roles and the last norm, is whole and
plain on every process, so that whoever saves, digests or checks it knows no shards. Outside `whole` every forward
gathers: all processes make the same forwards in the same order.

Shards may wait in CPU memory, from where they go to the device when they are gathered (ZeRO-Offload's place for
weights: Ren et al. 2021, arXiv 2101.06840). A process alone then has one shard, all of it: its layers stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from align.parallel.gather import gathered
from align.parallel.group import mesh_of_all
from align.parallel.in_4_bits import Linear, is_4bit, make_plain, note

Offload = bool | Literal["disk"]
"""Where a base waits: the device, CPU memory, its files."""


class Shards:
    """Cuts `model`, of which `layers` are the decoder's, before any adapter is on it; the processes have met, each of
    which computes on `device`.

    Its weights may be on the meta device still: whoever reads them reads this process's part of each. `begin` follows,
    when they are there. `tied`: the head's matrix is the embedding's. `offload`: this process's part waits in CPU
    memory, or stays where it was read from, a mapped file on "disk".
    """

    def __init__(
        self,
        model: PreTrainedModel,
        layers: Sequence[nn.Module],
        device: torch.device,
        tied: bool,
        offload: Offload = False,
    ):
        embed: Any = model.get_input_embeddings()
        head: Any = model.get_output_embeddings()
        self.device, self.tied, self.offload = device, tied, offload
        self.model, self.embed, self.head, self.decoder = model, embed, head, cast(Any, model.base_model)
        self.in_4_bits = [cast(Linear, module) for module in model.modules() if is_4bit(module)]
        for module in self.in_4_bits:
            make_plain(module)
        pinned = device.type != "cpu" and offload is True  # what goes to a GPU while that computes
        policy = CPUOffloadPolicy(pin_memory=pinned) if offload else OffloadPolicy()
        how: dict[str, Any] = {"mesh": mesh_of_all(device), "reshard_after_forward": True, "offload_policy": policy}
        self.units: list[Any] = [*layers, embed, *([] if tied else [head])]
        for unit in self.units:
            fully_shard(unit, **how)
        fully_shard(self.decoder, **how, ignored_params=self._small())
        if tied:  # whose own matrix no one gathers
            head.forward = self._logits
        self._tie()
        self.held = 0

    def begin(self) -> None:
        """The weights are there: what is left before the first forward."""
        self._tie()
        if self.offload:
            for module in (self.model, self.decoder):
                computes_on(module, self.device)
            for module in self.decoder.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    setattr(module, name, buffer.to(self.device))
        for parameter in self._small():  # the last that would hold on to the mapped files of weights
            parameter.data = parameter.data.to(self.device, copy=True)
        for module in self.in_4_bits:
            note(module)
        # torch takes what forwards first for the root, which fetches a layer while the one before computes
        self.decoder._get_fsdp_state()._lazy_init()
        if not self.tied:
            self.head._get_fsdp_state()._lazy_init()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """All of the base is on every process inside: forwards need no other one, and gathered weights may be changed,
        which are dropped at the end. All enter together; they leave when they are done."""
        with ExitStack() as stack:
            stack.callback(self._tie)
            for unit in self.units:
                stack.enter_context(gathered(unit))
            self._tie()
            self._hold(1)
            stack.callback(self._hold, -1)
            yield

    def most(self, n: int) -> int:
        """The largest n of any process."""
        said = torch.tensor(n, device=self.device)
        torch.distributed.all_reduce(said, torch.distributed.ReduceOp.MAX)
        return int(said)

    def _small(self) -> set[nn.Parameter]:
        """What of the decoder is whole on every process: its last norm, positions."""
        return {p for p in self.decoder.parameters() if not isinstance(p.data, DTensor)}

    def _hold(self, more: int) -> None:
        """Layers stay whole behind their forward as long as any block holds them."""
        self.held += more
        for unit in self.units:
            assert isinstance(unit, FSDPModule)
            unit.set_reshard_after_forward(not self.held, recurse=False)

    def _tie(self) -> None:
        if self.tied:
            self.head.weight = self.embed.weight

    def _logits(self, hidden: Tensor) -> Tensor:
        """Of the tied head: (…, D) -> (…, V)."""
        with gathered(self.embed):
            return nn.functional.linear(hidden, self.embed.weight, self.head.bias)


def computes_on(module: nn.Module, device: torch.device) -> None:
    """Have a model say that it is on `device`, whatever its first weight says."""
    says(module, device=device)


def says(module: nn.Module, **told: object) -> None:
    """Have a model say this of itself, whatever its weights say."""
    kind = type(module)

    def of(value: object) -> property:
        return property(lambda _: value)

    own = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    module.__class__ = type(kind.__name__, (kind,), own | {name: of(value) for name, value in told.items()})
