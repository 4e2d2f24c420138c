"""Bases as every stage needs them: exact attention over packed groups, no dropout, one precision, maybe quantised."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from align.folders.config import CONFIG, is_encoder_decoder, other_kind, quantisation, read_json
from align.folders.model import check_folder
from align.ground.errors import InputError
from align.ground.json import Json
from align.models.precision import DTYPES
from align.models.process import device
from align.models.save import stored_dtype
from align.models.weights import (
    LoadingInfo,
    auto_class,
    check_complete,
    check_outputs,
    explained,
    mapped_or_read,
    note_tying,
    unreadable,
)
from align.packed.again import keep_less
from align.packed.attention import select_packed_attention
from align.parallel.narrow import ask_narrow, keep_narrow

if TYPE_CHECKING:
    from align.memory.shapes import LlamaSizes


def load_config(path: Path) -> PreTrainedConfig:
    """Model config with every dropout at 0 (detail 7 of arXiv 2403.17031): with dropout on, two passes over the same
    tokens differ, and KL = 0 and ratio = 1 fail.

    Raises: InputError for a config that transformers cannot read, or a model that only code of its own can load: Align
    runs none.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises for values that it does not take
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{path}: its config.json names code that comes with the model (auto_map), and transformers knows no "
                "such model by itself. Align runs no code of a model; take a base that transformers has built in."
            ) from error
        raise InputError(f"{path / CONFIG}: {unreadable(error)}.") from error
    for part in (
        config,
        *(getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None),
    ):
        for name, value in vars(part).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith(("pdrop", "layerdrop"))):
                setattr(part, name, 0.0)
    if 0 < getattr(config, "rescale_every", 0) < config.num_hidden_layers:
        raise InputError(
            f"{path}: transformers rescales matrices of this {config.model_type} model in place when it evaluates, so "
            "that an adapter or a merged model would mean something else wherever it is loaded; take another base."
        )
    return config


def checked(path: Path, quantize: str | None) -> tuple[PreTrainedConfig, str | None]:
    """The model's config in a folder, and how its weights are quantised there; None where they are not.

    Raises: InputError where the folder holds no language model.
    """
    settings = check_folder(path)
    own = quantisation(settings, path)
    if own and quantize not in (None, own):
        raise InputError(f"{path} is quantised already, in {own}; it cannot be loaded in {quantize}.")
    config = load_config(path)
    if kind := other_kind(config.to_dict()):  # by the defaults of its class too
        raise InputError(f"{path} holds {kind}; Align trains language models.")
    if is_encoder_decoder(config.to_dict()) != is_encoder_decoder(settings):
        raise InputError(
            f"{path / CONFIG}: a {config.model_type} model is an encoder-decoder; add is_encoder_decoder: true there."
        )
    return config, own


def load_base(
    path: Path, *, quantize: str | None, dtype: torch.dtype, dequantise: bool = False, narrow: torch.dtype | None = None
) -> PreTrainedModel:
    """A language model with frozen weights on this process's device; of a multimodal one all parts, of which the text
    part trains.

    Args:
        quantize: None, "nf4" (bitsandbytes, double quantisation) or "int8"; what is not quantised has `dtype`. A
            checkpoint that is quantised already is loaded as it is.
        dequantise: turn the quantised weights back into `dtype`: what the adapter was trained on, as plain matrices.
        narrow: of a base that computes in fp32, the 16 bits in which its files hold all weights and its matrices stay.
    Raises: InputError where the folder holds no language model, or not exactly its weights.
    """
    config, own = checked(path, quantize)
    kwargs: Json = {"device_map": {"": device()}} if quantize or own else {}
    if own:
        config.quantization_config = {**_plain(config.quantization_config), "bnb_4bit_compute_dtype": dtype}
    elif quantize:
        kwargs["quantization_config"] = {
            "nf4": BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            ),
            "int8": BitsAndBytesConfig(load_in_8bit=True),
        }[quantize]
    model = _loaded(path, config, dtype, kwargs) if narrow is None else _loaded_narrow(path, config, narrow)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights in place for inference on CPUs with bf16 units, and then has no backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (mypy knows no such attribute)
    if kwargs and dequantise:
        model = _dequantised(model, dtype)
    model = model if kwargs else nn.Module.to(model, device())
    prepare(model)
    return looked_at(path, model)


def load_whole(path: Path) -> PreTrainedModel:
    """The model in a folder as its files hold it, on the CPU: what a base in few bits was made from.

    Raises: InputError as `load_base` does.
    """
    config, _ = checked(path, None)
    return _loaded(path, config, DTYPES[stored_dtype(path)], {})


def _loaded(path: Path, config: PreTrainedConfig, dtype: torch.dtype, kwargs: Json) -> PreTrainedModel:
    """The model in a folder, all of it."""
    # packed weights are no tensors of their own on the meta device
    if getattr(config, "quantization_config", None) is None:
        outline(path, config, dtype)
    with mapped_or_read(path, read_json(path / CONFIG), dtype, plain=not kwargs):
        return read_as(kind_of(path, config), path, config, dtype, kwargs)


def _loaded_narrow(path: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """A model that computes in fp32, from files in `dtype`, in which its matrices stay: mapped, where they are."""
    kind = type(outline(path, config, torch.float32))
    told = once_made(kind, lambda model: ask_narrow(model, dtype))
    with mapped_or_read(path, read_json(path / CONFIG), dtype, plain=True):
        model = read_as(told, path, config, torch.float32, {})
    model.__class__ = kind
    keep_narrow(model)
    return model


def once_made(kind: type[PreTrainedModel], then: Callable[[PreTrainedModel], None]) -> type[PreTrainedModel]:
    """A class of the same name whose models go to `then` as soon as they are made, before their weights are read. Who
    loads one gives it `kind` back."""

    def __init__(self: PreTrainedModel, *args: object) -> None:
        kind.__init__(self, *args)  # type: ignore[arg-type]
        then(self)

    told = {"__init__": __init__, "__module__": kind.__module__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), told)


def kind_of(path: Path, config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The auto class that loads it. Raises: InputError for what is no language model."""
    kind = auto_class(config)
    if type(config) not in kind._model_mapping:
        raise InputError(
            f"{path}: a {config.model_type} model is not a language model that writes text; Align trains those."
        )
    return cast(type[PreTrainedModel], kind)


def outline(path: Path, config: PreTrainedConfig, dtype: torch.dtype) -> PreTrainedModel:
    """The model on the meta device, where nothing is read: what the files lack, or hold beyond the model, is found
    before anything is allocated. Raises: InputError."""
    kwargs: Json = {"device_map": "meta", "ignore_mismatched_sizes": True}
    return read_as(kind_of(path, config), path, config, dtype, kwargs)


def read_as(
    kind: type[PreTrainedModel], path: Path, config: PreTrainedConfig, dtype: torch.dtype, kwargs: Json
) -> PreTrainedModel:
    """The model in a folder as one of a class. Attention and experts are transformers' own choice, whatever config.json
    says. Raises: InputError where it is not exactly what its files hold."""

    from_pretrained: Any = kind.from_pretrained  # gives a pair where it is asked for what it loaded

    def load() -> tuple[PreTrainedModel, LoadingInfo]:
        loaded: tuple[PreTrainedModel, LoadingInfo] = from_pretrained(
            path,
            config=copy.deepcopy(config),
            dtype=dtype,
            trust_remote_code=False,
            attn_implementation=None,
            experts_implementation=None,
            output_loading_info=True,
            **kwargs,
        )
        return loaded

    model, info = explained(path, load)
    check_complete(path, info, type(model).__name__)
    return model


def _plain(found: Any) -> Json:
    """A quantisation config as a dict."""
    return dict(found) if isinstance(found, dict) else found.to_dict()


def _dequantised(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The quantised weights as plain matrices, which save as such: what transformers noted to write them packed again
    is taken away."""
    quantizer: Any = model.hf_quantizer
    packing = {tuple(conversion.source_patterns) for conversion in quantizer.get_weight_conversions()}
    plain: Any = model.dequantize(dtype)
    noted = getattr(plain, "_weight_conversions", None) or []
    plain._weight_conversions = [conversion for conversion in noted if tuple(conversion.source_patterns) not in packing]
    return cast(PreTrainedModel, plain)


def looked_at(path: Path, model: PreTrainedModel) -> PreTrainedModel:
    """A model that is prepared, as what it is. Raises: InputError as `check_outputs` does."""
    check_outputs(path, model)
    note_tying(model)
    return model


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze, switch to evaluation mode, select packed attention, and keep for backwards no more than is needed."""
    model.requires_grad_(False).eval()
    name_decoder(model)
    select_packed_attention(model)
    keep_less(model)
    return model


def name_decoder(model: PreTrainedModel) -> None:
    """Have `base_model` be the decoder: Llama 4 names its own otherwise than its class says."""
    if model.base_model is model and not model.config.is_encoder_decoder:
        embedding = model.get_input_embeddings()
        decoder = next(
            m
            for m in model.modules()
            if isinstance(m, PreTrainedModel) and any(child is embedding for child in m.children())
        )
        object.__setattr__(model, "text_decoder", decoder)  # a name beside the module's own, and none in a state dict
        model.base_model_prefix = "text_decoder"


def llama_config(shape: LlamaSizes, tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """The settings of a Llama of a `shape`, for the tokens of its tokenizer."""
    return LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=shape.tie_embeddings,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def new_llama(shape: LlamaSizes, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama with random weights, drawn from the global generator."""
    return prepare(AutoModelForCausalLM.from_config(llama_config(shape, tokenizer), dtype=torch.float32).to(device()))
