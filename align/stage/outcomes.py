"""Outcomes: what a stage's work leaves for the store, and the checks that it reloads equal."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from align import models
from align.ground.errors import AlignError, InputError
from align.ground.json import Json
from align.ground.progress import Task
from align.stage import on_base
from align.stage.describe import Outcome
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.models.roles import Roles
    from align.rendering.render import Renderer
    from align.training.cost import Cost


def save_role(bench: Workbench, roles: Roles, role: str, folder: Path) -> None:
    """Write a role's adapters in order, and its head."""
    for i, name in enumerate(roles.adapters[role]):
        roles.save_adapter(name, folder / "adapters" / str(i), bench.base.model)
    if role in roles.heads:
        folder.mkdir(parents=True, exist_ok=True)
        roles.heads[role].save(folder / "head.safetensors")


def reload_check(bench: Workbench, roles: Roles, renderer: Renderer, **places: str) -> Callable[[Path], None]:
    """For `Outcome`: the tokenizer and each of these roles, in its place inside the artifact, reload equal."""

    def check(folder: Path) -> None:
        for role, place in places.items():
            check_role(bench, roles, role, folder / place)
        models.reloads_equal.check_text(folder / "tokenizer", renderer)

    return check


def check_role(bench: Workbench, roles: Roles, role: str, folder: Path) -> None:
    """A role's adapters and head in `folder` are the live ones bit for bit, and give the same outputs from a spare
    slot on the base.

    Raises: AlignError naming what does not reload equal.
    """
    written, live = on_base.adapter_folders(folder), roles.adapters[role]
    if len(written) != len(live):
        raise AlignError(f"{folder} holds {len(written)} adapters, the {role} has {len(live)}. Nothing was committed.")
    for name, adapter in zip(live, written, strict=True):
        models.reloads_equal.check_adapter(
            adapter, roles.adapter_state(name), roles.adapter_config(name, bench.base.model)
        )
    if role in roles.heads:
        models.reloads_equal.check_head(folder / "head.safetensors", roles.heads[role])
    on_base.add_role(bench, roles, "check", folder)
    try:
        models.reloads_equal.check_outputs(roles, role, roles, "check", role)
    finally:
        roles.remove("check")


def adapter_artifact(
    bench: Workbench,
    roles: Roles,
    renderer: Renderer,
    metrics: dict[str, Any],
    history: list[dict[str, float]],
    cost: Cost,
    kind: str = "adapter",
) -> Outcome:
    """An `adapter` artifact from role "policy", or a `reward` with its head."""
    with Task("writing what was made"):
        save_role(bench, roles, "policy", bench.folder)
        renderer.save(bench.folder / "tokenizer")
        write_history(bench.folder, history)
        check = reload_check(bench, roles, renderer, policy="")
        return Outcome(bench.folder, kind, renderer.contract(), metrics, check, cost_record(cost))


def model_artifact(
    bench: Workbench,
    roles: Roles,
    renderer: Renderer,
    metrics: dict[str, Any],
    history: list[dict[str, float]],
    cost: Cost,
) -> Outcome:
    """A `model` artifact from the base, whose own weights trained; `save_dtype` is its precision."""
    dtype = bench.config.save_dtype
    with Task("writing what was made"):
        models.save.save_model(roles.base, bench.folder / "model", dtype, renderer.contract())
        renderer.save(bench.folder / "model")
        write_history(bench.folder, history)

    def check(folder: Path) -> None:
        check_model(roles, folder / "model", dtype)
        models.reloads_equal.check_text(folder / "model", renderer)

    return Outcome(bench.folder, "model", renderer.contract(), metrics, check, cost_record(cost))


def check_model(roles: Roles, folder: Path, dtype: str) -> None:
    """A stored model loads as a new object with the live model's tensors and outputs, bit for bit on a CPU. Raises:
    AlignError.

    Two models are held; training held four (weights, gradients and AdamW's two moments).
    """
    again = models.reloads_equal.load_model(folder, roles.base.dtype)
    models.reloads_equal.check_weights(folder, again.base, models.reloads_equal.weight_hashes(roles.base, dtype), dtype)
    models.reloads_equal.check_outputs(roles, "policy", again, "base", "model")


def check_full(bench: Workbench) -> None:
    """All weights of what is gone on from can train, where `method` is full. Raises: InputError."""
    if bench.config.method != "full" or bench.question.base is None:
        return
    if bench.base.quantize:
        raise InputError("method: full cannot train a quantised base; use `method: lora`, or leave out quantize.")
    if "parent" in bench.parents and bench.parents["parent"].kind == "adapter":
        raise InputError(
            "method: full cannot go on from an adapter; merge it first (`python -m align.merge`), or use `method: "
            "lora`."
        )


def write_history(folder: Path, history: list[dict[str, float]]) -> None:
    """The training curves, one object per logged step."""
    (folder / "history.jsonl").write_text(
        "".join(json.dumps(row, sort_keys=True) + "\n" for row in history), encoding="utf-8"
    )


def cost_record(cost: Cost) -> Json:
    """`earlier_seconds` is the part of runs that were stopped or killed before this one."""
    return {
        "train_seconds": cost.seconds,
        "earlier_seconds": cost.earlier,
        "tokens": cost.tokens,
        "tokens_per_second": cost.tokens_per_second,
    }
