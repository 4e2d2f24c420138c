"""Tensors of LoRA adapters, held against their settings: two factors of each layer, and rows of single tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

from align.folders.adapter_settings import MERGE, SHAPE, TRAIN_PLAIN
from align.folders.weights import Tensors

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
PRECISIONS = ("F32", "F16", "BF16", "F64")

FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight")
_MAGNITUDES = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_magnitude_vector(?:\.weight)?")
_ROWS = re.compile(r"(?:base_model\.model\.)?(.+)\.token_adapter\.trainable_tokens_delta")


def fault_of_tensors(settings: Mapping[str, object], tensors: Tensors) -> str | None:
    """Why these tensors are not the two factors of each layer, in a type that can be kept and of the ranks that the
    settings say."""
    if why := without_numbers(tensors) or _fault_of_rows(settings, tensors):
        return why
    for name, (dtype, sizes) in sorted(tensors.items()):
        match = FACTOR.fullmatch(name)
        if _ROWS.fullmatch(name) and dtype in PRECISIONS:
            continue
        if settings.get("use_dora") and _MAGNITUDES.fullmatch(name) and len(sizes) == 1 and dtype in PRECISIONS:
            continue
        if match is None:
            if settings.get("trainable_token_indices") and _EMBEDDING.search(name):
                return f"it holds {name[:200]!r}, a whole matrix beside the rows of its tokens. {ROWS_ALONE}"
            return (
                f"it holds {name[:200]!r}, {_kind(name)}; only LoRA's two factors of linear layers are computed. "
                f"{_remedy(name)}"
            )
        if why := off_target(settings, name, match[1]) or of_other_type(name, dtype):
            return why
        rank = sizes[0] if match[2] == "A" else sizes[-1]
        expected = _rank(settings, match[1])
        fits = rank % expected == 0 if _of_experts(settings, match[1]) else rank == expected
        if len(sizes) != 2 or not fits:
            given = f"{SHAPE} gives this layer rank {expected}" if len(sizes) == 2 else "a factor is a matrix"
            return f"{name} has sizes {' x '.join(map(str, sizes))}, but {given}. The two files do not belong together."
    return _fault_of_magnitudes(tensors) if settings.get("use_dora") else None


def without_numbers(tensors: Tensors) -> str | None:
    """Why an adapter that holds nothing, or an empty tensor, cannot be used."""
    empty = [name for name, (_, sizes) in tensors.items() if 0 in sizes]
    if tensors and not empty:
        return None
    what = f"{empty[0]} is empty" if empty else "it holds no tensor"
    return f"{what}. It was saved without its weights, as sharded training can do; save it again."


def off_target(settings: Mapping[str, object], name: str, layer: str) -> str | None:
    """Why the tensor `name` of a layer cannot be: the settings name others."""
    if _is_target(settings, layer):
        return None
    return f"{name} is of a layer that {SHAPE}'s target_modules does not name. The two files do not belong together."


def of_other_type(name: str, dtype: str) -> str | None:
    """Why a tensor cannot be kept in its type."""
    if dtype in PRECISIONS:
        return None
    return f"{name} is {dtype}; expected {', '.join(PRECISIONS)}. Save it again in one of them."


def _fault_of_magnitudes(tensors: Tensors) -> str | None:
    """Why DoRA's magnitudes are not one for each layer that has factors."""
    factors = {match[1] for match in map(FACTOR.fullmatch, tensors) if match}
    magnitudes = {match[1] for match in map(_MAGNITUDES.fullmatch, tensors) if match}
    if lacking := sorted(factors ^ magnitudes):
        return (
            f"{SHAPE} names use_dora, and {lacking[0]} has not both factors and a magnitude. "
            "The two files do not belong together."
        )
    return None


def _fault_of_rows(settings: Mapping[str, object], tensors: Tensors) -> str | None:
    """Why the rows of single tokens are not those that the settings name."""
    matches = map(_ROWS.fullmatch, tensors)
    found = {match[1]: tensors[match[0]][1] for match in matches if match}
    wanted = settings.get("trainable_token_indices")
    lists = {"": wanted} if isinstance(wanted, list) and wanted else wanted
    if not isinstance(lists, dict) or not lists:
        said = f"it holds rows of tokens in {next(iter(found), '')}, and {SHAPE} names no trainable_token_indices."
        return said if found else None
    for module, sizes in found.items():
        names = [name for name in lists if not name or f".{module}".endswith(f".{name}")]
        ids = lists[names[0]] if names else []
        if len(sizes) != 2 or sizes[0] != len(ids):
            return (
                f"the rows of {module} have sizes {' x '.join(map(str, sizes))}, but trainable_token_indices gives it "
                f"{len(ids)}. The two files do not belong together."
            )
    return None if found else f"{SHAPE} names trainable_token_indices, and there are no rows of them. {MERGE}"


def _beside_factors(name: str) -> bool:
    """Whether a tensor shows LoRA's factors on an embedding or on the head, whose whole matrix PEFT saves beside
    them."""
    return "lora_embedding_" in name or ".base_layer." in name


def _remedy(name: str) -> str:
    if "lora_B.bias" in name:
        return TRAIN_PLAIN
    return f"{MERGE} {UNTIED}" if _beside_factors(name) else MERGE


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


def _is_target(settings: Mapping[str, object], layer: str) -> bool:
    """Whether a layer is among `target_modules`, as PEFT finds it; where there is no list of them, any may be."""
    named = settings.get("target_modules")
    return (
        not isinstance(named, list)
        or _of_experts(settings, layer)
        or any(f".{layer}".endswith(f".{name}") for name in named)
    )


def _of_experts(settings: Mapping[str, object], layer: str) -> bool:
    """Whether a layer is routed experts, whose factors lie one beside the other; a second adapted matrix of theirs is
    PEFT's base_layer."""
    module = layer.removesuffix(".base_layer")
    named = settings.get("target_parameters")
    names = named if isinstance(named, list) else []
    experts = [str(name).rpartition(".")[0] for name in names]
    return any(f".{module}".endswith(f".{name}") for name in experts)


def _rank(settings: Mapping[str, object], layer: str) -> int:
    """As PEFT finds it: the first name that the layer's ends in, else `r`."""
    patterns, rank = settings.get("rank_pattern"), settings.get("r")
    ranks = patterns.items() if isinstance(patterns, dict) else ()
    found = next((rank for name, rank in ranks if re.match(rf"(.*\.)?({name})$", layer)), rank)
    return found if isinstance(found, int) else 8
