"""Recipes and settings: what a user writes, read strictly."""

from align.recipe.adapters import Adapter
from align.recipe.effect import idle, resolved
from align.recipe.entries import Entry, Recipe
from align.recipe.file import Misread, load_recipe
from align.recipe.flags import Flags, parse_flags
from align.recipe.mixture import Files, named_files
from align.recipe.processes import Processes
from align.recipe.settings import (
    BadRows,
    Base,
    ChatTemplate,
    Count,
    File,
    FromZero,
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
    Sampling,
    Settings,
    SpecialTokens,
    StageConfig,
    Temperature,
    Texts,
    TextStage,
    Threads,
    Weights,
    files_of,
)
from align.recipe.telling.help import help_text
from align.recipe.training import NextTokenConfig, TrainConfig

__all__ = [
    "Adapter",
    "BadRows",
    "Base",
    "ChatTemplate",
    "Count",
    "Entry",
    "File",
    "Files",
    "Flags",
    "FromZero",
    "Judges",
    "Misread",
    "Model",
    "ModelStage",
    "NextTokenConfig",
    "Place",
    "Positional",
    "Processes",
    "Recipe",
    "Ref",
    "Refs",
    "RowSettings",
    "Runtime",
    "Samples",
    "Sampling",
    "Settings",
    "SpecialTokens",
    "StageConfig",
    "Temperature",
    "TextStage",
    "Texts",
    "Threads",
    "TrainConfig",
    "Weights",
    "files_of",
    "help_text",
    "idle",
    "load_recipe",
    "named_files",
    "parse_flags",
    "resolved",
]
