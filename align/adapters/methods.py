"""The methods by which a base is adapted, one entry each, and what is asked of any of them.

PEFT computes them. An entry says what PEFT needs for a fresh one and for one that was saved, which tensors are its own,
and how it is merged. Everything else asks here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import torch
from peft import LoraConfig, PeftConfig
from peft.tuners import (
    boft,
    c3a,
    delora,
    fourierft,
    gralora,
    hira,
    hra,
    ia3,
    ln_tuning,
    loha,
    lokr,
    miss,
    oft,
    road,
    waveft,
)
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import constants
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.adapters import adalora, by_peft, starts
from align.adapters.lora import is_conv1d
from align.adapters.targets import ends, lora_config, norms, places
from align.folders.adapter import SHAPE
from align.ground.errors import InputError
from align.parallel.narrow import NarrowLinear
from align.parallel.narrow import matrix as widened
from align.recipe import Adapter

Fresh = Callable[[Adapter, PreTrainedModel], PeftConfig]


@dataclass(frozen=True)
class Method:
    """A kind of adapter."""

    peft_type: str
    """PEFT's name for it, which adapter_config.json holds."""
    mark: str
    """In the names of its tensors, and of no tensor of a base."""
    layer: type[BaseTunerLayer]
    """PEFT's layer around an adapted one."""
    config: Fresh
    """Settings of a stage -> PEFT's, for a fresh adapter on this model."""
    read: Callable[[Path], PeftConfig] = by_peft.read
    """Settings in a folder -> PEFT's, for a copy that agrees with every other. Raises: InputError."""
    scale: Callable[[Any], Tensor] = by_peft.numbers
    """PEFT's settings -> the numbers that, beside its tensors, decide what it adds."""
    adds_nothing: Callable[[Iterable[Any], str, Mapping[str, Tensor]], bool] = lambda layers, name, tensors: (
        by_peft.adds_nothing(layers, name)
    )
    """Adapted layers, an adapter's name and its tensors -> whether the base with it is the base."""
    merged: Callable[[Any, Sequence[str], str], Tensor] = by_peft.merged
    """An adapted layer, its adapters and the name of a parameter -> that parameter with the adapters merged."""
    changes: tuple[str, ...] = ("weight",)
    """The parameters of a layer that merging changes."""


def _lora(settings: Adapter, model: PreTrainedModel) -> LoraConfig:
    s = settings
    if s.init_lora_weights:
        starts.check_rank(s, model)
    kin = (s.method == "rslora", s.method == "dora")
    return lora_config(s.rank, s.alpha, s.targets, s.dropout, model, s.layers, s.experts, *kin)


def _read_lora(folder: Path) -> LoraConfig:
    """Without its dropout. Raises: InputError where it is no LoRA of linear layers."""
    config = by_peft.read(folder)
    assert isinstance(config, LoraConfig)
    config.lora_dropout = 0.0
    return config


def _is_b_zero(layers: Iterable[Any], name: str, tensors: Mapping[str, Tensor]) -> bool:
    """W + s B A is W where B is 0, whatever A is; rows of tokens count as they are."""
    if any("magnitude" in key for key in tensors):
        return by_peft.adds_nothing(layers, name)
    return not any(bool(t.any()) for key, t in tensors.items() if "lora_A" not in key and "lora_embedding_A" not in key)


def _lora_merged(layer: Any, names: Sequence[str], matrix: str) -> Tensor:
    """The base's matrix and what each adapter adds to it."""
    if any(name in getattr(layer, "lora_variant", ()) for name in names):
        return by_peft.merged(layer, names, matrix)
    inner = layer.get_base_layer()
    base = widened(inner) if isinstance(inner, NarrowLinear) else getattr(inner, matrix)
    return base + sum(layer.get_delta_weight(name) for name in names)


def _sized(kind: Callable[..., PeftConfig], divides: str = "", **sizes: object) -> Fresh:
    """PEFT's settings of a method of linear layers: `sizes` are its own, a text being the name of one of `Adapter`'s.
    `divides`: the widths, "in" or "out", that `block_size` divides."""

    def config(settings: Adapter, model: PreTrainedModel) -> PeftConfig:
        where = places(settings.targets, model, settings.layers)
        modules = {name: _linear(settings.method, name, model) for name in sorted(where.names)}
        for name, module in modules.items():
            widths = {"in": module.in_features, "out": module.out_features}
            wrong = [f"{widths[side]} {side}" for side in divides.split() if widths[side] % settings.block_size]
            if wrong:
                raise InputError(
                    f"adapter.block_size is {settings.block_size}, which does not divide the widths of {name} "
                    f"({', '.join(wrong)}), as adapter.method {settings.method} needs. Take a divisor of them."
                )
            bound = BOUNDS.get(settings.method)
            if bound and getattr(settings, bound) > (most := _most(bound, module)):
                raise InputError(
                    f"adapter.{bound} is {getattr(settings, bound)}, and {name} has room for {most} in adapter.method "
                    f"{settings.method}. Take no more."
                )
        own = {key: getattr(settings, value) if isinstance(value, str) else value for key, value in sizes.items()}
        return kind(target_modules=where.modules, **where.layers, **own)

    return config


BOUNDS = {"miss": "rank", "fourierft": "frequencies", "waveft": "frequencies"}
"""Settings that cannot be larger than a matrix has inputs, or numbers."""


def _most(setting: str, module: nn.Linear) -> int:
    return module.in_features * (1 if setting == "rank" else module.out_features)


def _linear(method: str, name: str, model: PreTrainedModel) -> nn.Linear:
    """Raises: InputError for a layer that PEFT's LoRA alone adapts."""
    module: Any = model.get_submodule(name)
    while isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if is_conv1d(module):
        raise InputError(
            f"adapter.method is {method}, but {name} of {type(model).__name__} is a Conv1D, whose matrix is "
            "transposed. Take lora, rslora or dora."
        )
    assert isinstance(module, nn.Linear)
    return module


def _ia3(settings: Adapter, model: PreTrainedModel) -> PeftConfig:
    """Outputs of keys and values are scaled, and inputs of the last matrix of a feed-forward, as PEFT lists them by
    family; outputs of `targets`, where these are named."""
    if settings.targets != "all-linear":
        where = places(settings.targets, model)
        return peft.IA3Config(target_modules=where.modules, feedforward_modules=[])
    kind = model.config.get_text_config().model_type
    targets = constants.TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING.get(kind)
    into = constants.TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind)
    if targets is None or into is None:
        raise InputError(
            f"adapter.method is ia3, and PEFT does not list which layers of {kind} it scales: name those of keys and "
            "values in adapter.targets."
        )
    modules = [name for name, _ in model.named_modules()]
    found = {name for name in places("all-linear", model).names if name.rpartition(".")[2] in targets}
    fed = {name for name in found if name.rpartition(".")[2] in into}
    return peft.IA3Config(target_modules=ends(found, modules), feedforward_modules=ends(fed, modules))


def _norms(settings: Adapter, model: PreTrainedModel) -> PeftConfig:
    return peft.LNTuningConfig(target_modules=norms(model))


LORA = Method(
    peft_type="LORA",
    mark="lora_",
    layer=LoraLayer,
    config=_lora,
    read=_read_lora,
    scale=lambda config: torch.tensor([config.lora_alpha, config.r, float(config.use_rslora)]),
    adds_nothing=_is_b_zero,
    merged=_lora_merged,
)
"""LoRA, and what PEFT makes of it by one of its settings."""
BOTH = ("weight", "bias")

METHODS: dict[str, Method] = {
    "lora": LORA,
    # s = alpha / sqrt(r): Kalajdzievski 2023 (arXiv 2312.03732) eq. 2
    "rslora": LORA,
    # m (W + s B A) / ||W + s B A||: Liu et al. 2024 (arXiv 2402.09353) eq. 5
    "dora": LORA,
    # (alpha / R) P diag(E) Q, of which numbers of E are taken away: Zhang et al. 2023 (arXiv 2303.10512) eq. 3
    "adalora": Method(
        "ADALORA",
        ".lora_E",
        AdaLoraLayer,
        _sized(adalora.config, init_r="rank", lora_alpha="alpha", target_r="target_rank"),
        read=adalora.read,
        adds_nothing=lambda layers, name, tensors: adalora.adds_nothing(tensors),
    ),
    # outputs (or inputs) times a vector: Liu et al. 2022 (arXiv 2205.05638) section 3.3
    "ia3": Method("IA3", ".ia3_l", ia3.IA3Layer, _ia3, changes=BOTH),
    # (B1 A1) * (B2 A2): Hyeon-Woo et al. 2021 (arXiv 2108.06098) eq. 3, in LyCORIS (arXiv 2309.14859)
    "loha": Method("LOHA", ".hada_w", loha.LoHaLayer, _sized(peft.LoHaConfig, r="rank", alpha="alpha")),
    # Kronecker products: LyCORIS, Yeh et al. 2023 (arXiv 2309.14859) section 3
    "lokr": Method("LOKR", ".lokr_w", lokr.LoKrLayer, _sized(peft.LoKrConfig, r="rank", alpha="alpha")),
    # W * (B A), elementwise: Huang et al. 2025, HiRA
    "hira": Method("HIRA", ".hira_", hira.HiraLayer, _sized(peft.HiraConfig, r="rank")),
    # LoRA by blocks: Jung et al. 2025 (arXiv 2505.20355)
    "gralora": Method(
        "GRALORA", ".gralora_", gralora.GraloraLayer, _sized(peft.GraloraConfig, r="rank", alpha="alpha")
    ),
    # LoRA of bounded strength: Bini et al. 2025 (arXiv 2503.18225)
    "delora": Method("DELORA", ".delora_", delora.DeloraLayer, _sized(peft.DeloraConfig, r="rank")),
    # shards of the input share a matrix: Kang and Yin 2024 (arXiv 2409.15371)
    "miss": Method("MISS", ".miss_block", miss.MissLayer, _sized(peft.MissConfig, r="rank")),
    # inputs rotated by blocks: Qiu et al. 2023 (arXiv 2306.07280), Liu et al. 2025 (arXiv 2506.19847)
    "oft": Method("OFT", ".oft_R", oft.OFTLayer, _sized(peft.OFTConfig, "in", r=0, oft_block_size="block_size")),
    # rotations of butterflies: Liu et al. 2023 (arXiv 2311.06243)
    "boft": Method("BOFT", ".boft_", boft.BOFTLayer, _sized(peft.BOFTConfig, "in", boft_block_size="block_size")),
    # reflections: Yuan et al. 2024 (arXiv 2405.17484)
    "hra": Method("HRA", ".hra_u", hra.HRALayer, _sized(peft.HRAConfig, r="rank")),
    # outputs rotated in pairs: Liao et al. 2024 (arXiv 2409.00119)
    "road": Method(
        "ROAD", ".road_", road.RoadLayer, _sized(peft.RoadConfig, "out", group_size="block_size"), changes=BOTH
    ),
    # circular convolutions by blocks: Chen et al. 2024 (arXiv 2407.19342)
    "c3a": Method(
        "C3A", ".c3a_kernel", c3a.C3ALayer, _sized(peft.C3AConfig, "in out", block_size="block_size", init_weights=True)
    ),
    # coefficients of a Fourier transform: Gao et al. 2024 (arXiv 2405.03003) eq. 2-4
    "fourierft": Method(
        "FOURIERFT",
        ".fourierft_",
        fourierft.FourierFTLayer,
        _sized(peft.FourierFTConfig, n_frequency="frequencies", init_weights=True),
    ),
    # coefficients of a wavelet transform: Bilican et al. 2025 (arXiv 2505.12532)
    "waveft": Method("WAVEFT", ".waveft_", waveft.WaveFTLayer, _sized(peft.WaveFTConfig, n_frequency="frequencies")),
    # the weights of norms: Zhao et al. 2023 (arXiv 2312.11420)
    "ln_tuning": Method("LN_TUNING", ".ln_tuning_", ln_tuning.layer.LNTuningLayer, _norms, changes=BOTH),
}
"""By the name that `adapter.method` has."""
ROWS = "trainable_tokens_"
"""In the names of rows that an adapter of any method brings for tokens: `packed.token_rows`."""


def config_of(settings: Adapter, model: PreTrainedModel) -> PeftConfig:
    """PEFT's settings for a fresh adapter. Raises: InputError for what the model has not."""
    return METHODS[settings.method].config(settings, model)


def read_config(folder: Path) -> PeftConfig:
    """PEFT's settings of the adapter in a folder in PEFT's layout. Raises: InputError where it cannot be loaded."""
    try:
        found = json.loads((folder / SHAPE).read_text(encoding="utf-8"))["peft_type"]
    except (OSError, ValueError, KeyError, TypeError):
        found = None
    method = next((method for method in METHODS.values() if method.peft_type == found), METHODS["lora"])
    return method.read(folder)  # which says what is wrong with what is none of them


def method_of(config: PeftConfig) -> Method:
    """The method of PEFT's settings."""
    return next(method for method in METHODS.values() if method.peft_type == config.peft_type)


def layers() -> tuple[type[BaseTunerLayer], ...]:
    """PEFT's layers around adapted ones."""
    return tuple(dict.fromkeys(method.layer for method in METHODS.values()))


def holds(layer: BaseTunerLayer, name: str) -> bool:
    """Whether an adapted layer holds a part of adapter `name`."""
    return any(name in getattr(layer, kind, ()) for kind in layer.adapter_layer_names)


def of_adapter(key: str) -> bool:
    """Whether the tensor or module called `key` belongs to any adapter."""
    return ROWS in key or any(method.mark in f".{key}" for method in METHODS.values())


def is_of(name: str, key: str) -> bool:
    """Whether the tensor called `key` belongs to adapter `name`."""
    return f".{name}." in f"{key}." and of_adapter(key)
