"""Two models beside each other: on one base where that serves both, else each on its own."""

from __future__ import annotations

import os

from align.folders.config import CONFIG
from align.ground.errors import InputError
from align.inputs.fit import check_fits, input_artifact, origin
from align.recipe import Base
from align.stage.describe import C, Stage
from align.stage.question import prepare
from align.store import Store


def at_base(config: C, store: Store) -> C:
    """The settings, where the folder of a model that is named in an artifact's place is the base, which comes first."""
    names: list[str | None] = [getattr(config, role) for role in ("parent", "beside")]
    folder = next((name for name in names if name and _is_model(name, store)), None)
    if folder is None or getattr(config, "base", None) is not None:
        return config
    other = next((name for name in names if name != folder), None)
    return config.model_copy(update={"base": Base(model=folder), "parent": None, "beside": other})


def _is_model(name: str, store: Store) -> bool:
    """Whether it is a folder with a model in it, and no artifact."""
    if not os.path.isfile(os.path.join(os.path.expanduser(name), CONFIG)):
        return False
    try:
        store.resolve(name)
    except InputError:
        return True
    return False


def on_bases(stage: Stage[C], config: C, store: Store) -> list[C]:
    """The settings, as `at_base` has them, where parent and `beside` are on one base and read text alike; else those of
    each, as a parent.

    Raises: InputError.
    """
    config = at_base(config, store)
    name = getattr(config, "beside", None)
    if name is None:
        return [config]
    beside = input_artifact(stage.name, "beside", name, stage.inputs["beside"], store)
    first = config.model_copy(update={"beside": None})
    question = prepare(stage, first, store)
    together = beside.kind != "model" or (question.base is not None and beside.digest == question.base.digest)
    try:
        check_fits("beside", beside, question.base, origin(question.parents))
    except InputError:
        together = False
    other = {"parent": name, "beside": None, "base": None, "chat_template": None}
    return [config] if together else [first, config.model_copy(update=other)]
