"""What of a base adapters adapt, and under which names PEFT knows it.

Adapted are the linear layers that run when the decoder reads text, found by watching a forward, so that towers for
images, heads, and matrices that a model reads without calling their layer (Mamba's `dt_proj`) are none of them. Left
out is further what cannot be exact: layers that compute more than a product (routers), layers that share their matrix
with others (a merge could not tell them apart), and those that PEFT refuses or takes for something else, which it is
asked. Routed experts are parameters of three dimensions: (experts, out, in) or transposed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from peft import LoraConfig, PeftConfig
from peft.tuners.lora import LoraModel
from peft.tuners.tuners_utils import BaseTunerLayer, check_target_module_exists
from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.adapters.lora import is_conv1d, read_together
from align.ground.errors import InputError
from align.packed.layers import layers_of
from align.packed.token_rows import bare, is_wrapper
from align.parallel.narrow import kept


@dataclass(frozen=True)
class Adaptable:
    """Full names of the linear layers and of the expert parameters that can be adapted, and why others cannot: name ->
    a few words."""

    linears: tuple[str, ...]
    experts: tuple[str, ...]
    others: dict[str, str]


@dataclass(frozen=True)
class Places:
    """Where an adapter lies, as PEFT's settings say it."""

    names: set[str]
    """Full names of the adapted layers, below `in_layers` too."""
    modules: list[str]
    """`target_modules`."""
    layers: dict[str, Any]
    """`layers_to_transform` and `layers_pattern`, where they say which layers."""
    in_layers: tuple[str, ...]
    """Prefixes of the layers that are meant."""


def places(targets: str | list[str], model: PreTrainedModel, layers: int | None = None) -> Places:
    """`targets`, ends of names, or "all-linear", in the top `layers` layers; None is all.

    Raises: InputError for targets or layers that the model has not.
    """
    there = adaptable(model)
    wanted = set(there.linears if targets == "all-linear" else _named(targets, there, model))
    modules = dict(_modules(model))
    found = ends(wanted, modules)
    if layers is None:
        return Places(wanted, found, {}, ("",))
    container, prefixes = _top(model, layers)
    if any("." in end for end in found):  # PEFT restricts no longer name to layers
        return Places(wanted, ends({name for name in wanted if name.startswith(prefixes)}, modules), {}, prefixes)
    count = len(layers_of(model)[1])
    which = {"layers_to_transform": list(range(count - layers, count)), "layers_pattern": container}
    return Places(wanted, found, which, prefixes)


def lora_config(
    rank: int,
    alpha: float,
    targets: str | list[str],
    dropout: float,
    model: PreTrainedModel,
    layers: int | None = None,
    experts: bool = False,
    rslora: bool = False,
    dora: bool = False,
) -> LoraConfig:
    """LoRA as PEFT has it (Hu et al. 2021, arXiv 2106.09685): W + (alpha / rank) * B A on `targets`, ends of names, or
    on "all-linear".

    `layers`: adapt that many, counted from the top; None is all. `experts`: routed experts too. `rslora`, `dora`: its
    kin. Raises: InputError for targets, layers or experts that the model has not.
    """
    where = places(targets, model, layers)
    modules = dict(_modules(model))
    config = LoraConfig(
        r=rank, lora_alpha=cast(int, alpha), target_modules=where.modules, lora_dropout=dropout, bias="none"
    )
    config.use_rslora, config.use_dora = rslora, dora
    config.fan_in_fan_out = any(is_conv1d(modules[name]) for name in where.names)  # GPT-2
    for key, value in where.layers.items():
        setattr(config, key, value)
    if experts:
        config.target_parameters = _expert_targets(model, adaptable(model), dropout, where.in_layers)
    return config


def norms(model: PreTrainedModel) -> list[str]:
    """Ends of the names of the model's norms, which scale each feature of a token by a weight."""
    modules = dict(_modules(model))
    found = {name for name, m in modules.items() if "norm" in type(m).__name__.lower() and hasattr(m, "weight")}
    return ends(found, modules)


def adaptable(model: PreTrainedModel) -> Adaptable:
    """What of `model` can be adapted; adapters may be on it already."""
    modules = dict(_modules(model))
    shared = Counter(id(weight) for module in modules.values() if isinstance(weight := kept(module), Tensor))
    run = {name for names in read_together(model) for name in names}
    linears = {name: module for name, module in modules.items() if _is_linear(module)}
    refused = {last: _refused(model, last) for last in {name.split(".")[-1] for name in linears}}
    why = {
        name: _unfit(model, module, name in run, shared) or refused[name.split(".")[-1]]
        for name, module in linears.items()
    }
    others = {name: words for name, words in why.items() if words}
    return Adaptable(tuple(name for name in why if not why[name]), tuple(_experts(model)), others)


def ends(chosen: Collection[str], names: Iterable[str], least: int = 1) -> list[str]:
    """The shortest ends of dotted names, of `least` parts, that mean all of `chosen` and no other of `names`."""

    def longer(name: str) -> list[str]:
        return [name.split(".", i)[-1] for i in range(name.count(".") + 1 - least, -1, -1)]

    taken = {end for name in names if name not in chosen for end in longer(name)}
    return sorted({next((end for end in longer(name) if end not in taken), name) for name in chosen})


def left_out(model: PreTrainedModel, config: PeftConfig) -> str:
    """What an adapter that is on `model` leaves out where that is most of its matrices, in a sentence; empty where
    nothing is."""
    there = adaptable(model)
    kept_back = sorted({name.split(".")[-1] for name, why in there.others.items() if why == TAKEN})
    if target_parameters(config) or not there.experts:
        return ""
    also = ""
    if kept_back:
        also = f", and {', '.join(kept_back)} of dense and shared layers, whose names PEFT keeps for the experts'"
    share = adapted_share(model, config)
    return (
        f"adapts {share:.0%} of the matrices: routed experts are left out{also}; adapter.experts: true adapts the "
        "experts"
    )


def adapted_share(model: PreTrainedModel, config: PeftConfig) -> float:
    """Of the weights in the decoder's matrices, those of embeddings and head left out."""
    there, sizes = adaptable(model), {name: p.numel() for name, p in _parameters(model)}
    adapted = sum(sizes[f"{name}.weight"] for name in there.linears if check_target_module_exists(config, name))
    adapted += sum(sizes[name] for name in there.experts) if target_parameters(config) else 0
    whole = model.config.is_encoder_decoder or model.get_decoder() is model
    decoder = model.base_model if whole else model.get_decoder()
    outside = {
        id(kept(m)) for m in model.modules() if isinstance(m, nn.Embedding) or m is bare(model.get_output_embeddings())
    }
    total = sum(p.numel() for _, p in _parameters(decoder) if p.ndim > 1 and id(p) not in outside)
    return adapted / total


def target_parameters(config: PeftConfig) -> list[str]:
    """Parameters of the base that an adapter adapts beside layers: matrices of routed experts."""
    return getattr(config, "target_parameters", None) or []


TAKEN = "PEFT takes its name for the routed experts'"


def _unfit(model: PreTrainedModel, module: nn.Module, runs: bool, shared: Counter[int]) -> str:
    """Why a linear layer cannot be adapted, whatever its name; empty where it can."""
    if module is bare(model.get_output_embeddings()):
        return "it is the head"
    if not runs:
        return "reading text does not call it as a linear layer"
    return "it shares its matrix with another layer" if shared[id(kept(module))] > 1 else ""


def _refused(model: PreTrainedModel, last: str) -> str:
    """Why PEFT does not adapt layers whose names end in `last` in a model of this family; empty where it does."""
    try:
        LoraModel._check_target_module_compatiblity(cast(Any, None), LoraConfig(), model, last)
    except ValueError:
        return "PEFT refuses it in this family"
    config = LoraConfig(target_modules=[last])
    try:
        convert_peft_config_for_transformers(config, model, None)
    except ValueError:
        return TAKEN
    return "" if config.target_modules == {last} else TAKEN


def _named(targets: Sequence[str], there: Adaptable, model: PreTrainedModel) -> Iterator[str]:
    """The layers that `targets`, ends of names, mean. Raises: InputError for one that means none."""
    for target in targets:
        found = [name for name in there.linears if f".{name}".endswith(f".{target}")]
        if not found:
            why = next(
                (why for name, why in there.others.items() if f".{name}".endswith(f".{target}")),
                "it names no linear layer",
            )
            if not target:
                why = "it is empty"
            kinds = ", ".join(sorted({name.split(".")[-1] for name in there.linears}))
            raise InputError(
                f"adapter.targets: {target!r} cannot be adapted in {type(model).__name__}: {why}. It has {kinds}."
            )
        yield from found


def _expert_targets(model: PreTrainedModel, there: Adaptable, dropout: float, in_layers: tuple[str, ...]) -> list[str]:
    """PEFT's `target_parameters`. Raises: InputError for a model without routed experts, and beside dropout."""
    if not there.experts:
        raise InputError(f"adapter.experts is true, but {type(model).__name__} has no routed experts; leave it out.")
    if dropout:
        raise InputError(
            f"adapter.dropout is {dropout}, which adapters of experts cannot have; set it to 0, or leave out "
            "adapter.experts."
        )
    names = {name for name, _ in _parameters(model)}
    return ends({name for name in there.experts if name.startswith(in_layers)}, names, least=2)  # experts.down_proj


def _top(model: PreTrainedModel, layers: int) -> tuple[str, tuple[str, ...]]:
    """The name of the list of layers, and the prefixes of the `layers` upper ones. Raises: InputError where there are
    not that many."""
    try:
        container, there = layers_of(model)
    except ValueError as error:
        raise InputError(f"adapter.layers is {layers}, but {error}; leave it out.") from error
    if layers > len(there):
        raise InputError(
            f"adapter.layers is {layers}, but {type(model).__name__} here has {len(there)} layers; give at most that."
        )
    path = next(name for name, module in model.named_modules() if module is there)
    return container, tuple(f"{path}.{i}." for i in range(len(there) - layers, len(there)))


def _modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The base's own modules, under the names that they had without adapters: what PEFT put around one is gone
    through."""
    seen: set[int] = set()

    def below(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        module = _inner(module)
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module
        for part, child in module.named_children():
            yield from below(f"{name}.{part}" if name else part, child)

    yield from below("", model)


def _inner(module: nn.Module) -> nn.Module:
    """The base's own module inside what PEFT put around it."""
    while isinstance(module, BaseTunerLayer) or is_wrapper(module):
        module = module.get_base_layer() if isinstance(module, BaseTunerLayer) else bare(module)
    return module


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    seen: set[int] = set()
    for name, module in _modules(model):
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) not in seen:
                seen.add(id(parameter))
                yield f"{name}.{key}" if name else key, parameter


def _experts(model: PreTrainedModel) -> Iterator[str]:
    """Matrices of routed experts: parameters of three dimensions, the first of which counts the experts, that no layer
    of torch's holds."""
    config = model.config.get_text_config()
    keys = ("num_experts", "num_local_experts", "n_routed_experts")
    counts = {getattr(config, key, None) for key in keys} - {None, 0, 1}
    modules = dict(_modules(model))
    for name, parameter in _parameters(model):
        holder = modules[name.rpartition(".")[0]]
        if parameter.ndim == 3 and parameter.shape[0] in counts and not type(holder).__module__.startswith("torch."):
            yield name


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or is_conv1d(module)
