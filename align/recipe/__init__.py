"""Recipes and settings: what a user writes, read strictly."""

from align.recipe.adapters import Lora
from align.recipe.effect import idle, resolved
from align.recipe.file import Recipe, Stage, load_recipe
from align.recipe.flags import Flags, help_text, parse_flags
from align.recipe.settings import (
    BadRows,
    Base,
    File,
    Judges,
    Model,
    ModelStage,
    Place,
    Positional,
    Ref,
    Runtime,
    Samples,
    Settings,
    SpecialTokens,
    StageConfig,
    Temperature,
    Texts,
    TextStage,
    Weights,
    files_of,
)
from align.recipe.training import NextTokenConfig, TrainConfig

__all__ = [
    "BadRows",
    "Base",
    "File",
    "Flags",
    "Judges",
    "Lora",
    "Model",
    "ModelStage",
    "NextTokenConfig",
    "Place",
    "Positional",
    "Recipe",
    "Ref",
    "Runtime",
    "Samples",
    "Settings",
    "SpecialTokens",
    "Stage",
    "StageConfig",
    "Temperature",
    "TextStage",
    "Texts",
    "TrainConfig",
    "Weights",
    "files_of",
    "help_text",
    "idle",
    "load_recipe",
    "parse_flags",
    "resolved",
]
