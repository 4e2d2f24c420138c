"""What a stored adapter of a method other than LoRA may hold: its settings in adapter_config.json, and its tensors.

As for LoRA, one list for what is imported, pulled and loaded. Settings choose no code, no pattern and no start: an
adapter's own tensors decide what it computes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from align.folders.adapter_settings import KNOWN, MERGE, PLACES, Fits, fault_of_places, misfit
from align.folders.adapter_tensors import of_other_type, off_target, without_numbers
from align.folders.weights import Tensors

MOST_NUMBERS = 1 << 24


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value <= MOST_NUMBERS


SIZE, SCALE, FLAG = KNOWN["r"], KNOWN["lora_alpha"], PLACES["inference_mode"]
COUNT = (_is_count, f"a whole number up to {MOST_NUMBERS:,}")
NONE: tuple[Fits, str] = (lambda value: not value, "nothing, 0 or false")


@dataclass(frozen=True)
class Kind:
    """A method as its folder has it."""

    settings: Mapping[str, tuple[Fits, str]]
    """Its own settings -> what each may be, and in words."""
    tensors: tuple[str, ...]
    """The ends of its tensors' names; each holds numbers that can be kept."""
    may_be_empty: bool = False
    """Whether a layer may have no rank left."""


_START: dict[str, tuple[Fits, str]] = {"init_weights": (lambda value: value is True, "true")}
_DROPS = dict.fromkeys(("module_dropout", "rank_dropout"), NONE)
_LYCORIS = {"r": SIZE, "alpha": SCALE, "use_effective_conv2d": NONE, "rank_pattern": NONE, "alpha_pattern": NONE}
_FOURIER: dict[str, tuple[Fits, str]] = {
    "n_frequency": COUNT,
    "scaling": SCALE,
    "random_loc_seed": COUNT,
    "n_frequency_pattern": NONE,
}

_ADALORA = (
    {key: KNOWN[key] for key in ("lora_alpha", "megatron_core", "qalora_group_size")}
    | dict.fromkeys(("r", "init_r", "target_r"), SIZE)
    | dict.fromkeys(("tinit", "tfinal", "deltaT", "total_step"), COUNT)
    | dict.fromkeys(("beta1", "beta2", "orth_reg_weight"), KNOWN["lora_dropout"])
    | {"lora_dropout": NONE, "init_lora_weights": FLAG, "rank_pattern": NONE}
)

KINDS: dict[str, Kind] = {
    "IA3": Kind(
        {"init_ia3_weights": (lambda value: value is True, "true"), "feedforward_modules": PLACES["target_modules"]},
        ("ia3_l",),
    ),
    "LOHA": Kind(_START | _DROPS | _LYCORIS, ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")),
    "LOKR": Kind(
        _START
        | _DROPS
        | _LYCORIS
        | {"decompose_both": FLAG, "rank_dropout_scale": NONE}
        | {"decompose_factor": (lambda value: value == -1, "-1")},
        ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b"),
    ),
    "HIRA": Kind(_START | {"r": SIZE, "hira_dropout": NONE, "rank_pattern": NONE}, ("hira_A", "hira_B")),
    "GRALORA": Kind(
        _START | {"r": SIZE, "alpha": SCALE, "gralora_k": SIZE, "hybrid_r": NONE, "gralora_dropout": NONE},
        ("gralora_A", "gralora_B"),
    ),
    "DELORA": Kind(
        _START
        | {"r": SIZE, "delora_lambda": SCALE, "module_dropout": NONE, "rank_pattern": NONE, "lambda_pattern": NONE},
        ("delora_A", "delora_B", "delora_lambda", "delora_w_norm"),
    ),
    "MISS": Kind(_START | {"r": SIZE, "mini_r": SIZE, "miss_dropout": NONE}, ("miss_block",)),
    "OFT": Kind(
        _START
        | dict.fromkeys(("r", "oft_block_size", "num_cayley_neumann_terms"), COUNT)
        | {"module_dropout": NONE, "coft": NONE, "block_share": FLAG, "use_cayley_neumann": FLAG, "eps": SCALE},
        ("oft_R", "oft_R.weight"),
    ),
    "BOFT": Kind(
        _START
        | dict.fromkeys(("boft_block_size", "boft_block_num"), COUNT)
        | {"boft_n_butterfly_factor": SIZE, "boft_dropout": NONE},
        ("boft_R", "boft_s"),
    ),
    "HRA": Kind(_START | {"r": SIZE, "apply_GS": FLAG}, ("hra_u",)),
    "ROAD": Kind(
        _START
        | {"group_size": SIZE, "variant": (lambda value: value in ("road_1", "road_2", "road_4"), "road_1, _2 or _4")},
        ("road_alpha", "road_theta"),
    ),
    "C3A": Kind(_START | {"block_size": SIZE, "block_size_pattern": NONE}, ("c3a_kernel",)),
    "FOURIERFT": Kind(_START | _FOURIER, ("fourierft_spectrum",)),
    "WAVEFT": Kind(
        _START
        | _FOURIER
        | {"use_idwt": FLAG, "proportional_parameters": FLAG}
        | {"wavelet_family": (lambda value: value == "db1", "db1")},
        ("waveft_spectrum",),
    ),
    "LN_TUNING": Kind({}, ("ln_tuning_layers.weight", "ln_tuning_layers.bias")),
    "ADALORA": Kind(_ADALORA, ("lora_A", "lora_B", "lora_E"), may_be_empty=True),
}
"""By PEFT's name of the method."""


def fault(settings: Mapping[str, object], kind: Kind) -> str | None:
    """Why an adapter of this kind with these settings would not be computed right; None where it would."""
    for key, value in settings.items():
        if key in kind.settings and (why := misfit(key, value, kind.settings[key])):
            return f"{why} {MERGE}"
    return fault_of_places({key: value for key, value in settings.items() if key not in kind.settings})


def fault_of_tensors(settings: Mapping[str, object], tensors: Tensors, kind: Kind) -> str | None:
    """Why these tensors are not those of such an adapter, in a type that can be kept."""
    held = {name: sizes for name, sizes in tensors.items() if 0 not in sizes[1]} if kind.may_be_empty else tensors
    if why := without_numbers(held):
        return why
    ends = "|".join(map(re.escape, kind.tensors))
    own = re.compile(rf"(?:base_model\.model\.)?(.+)\.(?:{ends})")
    for name, (dtype, _) in sorted(tensors.items()):
        match = own.fullmatch(name)
        if match is None:
            return f"it holds {name[:200]!r}, which is no tensor of a {settings['peft_type']} adapter. {MERGE}"
        if why := of_other_type(name, dtype) or off_target(settings, name, match[1]):
            return why
    return None
