"""Adapters that a stage is given, held against each other and against its base, without torch."""

from __future__ import annotations

import json
from collections.abc import Mapping

from align.folders.adapter import IN_FEW_BITS, KINDS_BY_METHOD, SHAPE, STACKABLE, method_name, peft_names
from align.ground.errors import InputError
from align.ground.json import Json
from align.inputs.bases import BaseModel
from align.recipe import Adapter, StageConfig
from align.recipe.optimizers import SCHEDULE_FREE
from align.store import Artifact, Store

WITH_FACTORS = ("lora", "rslora", "dora")
"""Methods that train LoRA's two factors."""


def adapter_of(store: Store, parent: Artifact) -> Json:
    """The shape of a parent's last adapter, which is trained on, under the names of `adapter`'s settings: what a
    manifest records of it."""
    found = json.loads(store.read(parent, _adapter_files(parent)[-1]))
    method, targets, layers = method_name(found), found["target_modules"], found.get("layers_to_transform")
    if isinstance(targets, list):
        targets = sorted(targets)
    if isinstance(layers, list):
        layers = len(layers)
    shape = {"method": method, "targets": targets, "layers": layers}
    if method in KINDS_BY_METHOD:
        return shape | {key: found[key] for key in KINDS_BY_METHOD[method].settings if found.get(key)}
    shape |= {
        "rank": found["r"],
        "alpha": float(found["lora_alpha"]),
        "experts": bool(found.get("target_parameters")),
    }
    return shape | {name: found[name] for name in ("rank_pattern", "alpha_pattern") if found.get(name)}


def _check_settings(config: StageConfig, trained: str) -> None:
    """Settings of training have a meaning for adapters of the method that trains. Raises: InputError."""
    if getattr(config, "loraplus_lr_ratio", None) and trained not in WITH_FACTORS:
        raise InputError(
            f"loraplus_lr_ratio is a learning rate of LoRA's B, and what trains here is of the method {trained}. "
            f"Leave it out, or take {', '.join(WITH_FACTORS)}."
        )
    if trained == "adalora" and (other := _takes_other_weights(config)):
        raise InputError(
            f"{other} gives out other weights than the last, and adalora's ranks are at target_rank by the last steps "
            "alone. Leave it out, or take lora."
        )
    if getattr(config, "ref_model_mixup_alpha", 1.0) < 1 and trained not in STACKABLE:
        raise InputError(
            f"ref_model_mixup_alpha is below 1, which mixes what adapters add, and one of {trained} adds no sum. "
            f"Set it to 1, or take {' or '.join(STACKABLE)}."
        )


def _takes_other_weights(config: StageConfig) -> str:
    """The setting by which other weights come out than those of the planned last step; empty where none is such."""
    if getattr(config, "keep", "last") == "best":
        return "keep: best"
    if getattr(config, "patience", None):
        return "patience"
    optimizer = str(getattr(config, "optimizer", ""))
    return f"optimizer {optimizer}" if optimizer.startswith(SCHEDULE_FREE) else ""


def _no_residual(base: BaseModel | None, stack: bool) -> str:
    """Why nothing is known that LoftQ's start corrects, and what to do; empty where it is."""
    if stack:
        return "parent_adapter is stack, whose parent has learned to do without. Merge that first (`align merge`)"
    if base is None or base.quantize != "nf4":
        return f"base.quantize is {base.quantize if base else None}. Set it to nf4"
    if base.config.get("quantization_config"):
        return f"{base.label} comes without others. Name the model that it was made from"
    return ""


def _adapter_files(artifact: Artifact) -> list[str]:
    """Where an artifact has the settings of its adapters, in the order they are stacked."""
    found = [path for path in artifact.files if path.startswith("adapters/") and path.endswith(f"/{SHAPE}")]
    return sorted(found, key=lambda path: int(path.split("/")[1]))


def check_methods(config: StageConfig, store: Store, parents: Mapping[str, Artifact], base: BaseModel | None) -> None:
    """All adapters that come onto one base are of methods that PEFT can put on it together, those that are stacked of
    methods that add, and a base in few bits bears them. Raises: InputError."""
    held = {
        role: [method_name(json.loads(store.read(artifact, path))) for path in _adapter_files(artifact)]
        for role, artifact in parents.items()
    }
    adapter = getattr(config, "adapter", None)
    stack = getattr(config, "parent_adapter", None) == "stack" and bool(held.get("parent"))
    if isinstance(adapter, Adapter) and (stack or not held.get("parent")):
        held["this stage"] = [*(held.get("parent", []) if stack else []), adapter.method]
    trained = held.get("this stage") or held.get("parent") or ["none"]
    _check_settings(config, trained[-1])
    if stack and isinstance(adapter, Adapter) and adapter.init_lora_weights == "eva":
        raise InputError(
            "adapter.init_lora_weights is eva, which looks at a base without adapters, and parent_adapter is stack. "
            "Leave one of them out, or merge the parent first (`align merge`)."
        )
    if isinstance(adapter, Adapter) and adapter.init_lora_weights == "loftq" and (why := _no_residual(base, stack)):
        raise InputError(
            "adapter.init_lora_weights is loftq, which starts at what 4 bits take from a base's matrices, and "
            f"{why}, or leave it out."
        )
    for role, methods in held.items():
        if len(methods) > 1 and (alone := [method for method in methods if method not in STACKABLE]):
            raise InputError(
                f"{role}: an adapter of {alone[0]} cannot be active together with another ({', '.join(methods)}): what "
                "it gives depends on the other. Merge the parent first (`align merge`), and start from that model."
            )
    names = {role: methods[-1] for role, methods in held.items() if methods}
    kinds = {peft_names(method)["peft_type"] for method in names.values()}
    if len(kinds) > 1:
        said = ", ".join(f"{role} {method}" for role, method in names.items())
        raise InputError(
            f"adapters of different methods cannot lie on one base: {said}. Train them by one method (lora, rslora and "
            "dora go together), or merge the parent first (`align merge`) and start from that model."
        )
    quantize = base.quantize if base else None
    if quantize == "int8" and "this stage" in held and isinstance(adapter, Adapter) and adapter.takes_off:
        raise InputError(
            f"adapter.init_lora_weights is {adapter.init_lora_weights}, which is a part of the base's matrices, and "
            "those of a base in int8 are not put together again. Leave it out, or take nf4 or no base.quantize."
        )
    if quantize and (whole := sorted({*names.values()} - {*IN_FEW_BITS})):
        raise InputError(
            f"adapter.method {whole[0]} does not work on a base in {quantize}: PEFT puts it on whole weights alone. "
            f"Take {', '.join(IN_FEW_BITS)}, or leave out base.quantize."
        )
