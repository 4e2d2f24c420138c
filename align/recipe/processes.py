"""Settings of runs in several processes."""

from __future__ import annotations

from typing import Annotated, Literal

from align.recipe.settings import Runtime, Settings


class Processes(Settings):
    """Processes"""

    parallel: Annotated[Literal["auto", "replicate", "shard"], Runtime] = "auto"
    """How the frozen base lies on several processes: a copy on each (replicate), or in shards, of which each gathers a
    layer while it is used (FSDP2); auto replicates where the memory plan says that a copy fits."""
