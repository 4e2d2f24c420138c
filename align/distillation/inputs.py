"""A teacher as an input: where its base is, whether it shares the student's, and whether the two read one tokenizer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.ground.errors import InputError
from align.ground.terminal import say
from align.inputs.bases import BaseModel, locate_base, stored_base, vocabulary
from align.inputs.fit import rows_of
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.rendering.render import Renderer


def base_of_teacher(bench: Workbench) -> BaseModel:
    """The teacher itself where it is a model, else the base of its adapters."""
    teacher = bench.parents["teacher"]
    if teacher.kind == "model" or teacher.base is None:
        return stored_base(teacher, None, bench.store)
    return locate_base(teacher.base, bench.store)


def shares_base(bench: Workbench) -> bool:
    """Whether the teacher is a role on the student's base, which is frozen."""
    return _on_one_base(bench) and bench.config.method == "lora"


def check_differs(bench: Workbench) -> None:
    """Raises: InputError for a teacher that the student starts as."""
    parent, teacher = bench.parents.get("parent"), bench.parents["teacher"]
    if (parent or teacher).kind == "model" == teacher.kind:
        same = _on_one_base(bench)
    else:
        same = parent is not None and parent.digest == teacher.digest
    if same:
        raise InputError(
            f"{bench.title}: teacher {teacher.short} is what the student starts as, so there is nothing to learn from "
            "it. Name another teacher, or start from another base or parent."
        )


def _on_one_base(bench: Workbench) -> bool:
    own, theirs = bench.base, base_of_teacher(bench)
    return (own.digest, own.quantize) == (theirs.digest, theirs.quantize)


def common_words(bench: Workbench) -> int:
    """Rows that both embeddings have: what lies beyond is padding that no token has."""
    theirs = vocabulary(base_of_teacher(bench).path)
    return min(bench.rows, max(theirs, rows_of({"teacher": bench.parents["teacher"]}, bench.store)))


def load_renderer(bench: Workbench) -> Renderer:
    """The student's. Raises: InputError where the teacher reads another tokenizer."""
    renderer, teacher = bench.load_renderer(), bench.parents["teacher"]
    own, theirs = renderer.contract(), teacher.text or {}
    if theirs.get("tokenizer") != own["tokenizer"]:
        raise InputError(
            f"teacher {teacher.short} has another tokenizer than the student's base {bench.base.label}: its "
            "probabilities are of other tokens. Take a teacher of the same family, or train on its answers (`align "
            "generate`, then sft)."
        )
    if theirs.get("chat_template") != own["chat_template"]:
        say(f"{bench.title}: the teacher was trained with another chat template; it reads the student's here")
    return renderer
