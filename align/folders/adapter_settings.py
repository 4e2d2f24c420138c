"""Settings of LoRA adapters that both of Align's computations know, the fused layers and the merged copy. Rows of
single tokens in embedding and head (`trainable_token_indices`) are among them.

One list for `align import`, for what a remote gives and for every load. PEFT has more settings, which change what an
adapter computes, or rewrite the base itself whenever one is loaded; what is not on the list has to be empty. Names are
names, never patterns: a pattern can run for ever.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TypeGuard

SHAPE = "adapter_config.json"
MOST_RANK, MOST_SCALE = 8192, 1e6
MOST_NAMES, MOST_PATTERNS = 16_384, 4096
MOST_TOKENS, MOST_ROWS = 16_384, 1 << 22
EMPTY: tuple[object, ...] = (None, False, 0, "", [], {})
"""What a setting that is on no list may be."""
MERGE = "Merge it into its base with PEFT (merge_and_unload), save that model and start from it with --base."
TRAIN_PLAIN = "PEFT merges no such adapter either: train it again without that."
UNMERGED = ("lora_bias", "alora_invocation_tokens", "arrow_config", "use_qalora")
"""Settings of adapters for which PEFT's merge_and_unload raises: a bias where a plain layer has none, what looks at the
text or routes."""
HARMLESS_INITS = ("gaussian", "eva", "orthogonal", "mica")
"""What these draw is overwritten by the adapter's own tensors; every other one of PEFT's also takes its factors off the
base."""

_NAME = re.compile(r"(?=.{1,300}$)[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", re.ASCII)
_PATTERN = re.compile(r"\^?[A-Za-z0-9_.]{1,300}", re.ASCII)


def _is_rank(value: object) -> bool:
    return type(value) is int and 1 <= value <= MOST_RANK


def _is_scale(value: object) -> bool:
    return _is_number(value) and math.isfinite(value) and 0 < value <= MOST_SCALE


def _is_number(value: object) -> TypeGuard[int | float]:
    return type(value) in (int, float)


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _are_names(value: object) -> bool:
    return value is None or (isinstance(value, list) and len(value) <= MOST_NAMES and all(map(_is_name, value)))


def _are_layers(value: object) -> bool:
    if value is None:
        return True
    layers = value if isinstance(value, list) else [value]
    return len(layers) <= MOST_NAMES and all(type(layer) is int and 0 <= layer < MOST_NAMES for layer in layers)


def _are_tokens(value: object) -> bool:
    """One list of ids, or one for each matrix by its name."""
    if isinstance(value, dict):
        return 1 <= len(value) <= 2 and all(map(_is_name, value)) and all(map(_are_ids, value.values()))
    return value is None or _are_ids(value)


def _are_ids(value: object) -> bool:
    if not isinstance(value, list) or not 0 < len(value) <= MOST_TOKENS or not all(type(i) is int for i in value):
        return False
    return len({*value}) == len(value) and min(value) >= 0 and max(value) < MOST_ROWS


def _by_name(fits: Callable[[object], bool]) -> Callable[[object], bool]:
    def check(value: object) -> bool:
        if not isinstance(value, dict) or len(value) > MOST_PATTERNS:
            return False
        return all(_PATTERN.fullmatch(name) and fits(inner) for name, inner in value.items())

    return check


def _is_text(value: object) -> bool:
    return value is None or (isinstance(value, str) and len(value) <= 1000)


def is_bool(value: object) -> bool:
    return isinstance(value, bool)


Fits = Callable[[object], bool]

PLACES: dict[str, tuple[Fits, str]] = {
    "peft_type": (lambda v: isinstance(v, str), "a name"),
    "task_type": (lambda v: v in (None, "CAUSAL_LM", "SEQ_2_SEQ_LM"), "CAUSAL_LM or SEQ_2_SEQ_LM"),
    **dict.fromkeys(("base_model_name_or_path", "revision", "peft_version"), (_is_text, "a short text")),
    **dict.fromkeys(("inference_mode", "fan_in_fan_out"), (is_bool, "true or false")),
    "bias": (lambda v: v == "none", "none"),
    **dict.fromkeys(
        ("target_modules", "exclude_modules"), (_are_names, f"a list of at most {MOST_NAMES:,} plain names of layers")
    ),
    "layers_to_transform": (_are_layers, f"numbers of layers, below {MOST_NAMES:,}"),
    "layers_pattern": (lambda v: _is_name(v) or _are_names(v), "plain names"),
}
"""What the settings that all methods share may be, and in words: where an adapter is, and what it is of."""

KNOWN: dict[str, tuple[Fits, str]] = PLACES | {
    "peft_type": (lambda v: v == "LORA", "LORA"),
    **dict.fromkeys(("use_rslora", "use_dora"), (is_bool, "true or false")),
    "r": (_is_rank, f"a whole number from 1 to {MOST_RANK:,}"),
    "lora_alpha": (_is_scale, "a number above 0, at most a million"),
    "rank_pattern": (_by_name(_is_rank), f"at most {MOST_PATTERNS:,} ranks by plain names of layers"),
    "alpha_pattern": (_by_name(_is_scale), f"at most {MOST_PATTERNS:,} numbers by plain names of layers"),
    "lora_dropout": (lambda v: _is_number(v) and 0 <= v <= 1, "a number from 0 to 1"),
    "init_lora_weights": (is_bool, "true or false"),
    "target_parameters": (_are_names, f"a list of at most {MOST_NAMES:,} plain names of routed experts' matrices"),
    "trainable_token_indices": (
        _are_tokens,
        f"at most {MOST_TOKENS:,} different ids of tokens, in one list or by name of embedding and head",
    ),
    "megatron_core": (lambda v: v in (None, "megatron.core"), "what PEFT writes there"),
    "qalora_group_size": (lambda v: type(v) is int, "a whole number"),
}
"""What each setting of a LoRA adapter may be, and in words. A missing one has PEFT's default."""


def fault(settings: Mapping[str, object]) -> str | None:
    """Why an adapter with these settings would not be computed right, with what to do; None where it would."""
    if settings.get("peft_type") != "LORA":
        return f"peft_type is {settings.get('peft_type')!r}; expected LORA."
    for key, value in settings.items():
        if key == "init_lora_weights" and isinstance(value, str):
            return _about_init(value)
        if key in KNOWN:
            if why := misfit(key, value, KNOWN[key]):
                return why
        elif value not in EMPTY:
            remedy = TRAIN_PLAIN if key in UNMERGED else MERGE
            return (
                f"{key} is {shown(value)}, which changes more than LoRA's two factors; only plain LoRA is "
                f"computed. {remedy}"
            )
    return None


def fault_of_places(settings: Mapping[str, object]) -> str | None:
    """Why what these settings say of where an adapter is, and of what it is, cannot be; every other has to be empty."""
    for key, value in settings.items():
        if key in PLACES:
            if why := misfit(key, value, PLACES[key]):
                return why
        elif value not in EMPTY:
            return f"{key} is {shown(value)}, which Align does not compute. {MERGE}"
    return None


def misfit(key: str, value: object, known: tuple[Fits, str]) -> str | None:
    """Why a setting is not what it may be: whether it fits, and what fits in words."""
    fits, expected = known
    return None if fits(value) else f"{key} is {shown(value)}; expected {expected}."


def _about_init(value: str) -> str:
    if value.lower() in HARMLESS_INITS:
        return f"init_lora_weights is {value!r}, which a stored adapter never has: `align import` writes true."
    return (
        f"init_lora_weights is {shown(value)}: PEFT takes such an adapter's first factors off the base each time one "
        "is loaded, so the base that roles share would change. Save it as plain LoRA where its first state was kept "
        f"(save_pretrained(DIR, path_initial_model_for_weight_conversion=FIRST)). {MERGE.replace('Merge', 'Or merge')}"
    )


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"
