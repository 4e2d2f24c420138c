"""Which stages there are: a line each. What a stage is stands in its own file, which is imported when it is asked for,
so that `align --help` imports none."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from align.ground.json import Json
    from align.recipe import StageConfig
    from align.stage.describe import Stage

KINDS = {
    "pretrain": "a model from scratch, or more training on plain text",
    "sft": "fine-tune on demonstrations",
    "distill": "learn a teacher's distributions",
    "pairs": "sample a model's answers and have a judge order them",
    "best_of_n": "sample a model's answers and keep each prompt's best as demonstrations",
    "reward": "train a reward model on preference pairs",
    "dpo": "train on preference pairs directly",
    "simpo": "the same without a reference, by likelihood per token",
    "cpo": "the same without a reference, and imitate chosen answers",
    "orpo": "fine-tune and prefer in one, without a reference",
    "kto": "train on single answers that are called good or bad",
    "bco": "the same by a classifier of good against bad",
    "ppo": "train against rewards, with a value role",
    "grpo": "train against rewards, relative to a prompt's other answers",
    "rloo": "the same, each answer as one action",
    "reinforce_pp": "train against rewards, relative to the whole rollout",
    "online_dpo": "train on the best against the worst of fresh answers",
    "blend": "several adapters as one, or one of a lower rank",
    "merge": "merge adapters into a model of their own",
    "evaluate": "measure stages beside each other",
}
"""What a recipe may name, in the order in which it is shown: align/NAME.py -> what it does. A new stage is its file and
a line here."""
DATA = {
    "convert": "any shape as rows in keys of ours",
    "split": "a share of the prompts apart",
    "mix": "rows of several files in given shares",
    "clean": "repair, scrub and filter rows, and remove duplicates",
    "decontaminate": "remove rows that hold questions of evaluation files",
}
"""The same for stages that make data of data, which are `align data NAME` too."""
STORES_NOTHING = {"generate": "sample answers to a file of prompts", "chat": "talk to a model"}
"""Files at the root that store nothing, so that no recipe may name them."""
ELSEWHERE = {"import": "align.exchange.transfer"}
"""Stages without a file at the root -> their module."""


def in_recipes() -> dict[str, str]:
    """What a recipe may name -> what it does."""
    return KINDS | DATA


def commands() -> dict[str, str]:
    """Every file at the root, as `align NAME` -> what it does."""
    return in_recipes() | STORES_NOTHING


def module_of(name: str) -> ModuleType:
    """The module of a stage, imported now. Raises: KeyError for what is no stage."""
    if name not in commands() and name not in ELSEWHERE:
        raise KeyError(name)
    return importlib.import_module(ELSEWHERE.get(name, f"align.{name}"))


def stage_of(name: str) -> Stage[StageConfig]:
    """What a stage is. Raises: KeyError for what is no stage."""
    stage: Stage[StageConfig] = module_of(name).STAGE
    return stage


def defaults(name: str) -> Json:
    """The defaults of a stage's settings, by dotted key; none of a stage that this version does not have."""
    from pydantic import TypeAdapter

    from align.recipe.fields import leaves

    stage, plain = find(name), TypeAdapter(object)
    fields = leaves(stage.config) if stage else ()
    return {
        ".".join(path): plain.dump_python(field.get_default(call_default_factory=True), mode="json")
        for path, field in fields
        if not field.is_required()
    }


def find(name: str) -> Stage[StageConfig] | None:
    """What the stage of an artifact is; None where this version has none of that name."""
    return stage_of(name) if name in commands() or name in ELSEWHERE else None
