"""An adapter's folder in PEFT's layout, read and checked without torch: its settings and the headers of its tensors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from align.folders import adapter_kinds, adapter_tensors
from align.folders.adapter_settings import HARMLESS_INITS, SHAPE, fault
from align.folders.adapter_tensors import FACTOR
from align.folders.weights import Tensors
from align.ground.errors import InputError
from align.ground.json import Json, in_words

WEIGHTS = "adapter_model.safetensors"
PEFT_TYPES = ("LORA", *adapter_kinds.KINDS)
LORA_KIN = ("lora", "rslora", "dora")
STACKABLE = ("lora", "rslora")
"""Methods whose adapters may be active together: what they add does not depend on each other."""
IN_FEW_BITS = ("lora", "rslora", "dora", "ia3", "oft", "hira", "road")
"""Methods that PEFT puts on layers that bitsandbytes quantised."""
KINDS_BY_METHOD = {name.lower(): kind for name, kind in adapter_kinds.KINDS.items()}
PICKLE = "Its weights are a pickle, adapter_model.bin: load it with PEFT and save it again, which writes safetensors."


def method_name(settings: Mapping[str, object]) -> str:
    """What `adapter.method` calls an adapter with these settings of PEFT's."""
    if settings.get("peft_type") != "LORA":
        return str(settings.get("peft_type")).lower()
    return "dora" if settings.get("use_dora") else "rslora" if settings.get("use_rslora") else "lora"


def peft_names(method: str) -> dict[str, object]:
    """PEFT's settings that say it is an adapter of this method."""
    if method in LORA_KIN:
        return {"peft_type": "LORA", "use_rslora": method == "rslora", "use_dora": method == "dora"}
    return {"peft_type": method.upper()}


def resolved(settings: Mapping[str, object], tensors: Tensors) -> Json:
    """The settings that are stored of an adapter with these: patterns of layers replaced by the layers that have
    tensors, no choice of a start, and nothing that names code. What is not known stays, so that `fault` names it."""
    out = {**settings, "auto_mapping": None, "task_type": settings.get("task_type") or "CAUSAL_LM"}
    if settings.get("peft_type") in adapter_kinds.KINDS:
        starts = ("init_weights", "init_ia3_weights", "init_lora_weights")
        out |= {key: True for key in starts if key in settings}
        # of AdaLoRA, whose tensors are then stored in full: `adapters.adalora.in_full`
        return out | ({"rank_pattern": None, "lora_dropout": 0.0} if settings["peft_type"] == "ADALORA" else {})
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in HARMLESS_INITS:
        out |= {"init_lora_weights": True, "eva_config": None}
    if not isinstance(settings.get("target_modules"), list) or isinstance(settings.get("exclude_modules"), str):
        found = {match[1] for match in map(FACTOR.fullmatch, tensors) if match}
        out |= {"target_modules": sorted(found)}
        out |= dict.fromkeys(("exclude_modules", "layers_to_transform", "layers_pattern"))
    return out


def check_folder(folder: Path, change: Callable[[Json, Tensors], Json] | None = None) -> Json:
    """The settings of the adapter in a folder in PEFT's layout, after `change`, looked at together with its tensors.

    Raises: InputError with the reason for one that is incomplete, damaged or of no method that is known.
    """
    missing = next((file for file in (SHAPE, WEIGHTS) if not (folder / file).is_file()), None)
    if missing:
        is_pickle = missing == WEIGHTS and (folder / "adapter_model.bin").is_file()
        # `align checkout` gives a folder with adapters/0 and a tokenizer
        below = sorted(str(path.parent) for at in ("*", "*/*") for path in folder.glob(f"{at}/{SHAPE}"))
        there = f"There is one in {' and in '.join(below[:3])}: name that folder." if below else ""
        remedy = PICKLE if is_pickle else there or "Expected a folder that PEFT saved."
        raise InputError(f"{folder} has no {missing}. {remedy}")
    try:
        settings = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / SHAPE} is not JSON: {in_words(error)}.") from error
    found = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
    if not isinstance(settings, dict) or not isinstance(found, str) or found not in PEFT_TYPES:
        raise InputError(
            f"{folder / SHAPE}: peft_type is {found!r}; adapters that can be loaded are {', '.join(PEFT_TYPES)}."
        )
    tensors = read_tensors(folder / WEIGHTS)
    settings = change(settings, tensors) if change else settings
    kind = adapter_kinds.KINDS.get(found)
    if why := adapter_kinds.fault(settings, kind) if kind else fault(settings):
        raise InputError(f"{folder / SHAPE}: {why}")
    of_tensors = (
        adapter_kinds.fault_of_tensors(settings, tensors, kind)
        if kind
        else adapter_tensors.fault_of_tensors(settings, tensors)
    )
    if of_tensors:
        raise InputError(f"{folder / WEIGHTS}: {of_tensors}")
    return settings


def read_tensors(path: Path) -> Tensors:
    """What a safetensors file holds, from its header. Raises: InputError for one that is cut short."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
            return {name: (found.get_dtype(), tuple(found.get_shape())) for name, found in slices.items()}
    except SafetensorError as error:
        what = f"{path} ({path.stat().st_size:,} bytes) is no complete safetensors file"
        raise InputError(f"{what}: {error}. It was cut short; copy it again.") from error


def rows_needed(settings: Mapping[str, object]) -> int:
    """Rows that the base's embedding must have for an adapter's tokens; 0 where it has none."""
    wanted = settings.get("trainable_token_indices")
    if not wanted:
        return 0
    lists = list(wanted.values()) if isinstance(wanted, dict) else [wanted]
    return max((1 + max(ids) for ids in lists if isinstance(ids, list)), default=0)


def other_base(shape: Path, given: str) -> str:
    """Half a sentence where an adapter's settings name another base than is given; "" where they do not."""
    named = json.loads(shape.read_text(encoding="utf-8")).get("base_model_name_or_path")
    if not isinstance(named, str) or named.rstrip("/").rpartition("/")[2] in ("", given.rstrip("/").rpartition("/")[2]):
        return ""
    return f"it was trained on {named}; --base is {given}"
