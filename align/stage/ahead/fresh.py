"""An adapter that begins with a stage, held against the base that it is to lie on."""

from __future__ import annotations

from align import models
from align.recipe import Adapter, TrainConfig
from align.stage.workbench import Workbench

USUAL = {"rank", "alpha", "dropout"}
"""Settings of LoRA on all linear layers that go with any base."""


def check_fresh_adapter(bench: Workbench) -> None:
    """Hold a fresh adapter against the shapes of its base, by the checks that a run makes; the usual one goes on any.

    Raises: InputError.
    """
    config, base = bench.config, bench.question.base
    parent = bench.parents["parent"].kind if "parent" in bench.parents else None
    if base is None or not isinstance(config, TrainConfig) or "adapter" in config.without_effect(parent):
        return
    if config.adapter.model_dump(exclude=USUAL) != Adapter().model_dump(exclude=USUAL):
        models.skeleton.check_adapter(base.path, config.adapter)
