"""How the work of a step lies on processes, and in rows on one of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import BeforeValidator, Field

from align.recipe.settings import Runtime, Settings

C = TypeVar("C", bound=Settings)
Passes = Annotated[float, Field(gt=0, le=1_000_000)]
"""Over data."""
SHORTEST, NUMBERS = 512, 1 << 19
"""Tokens of a packed row on a CPU, at least, and numbers of its hidden states."""

NOT_BUILT = {
    "tensor": "LoRA's own forward and backward compute on whole matrices, not on their columns. Take shard, which "
    "makes a layer whole while it computes",
    "pipeline": "packed rows differ in length from one micro-batch to the next, which torch's pipeline schedules do "
    "not take. Take shard",
    "layers": "a process computes on one device, so its layers do not lie on several. Take shard, one process to a GPU",
    "zero2": "it cuts the optimizer's state, which adapters have little of. Take replicate",
    "zero3": "DeepSpeed would cut adapters too, so that what is saved is not whole. Take shard, which cuts the base, "
    "with `base_offload: true` where it is to wait in CPU memory",
}
"""Ways that have a name elsewhere, and why they are not taken here."""
ELSEWHERE = {
    "ddp": "replicate",
    "fsdp": "shard",
    "fsdp2": "shard",
    "deepspeed": "zero3",
    "tp": "tensor",
    "cp": "context",
}
ELSEWHERE |= {"pp": "pipeline", "device_map": "layers", "zero-2": "zero2", "zero-3": "zero3"}
WHOLE_ROWS = {
    "base_offload": "base_offload cuts the base. Leave one of them out.",
    "neftune_noise_alpha": "neftune_noise_alpha is drawn for whole ones. Leave one of them out.",
}
"""Settings that do not go with rows over processes."""


def known(name: object) -> object:
    """The way as it is. Raises: ValueError for one that is called otherwise here, or is not built, with the reason."""
    ours = ELSEWHERE.get(str(name).lower(), str(name).lower())
    if why := NOT_BUILT.get(ours):
        raise ValueError(f"{name} is not built: {why}.")
    if ours != name and ours in ELSEWHERE.values():
        raise ValueError(f"{name} is called {ours} here.")
    return name


class Processes(Settings):
    """Processes"""

    parallel: Annotated[Literal["auto", "replicate", "shard", "context"], BeforeValidator(known), Runtime] = "auto"
    """How the frozen base lies on several processes: a copy on each (replicate), or in shards, of which each gathers a
    layer while it is used (FSDP2); auto replicates where the memory plan says that a copy fits. context is for long
    rows: a copy on each, and each computes a part of every row, whose activations lie over all."""
    base_offload: Annotated[bool | Literal["disk"], Runtime] = False
    """Keep the frozen base in CPU memory, from where a layer goes to the GPU while it is used (FSDP2's
    CPUOffloadPolicy): less GPU memory, more time. Several processes keep a shard each; one process does it too. disk
    leaves it in its files, mapped, where CPU memory is short too."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found = super().conflicts(given)
        if given.get("base_offload") and given.get("parallel") == "replicate":
            found.append(
                "base_offload keeps shards in CPU memory, and parallel is replicate. Take `parallel: shard`, or leave "
                "one of them out."
            )
        if given.get("parallel") == "context":
            cut = "parallel is context, which cuts rows"
            found += [f"{cut}: {why}" for name, why in WHOLE_ROWS.items() if given.get(name)]
        return found

    def without_effect(self, parent: str | None) -> dict[str, str]:
        found = super().without_effect(parent)
        if self.parallel == "context" and getattr(self, "trunk_cache", "off") != "off":
            why = "parallel is context, where nothing is kept of lower layers. Leave one of them out."
            found |= dict.fromkeys(("trunk_cache", "trunk_dtype"), why)
        return found


def with_rows_for(config: C, width: int | None, device: str) -> C:
    """`config`, whose rows are shorter on a CPU, unless they were set, the wider the base is: long ones are no quicker
    there, and their activations take more memory."""
    longest = getattr(config, "tokens_per_microbatch", None)
    if longest is None or not width or device != "cpu" or "tokens_per_microbatch" in config.model_fields_set:
        return config
    return config.model_copy(update={"tokens_per_microbatch": min(longest, max(SHORTEST, NUMBERS // width))})
