"""How a stage's base lies on the processes of its run, a copy on each or in shards, and its records in rows."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from align import memory, models, training
from align.ground import ranks
from align.ground.errors import InputError
from align.ground.terminal import say
from align.inputs import narrow
from align.inputs.bases import width
from align.recipe import Processes
from align.recipe.processes import with_rows_for
from align.stage.question import Question
from align.stage.why import checkpoint

if TYPE_CHECKING:
    import torch

    from align.models.precision import Precision

PRECISIONS = ("fp32", "bf16")
"""What `auto` may turn out to be."""
PROVEN = ("lora", "rslora")
"""Methods whose adapters are known to compute on a base in shards what they compute on a whole one."""


def in_rows(question: Question) -> Question:
    """The question with rows of this device, where their length was left to us."""
    wide = width(question.base) if question.base else None
    if wide is None:  # so that a stage without a base asks for no device, which loads torch
        return question
    return replace(question, config=with_rows_for(question.config, wide, models.process.device().type))


def in_shards(question: Question, token_rows: int) -> bool:
    """Whether the base is cut over the processes of this run. `token_rows`: of tokens that were added to it.

    Raises: InputError for what a base in shards cannot do yet.
    """
    settings = question.config
    if not isinstance(settings, Processes) or settings.parallel in ("replicate", "context"):
        return False
    if settings.base_offload:
        refuse(question, token_rows)
        if models.process.device().type == "cpu":
            asked = _asked(settings.base_offload)
            say(f"{question.title}: base_offload is {asked}, but this machine computes on the CPU, where the base is")
        return True
    if ranks.world() == 1:
        if settings.parallel == "shard":
            say(f"{question.title}: parallel is shard, but this is one process, which holds the whole base")
        return False
    if settings.parallel == "auto" and fits_whole(question):
        return False
    refuse(question, token_rows)
    return True


def cuts_rows(question: Question) -> bool:
    """Whether each process of the run computes a part of every row."""
    settings = question.config
    if not isinstance(settings, Processes) or settings.parallel != "context":
        return False
    if ranks.world() == 1:
        say(f"{question.title}: parallel is context, but this is one process, which computes whole rows")
    return ranks.world() > 1


def in_16_bits(question: Question, token_rows: int) -> str | None:
    """bf16 or fp16, where the base of a run that computes in fp32 stays in that: `inputs/narrow.py`."""
    if question.base is None or token_rows or models.process.device().type != "cpu":
        return None
    return narrow.kept_in(question.config, question.base, question.parents, question.store)


def check_asked(question: Question) -> None:
    """Raises: InputError where settings ask for shards of what is not cut; rows of tokens are known later."""
    settings = question.config
    if not isinstance(settings, Processes):
        return
    if settings.base_offload or (settings.parallel == "shard" and ranks.world() > 1):
        refuse(question, 0)
    base = question.base
    # what a recipe makes itself has no weights while it is rehearsed
    if settings.base_offload == "disk" and base is not None and any(base.path.glob("*.safetensors")):
        dtype, _ = computes_in(question, getattr(settings, "precision", "auto"))
        models.weights.check_mappable(base.path, base.quantize, dtype)


def computes_in(question: Question, wanted: Precision) -> tuple[torch.dtype, str]:
    """What its base computes in, and why, in words; without words where that was asked for. of a stage
    that looks at models `auto` goes by what those were trained in."""
    config, parents = question.config, question.parents
    names = {role: getattr(config, role, None) or role.rpartition("/")[2] for role in parents}
    in_fp32 = [names[role] for role, parent in parents.items() if parent.config.get("precision") == "fp32"]
    if wanted == "auto" and in_fp32 and question.stage.measures:
        why = f"{' and '.join(in_fp32)} {'was' if len(in_fp32) == 1 else 'were'} trained in fp32"
        return models.precision.DTYPES["fp32"], why
    return models.precision.explain_precision(wanted)


def settled(question: Question) -> Question:
    """The question with the precision that `auto` turns out to be here: asking for either is one question."""
    if question.settings.get("precision") != "auto":
        return question
    return _in(question, models.precision.name_of(computes_in(question, "auto")[0]))


def as_run(question: Question) -> Question:
    """The question as a run comes to ask it, where that finds something in the store: what `auto` turns out to be takes
    libraries to know, which are loaded only where `auto` itself was not answered yet, but one of its precisions was, or
    stopped on its way."""
    store = question.store
    if question.settings.get("precision") != "auto" or store.asked(question.key):
        return question
    keys = [_in(question, precision).key for precision in PRECISIONS]
    return settled(question) if any(store.asked(key) or checkpoint(key, store) for key in keys) else question


def _in(question: Question, precision: str) -> Question:
    return replace(question, settings=question.settings | {"precision": precision})


def refuse(question: Question, token_rows: int) -> None:
    """Raises: InputError where it `cannot`."""
    if why := cannot(question, token_rows):
        asked = "a copy of the base does not fit each process"
        if offload := getattr(question.config, "base_offload", False):
            asked = f"base_offload is {_asked(offload)}, which cuts the base"
        elif getattr(question.config, "parallel", None) == "shard":
            asked = "parallel is shard"
        raise InputError(f"{question.title}: {asked}, but {why}.")


def _asked(offload: object) -> str:
    """As a recipe has it."""
    return str(offload).lower()


def cannot(question: Question, token_rows: int) -> str:
    """Why this base, or what is to lie on it, is not cut into shards, and what to do; empty where it can be."""
    config, base = question.config, question.base
    if base is not None and base.quantize == "int8":
        return "weights in int8 keep their scales where they cannot be cut. Take `quantize: nf4`, or replicate"
    if base is not None and base.quantize and getattr(config, "base_offload", None) == "disk":
        return f"weights in {base.quantize} are made when the base is loaded, and lie in no file. Take true"
    if token_rows:
        return (
            "rows of added tokens lie in an embedding that is not cut. Merge them first (`align merge`), or replicate"
        )
    if getattr(config, "trunk_cache", None) == "disk":
        return "trunk_cache is disk, which one process writes for all. Take memory or off"
    adapter = getattr(config, "adapter", None)
    if adapter is not None and adapter.method not in PROVEN:
        return f"adapter.method {adapter.method} is not proven on shards. Take {' or '.join(PROVEN)}, or replicate"
    if adapter is not None and adapter.init_lora_weights:
        start = adapter.init_lora_weights
        return f"init_lora_weights {start} is made of a whole base. Leave it out, or replicate"
    return ""


def fits_whole(question: Question) -> bool:
    """Whether the first process, as the memory plan says, has room for a whole copy of the base; where there is no
    plan it is taken to have."""
    try:
        whole = question.config.model_copy(update={"parallel": "replicate"})
        footprint, device = question.stage.footprint, models.process.device().type
        work = footprint and memory.workload_of(footprint, whole, question.store, {}, device)
        here = not work or memory.fits(memory.plan(work), models.process.room())
    except memory.Unknown:
        here = True
    return training.processes.from_first(here)
