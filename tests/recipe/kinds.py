"""Stages to read recipes and flags for: one that trains, one with everything unusual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat

from align.recipe import File, Place, Positional, Ref, Runtime, StageConfig, TrainConfig


class Sft(TrainConfig):
    """Settings of supervised fine-tuning."""


class Dpo(TrainConfig):
    """Settings of direct preference optimisation."""

    beta: PositiveFloat = 0.1
    """Inverse temperature of the implicit reward; larger stays closer to the reference."""
    label_smoothing: float = Field(default=0.0, ge=0.0, lt=0.5)
    """Share of pairs assumed to be labelled the wrong way round."""


class Pretrain(TrainConfig):
    """Settings of pretraining."""

    needs_one_of: ClassVar[Mapping[tuple[str, ...], str]] = {}


class Evaluate(StageConfig):
    """Settings of evaluation."""

    compare: Annotated[list[Ref], Positional, Field(min_length=1)]
    """Artifacts to measure."""
    data: File | None = None
    """Held-out prompts."""
    judges: dict[str, Place] = Field(default={})
    """Measure -> FILE.py:FUNCTION."""
    out: Annotated[Place | None, Runtime] = None
    """Where the page goes."""


KINDS: dict[str, type[StageConfig]] = {"sft": Sft, "dpo": Dpo, "pretrain": Pretrain, "evaluate": Evaluate}
