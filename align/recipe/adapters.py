"""Settings of adapters."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from align.folders.adapter_settings import MOST_RANK, MOST_SCALE
from align.recipe.settings import Settings


class Lora(Settings):
    """Shape of a fresh adapter (Hu et al. 2021, arXiv 2106.09685)."""

    method: Literal["lora"] = "lora"
    """How it adapts: two factors of low rank beside each matrix."""
    rank: int = Field(default=16, gt=0, le=MOST_RANK)
    """Rank of the two factors (TRL's default)."""
    alpha: float = Field(default=32.0, gt=0.0, le=MOST_SCALE)
    """Scale: the update is multiplied by alpha / rank (TRL's default, twice the rank)."""
    targets: Literal["all-linear"] | Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1)] = (
        "all-linear"
    )
    """Layers to adapt: all linear ones but the head (best in Dettmers et al. 2023, section 4), or the ends of their
    names."""
    layers: PositiveInt | None = None
    """Adapt that many layers from the top, without it all. Those below are frozen for every role, run once per row, and
    train nothing."""
    experts: bool = False
    """Adapt the routed experts of a mixture of experts too, which are most of its weights; without dropout."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on an adapter's input; only sft and pretrain may use it, elsewhere it breaks KL = 0 at the start."""
