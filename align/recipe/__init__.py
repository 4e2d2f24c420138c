"""Recipes and settings: what a user writes, read strictly."""

from align.recipe.effect import idle, resolved
from align.recipe.flags import Flags, help_text, parse_flags
from align.recipe.load import Recipe, Stage, load_recipe
from align.recipe.settings import (
    BadRows,
    Base,
    File,
    Lora,
    Model,
    ModelStage,
    NextTokenConfig,
    Place,
    Positional,
    Ref,
    Runtime,
    Settings,
    SpecialTokens,
    StageConfig,
    Texts,
    TextStage,
    TrainConfig,
    files_of,
)

__all__ = [
    "BadRows",
    "Base",
    "File",
    "Flags",
    "Lora",
    "Model",
    "ModelStage",
    "NextTokenConfig",
    "Place",
    "Positional",
    "Recipe",
    "Ref",
    "Runtime",
    "Settings",
    "SpecialTokens",
    "Stage",
    "StageConfig",
    "TextStage",
    "Texts",
    "TrainConfig",
    "files_of",
    "help_text",
    "idle",
    "load_recipe",
    "parse_flags",
    "resolved",
]
