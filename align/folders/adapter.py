"""LoRA adapters as files: settings and tensors that both of Align's computations know, the fused layers and the merged
copy. Rows of single tokens in embedding and head (`trainable_token_indices`) are among them.

One list for `align import`, for what a remote gives and for every load. PEFT has more settings, which change what an
adapter computes, or rewrite the base itself whenever one is loaded; what is not on the list has to be empty. Names are
names, never patterns: a pattern can run for ever. No torch.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from align.ground.errors import InputError

WEIGHTS, SHAPE = "adapter_model.safetensors", "adapter_config.json"
MOST_RANK, MOST_SCALE, MOST_NAMES, MOST_PATTERNS, MOST_TOKENS, MOST_ROWS = 8192, 1e6, 16_384, 4096, 16_384, 1 << 22
MERGE = "Merge it into its base with PEFT (merge_and_unload), save that model and start from it with --base."
UNTIED = (
    "Where that base ties its embedding to its head (tie_word_embeddings), untie them first, or the merge would "
    "change both: load it with transformers, set model.config.tie_word_embeddings = False and model.lm_head.weight = "
    "torch.nn.Parameter(model.lm_head.weight.clone()), save it, and merge the adapter into that."
)
"""What else it takes where an adapter changes one of the two."""
ROWS_ALONE = "Save it again with save_pretrained(DIR, save_embedding_layers=False), which writes the rows alone."
_EMBEDDING = re.compile(
    r"\.(embed_tokens|wte|lm_head|embed_out|word_embeddings)(\.token_adapter)?(\.base_layer)?\.weight$"
)
TRAIN_PLAIN = "PEFT merges no such adapter either: train it again without that."
UNMERGED = ("lora_bias", "alora_invocation_tokens", "arrow_config", "use_qalora")
"""Settings of adapters for which PEFT's merge_and_unload raises: a bias where a plain layer has none, what looks at the
text or routes."""
HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""What these draw is overwritten by the adapter's own tensors; every other one of PEFT's also takes its factors off the
base."""
PRECISIONS = ("F32", "F16", "BF16", "F64")

Tensors = Mapping[str, tuple[str, tuple[int, ...]]]
"""Name -> type as safetensors has it, and sizes."""

_NAME = re.compile(r"(?=.{1,300}$)[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]{1,300}", re.ASCII)
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_ROWS = re.compile(r"(?:base_model\.model\.)?(.+)\.token_adapter\.trainable_tokens_delta")


def _is_rank(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MOST_RANK


def _is_scale(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 < value <= MOST_SCALE


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _are_names(value: Any) -> bool:
    return value is None or (isinstance(value, list) and len(value) <= MOST_NAMES and all(map(_is_name, value)))


def _are_layers(value: Any) -> bool:
    layers = value if isinstance(value, list) else [] if value is None else [value]
    return len(layers) <= MOST_NAMES and all(type(layer) is int and 0 <= layer < MOST_NAMES for layer in layers)


def _are_tokens(value: Any) -> bool:
    """One list of ids, or one for each matrix by its name."""
    lists = list(value.values()) if isinstance(value, dict) else [] if value is None else [value]
    named = not isinstance(value, dict) or (value and len(value) <= 2 and all(map(_is_name, value)))
    return bool(named) and all(map(_are_ids, lists))


def _are_ids(value: Any) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_TOKENS or not all(type(i) is int for i in value):
        return False
    return len({*value}) == len(value) and min(value) >= 0 and max(value) < MOST_ROWS


def _by_name(fits: Callable[[Any], bool]) -> Callable[[Any], bool]:
    def check(value: Any) -> bool:
        if not isinstance(value, dict) or len(value) > MOST_PATTERNS:
            return False
        return all(_PATTERN.fullmatch(name) and fits(inner) for name, inner in value.items())

    return check


def _is_text(value: Any) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 1000)


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


KNOWN: dict[str, tuple[Callable[[Any], bool], str]] = {
    "peft_type": (lambda v: v == "LORA", "LORA"),
    "task_type": (lambda v: v in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"), "CAUSAL_LM or SEQ_2_SEQ_LM"),
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version"), (_is_text, "a short text")),
    **dict.fromkeys(("inference_mode", "use_rslora", "fan_in_fan_out"), (_is_bool, "true or false")),
    "r": (_is_rank, f"a whole number from 1 to {MOST_RANK:,}"),
    "lora_alpha": (_is_scale, "a number above 0, at most a million"),
    "rank_pattern": (_by_name(_is_rank), f"at most {MOST_PATTERNS:,} ranks by plain names of layers"),
    "alpha_pattern": (_by_name(_is_scale), f"at most {MOST_PATTERNS:,} numbers by plain names of layers"),
    "lora_dropout": (lambda v: type(v) in (int, float) and 0 <= v <= 1, "a number from 0 to 1"),
    "bias": (lambda v: v == "none", "none"),
    "init_lora_weights": (_is_bool, "true or false"),
    **dict.fromkeys(
        ("target_modules", "exclude_modules"), (_are_names, f"a list of at most {MOST_NAMES:,} plain names of layers")
    ),
    "target_parameters": (_are_names, f"a list of at most {MOST_NAMES:,} plain names of routed experts' matrices"),
    "trainable_token_indices": (
        _are_tokens,
        f"at most {MOST_TOKENS:,} different ids of tokens, in one list or by name of embedding and head",
    ),
    "layers_to_transform": (_are_layers, f"numbers of layers, below {MOST_NAMES:,}"),
    "layers_pattern": (lambda v: _is_name(v) or _are_names(v), "plain names"),
    "megatron_core": (lambda v: v in (None, "megatron.core"), "what PEFT writes there"),
    "qalora_group_size": (lambda v: type(v) is int, "a whole number"),
}
"""What each setting of a plain LoRA adapter may be, and in words. A missing one has PEFT's default."""


def fault(settings: Mapping[str, Any]) -> str | None:
    """Why an adapter with these settings would not be computed right, with what to do; None where it would."""
    if settings.get("peft_type") != "LORA":
        return f"peft_type is {settings.get('peft_type')!r}; expected LORA."
    for key, value in settings.items():
        if key == "init_lora_weights" and isinstance(value, str):
            return _about_init(value)
        if key in KNOWN:
            fits, expected = KNOWN[key]
            if not fits(value):
                return f"{key} is {_shown(value)}; expected {expected}."
        elif value not in (None, False, 0, "", [], {}):
            remedy = TRAIN_PLAIN if key in UNMERGED else MERGE
            return (
                f"{key} is {_shown(value)}, which changes more than LoRA's two factors; only plain LoRA is "
                f"computed. {remedy}"
            )
    return None


def _about_init(value: str) -> str:
    if value.lower() in HARMLESS_INITS:
        return f"init_lora_weights is {value!r}, which a stored adapter never has: `align import` writes true."
    return (
        f"init_lora_weights is {_shown(value)}: PEFT takes such an adapter's first factors off the base each time one "
        "is loaded, so the base that roles share would change. Save it as plain LoRA where its first state was kept "
        f"(save_pretrained(DIR, path_initial_model_for_weight_conversion=FIRST)). {MERGE.replace('Merge', 'Or merge')}"
    )


def resolved(settings: Mapping[str, Any], tensors: Tensors) -> dict[str, Any]:
    """The same adapter in the settings that are stored: patterns of layers replaced by the layers that have tensors, no
    choice of a start, and nothing that names code. What is not known stays, so that `fault` names it."""
    out = {**settings, "auto_mapping": None, "task_type": settings.get("task_type") or "CAUSAL_LM"}
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower() in HARMLESS_INITS:
        out |= {"init_lora_weights": True, "eva_config": None}
    if not isinstance(settings.get("target_modules"), list) or isinstance(settings.get("exclude_modules"), str):
        found = {match[1] for name in tensors if (match := _FACTOR.fullmatch(name))}
        out |= {
            "target_modules": sorted(found),
            "exclude_modules": None,
            "layers_to_transform": None,
            "layers_pattern": None,
        }
    return out


def check_folder(
    folder: Path, change: Callable[[Mapping[str, Any], Tensors], dict[str, Any]] | None = None
) -> dict[str, Any]:
    """The settings of the adapter in a folder in PEFT's layout, after `change`, looked at together with its tensors.

    Raises: InputError with the reason for one that is incomplete, damaged or no plain LoRA.
    """
    for file in (SHAPE, WEIGHTS):
        if not (folder / file).is_file():
            remedy = "Expected a folder that PEFT saved."
            if file == WEIGHTS and (folder / "adapter_model.bin").is_file():
                remedy = (
                    "Its weights are a pickle, adapter_model.bin: load it with PEFT and save it again, which "
                    "writes safetensors."
                )
            raise InputError(f"{folder} has no {file}. {remedy}")
    try:
        settings = json.loads((folder / SHAPE).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{folder / SHAPE} is not JSON: {error}.") from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        found = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise InputError(f"{folder / SHAPE}: peft_type is {found!r}; only LORA adapters can be loaded.")
    tensors = read_tensors(folder / WEIGHTS)
    settings = change(settings, tensors) if change else settings
    if why := fault(settings):
        raise InputError(f"{folder / SHAPE}: {why}")
    if why := fault_of_tensors(settings, tensors):
        raise InputError(f"{folder / WEIGHTS}: {why}")
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


def fault_of_tensors(settings: Mapping[str, Any], tensors: Tensors) -> str | None:
    """Why these tensors are not the two factors of each layer, in a type that can be kept and of the ranks that the
    settings say."""
    empty = [name for name, (_, sizes) in tensors.items() if 0 in sizes]
    if not tensors or empty:
        what = f"{empty[0]} is empty" if empty else "it holds no tensor"
        return f"{what}. It was saved without its weights, as sharded training can do; save it again."
    if why := _fault_of_rows(settings, tensors):
        return why
    for name, (dtype, sizes) in sorted(tensors.items()):
        match = _FACTOR.fullmatch(name)
        if _ROWS.fullmatch(name) and dtype in PRECISIONS:
            continue
        if match is None:
            if settings.get("trainable_token_indices") and _EMBEDDING.search(name):
                return f"it holds {name[:200]!r}, a whole matrix beside the rows of its tokens. {ROWS_ALONE}"
            remedy = TRAIN_PLAIN if "lora_B.bias" in name else f"{MERGE} {UNTIED}" if _beside_factors(name) else MERGE
            return (
                f"it holds {name[:200]!r}, {_kind(name)}; only LoRA's two factors of linear layers are computed. "
                f"{remedy}"
            )
        if not _is_target(settings, match[1]):
            return (
                f"{name} is of a layer that {SHAPE}'s target_modules does not name. The two files do not belong "
                f"together."
            )
        if dtype not in PRECISIONS:
            return f"{name} is {dtype}; expected {', '.join(PRECISIONS)}. Save it again in one of them."
        rank = sizes[0] if match[2] == "A" else sizes[-1]
        expected = _rank(settings, match[1])
        if len(sizes) != 2 or (rank % expected if _of_experts(settings, match[1]) else rank != expected):
            given = f"{SHAPE} gives this layer rank {expected}" if len(sizes) == 2 else "a factor is a matrix"
            return f"{name} has sizes {' x '.join(map(str, sizes))}, but {given}. The two files do not belong together."
    return None


def _fault_of_rows(settings: Mapping[str, Any], tensors: Tensors) -> str | None:
    """Why the rows of single tokens are not those that the settings name."""
    found = {match[1]: tensors[name][1] for name in tensors if (match := _ROWS.fullmatch(name))}
    wanted = settings.get("trainable_token_indices")
    if not wanted:
        return (
            f"it holds rows of tokens in {next(iter(found))}, and {SHAPE} names no trainable_token_indices."
            if found
            else None
        )
    lists = wanted if isinstance(wanted, dict) else {"": wanted}
    for module, sizes in found.items():
        ids = next((ids for name, ids in lists.items() if f".{module}".endswith(f".{name}" if name else "")), None)
        if ids is None or len(sizes) != 2 or sizes[0] != len(ids):
            given = f"trainable_token_indices gives it {len(ids or [])}"
            return (
                f"the rows of {module} have sizes {' x '.join(map(str, sizes))}, but {given}. The two files do "
                f"not belong together."
            )
    return None if found else f"{SHAPE} names trainable_token_indices, and there are no rows of them. {MERGE}"


def rows_needed(settings: Mapping[str, Any]) -> int:
    """Rows that the base's embedding must have for an adapter's tokens; 0 where it has none."""
    wanted = settings.get("trainable_token_indices")
    lists = wanted.values() if isinstance(wanted, dict) else [wanted] if wanted else []
    return max((1 + max(ids) for ids in lists), default=0)


def _beside_factors(name: str) -> bool:
    """Whether a tensor shows LoRA's factors on an embedding or on the head, whose whole matrix PEFT saves beside
    them."""
    return "lora_embedding_" in name or ".base_layer." in name


def _kind(name: str) -> str:
    """What a tensor that is no factor belongs to."""
    marks = {
        "lora_embedding_": "LoRA on an embedding",
        "lora_magnitude_vector": "DoRA's magnitudes",
        "lora_B.bias": "a bias of LoRA's own",
    }
    whole = (
        "a whole tensor of the model (modules_to_save, LoRA on the head, or embeddings that were resized for new "
        "tokens)"
    )
    return next((kind for mark, kind in marks.items() if mark in name), whole)


def _is_target(settings: Mapping[str, Any], layer: str) -> bool:
    """Whether a layer is among `target_modules`, as PEFT finds it; where there is no list of them, any may be."""
    named = settings.get("target_modules")
    return (
        not isinstance(named, list)
        or _of_experts(settings, layer)
        or any(f".{layer}".endswith(f".{name}") for name in named)
    )


def _of_experts(settings: Mapping[str, Any], layer: str) -> bool:
    """Whether a layer is routed experts, whose factors lie one beside the other; a second adapted matrix of theirs is
    PEFT's base_layer."""
    module = layer.removesuffix(".base_layer")
    return any(f".{module}".endswith(f".{name.rpartition('.')[0]}") for name in settings.get("target_parameters") or ())


def _rank(settings: Mapping[str, Any], layer: str) -> int:
    """As PEFT finds it: the first name that the layer's ends in, else `r`."""
    patterns: Mapping[str, int] = settings.get("rank_pattern", {})
    found = next((name for name in patterns if re.match(rf"(.*\.)?({name})$", layer)), None)
    return patterns[found] if found is not None else int(settings.get("r", 8))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
