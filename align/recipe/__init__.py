"""Recipes and settings: what a user writes, read strictly."""

from align.recipe.adapters import Lora
from align.recipe.effect import idle, resolved
from align.recipe.file import Entry, Recipe, load_recipe
from align.recipe.flags import Flags, parse_flags
from align.recipe.help import help_text
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
    Refs,
    RowSettings,
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
    "Entry",
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
    "Refs",
    "RowSettings",
    "Runtime",
    "Samples",
    "Settings",
    "SpecialTokens",
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
