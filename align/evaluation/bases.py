"""Two models beside each other: on one base where that serves both, else each on its own."""

from __future__ import annotations

from align.ground.errors import InputError
from align.inputs.fit import check_fits, input_artifact, origin
from align.stage.describe import C, Stage
from align.stage.question import prepare
from align.store import Store


def on_bases(stage: Stage[C], config: C, store: Store) -> list[C]:
    """The settings, where parent and `beside` are on one base and read text alike; else those of each, as a parent.

    Raises: InputError.
    """
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
