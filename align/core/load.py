"""Loading a base model the way every stage needs it: exact attention over packed groups, no dropout, one precision, maybe quantised."""

from __future__ import annotations

import copy
import ctypes
import math
import os
import sys
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from align.core.attention import select_packed_attention
from align.core.scratch import llama_config
from align.core.weights import auto_class, check_complete, check_outputs, explained, note_tying, unreadable
from align.errors import InputError
from align.model_files import CONFIG, check_folder, is_encoder_decoder, other_kind, quantisation

Precision = Literal["auto", "fp32", "bf16"]


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def set_up_process(threads: int | None, seed: int) -> None:
    """Threads, and every seed, before anything is drawn: PEFT's first LoRA matrices come from the global generator."""
    if threads is not None:
        torch.set_num_threads(threads)
    set_seed(seed)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def give_back_freed_memory() -> None:
    """Have glibc give tensors of 1 MiB and more pages of their own, which go back to the system when they are freed (Linux).

    Its heap would keep up to 32 MiB each, with gaps that later tensors do not fit: with activation checkpointing, up to four times what is
    alive. The system's time for fresh pages makes a training step on a CPU about a quarter slower, so this is for runs that ask for memory.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD in malloc.h
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(mmap_threshold, 1 << 20)


def trim_heap() -> None:
    """Give the free pages of glibc's heap back to the system (Linux): between phases whose tensors differ in size, such as sampling and
    training, the gaps of the one are of no use to the other."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def device() -> torch.device:
    """Where this process computes: its CUDA device under torchrun, the first one alone, else the CPU."""
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if torch.cuda.is_available() else torch.device("cpu")


FASTER = 1.3
"""`auto` takes bf16 on a CPU where a training step's products take at least this many times as long in fp32: a figure near 1 would be
decided by noise, and the choice decides results."""


def resolve_precision(precision: Precision) -> torch.dtype:
    """`auto`: bf16 on a GPU that computes it natively, and on a CPU where it is measured to be faster; else fp32."""
    return explain_precision(precision)[0]


def settled_precision() -> Precision:
    """The name of what `auto` is here."""
    return "bf16" if resolve_precision("auto") == torch.bfloat16 else "fp32"


def explain_precision(precision: Precision) -> tuple[torch.dtype, str]:
    """The same, and why, in words; without words where it is what was asked for."""
    if precision != "auto":
        return DTYPES[precision], ""
    if torch.cuda.is_available():
        native = torch.cuda.is_bf16_supported(including_emulation=False)
        return (torch.bfloat16, "this GPU computes it natively") if native else (torch.float32, "this GPU has no bf16 units")
    if not _cpu_has_bf16():  # there bf16 runs about 60 times slower
        return torch.float32, "this CPU has no bf16 units"
    speed = _bf16_speed()
    faster = speed >= FASTER
    said = f"a training step's products take {speed:.1f} times as long in fp32 as in bf16 on this CPU"
    return (torch.bfloat16, said) if faster else (torch.float32, f"{said}, and bf16 is taken from {FASTER} on")


def _cpu_has_bf16() -> bool:
    capabilities = torch.backends.cpu.get_cpu_capability()
    return "AMX" in capabilities or bool(getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)())


@cache
def _bf16_speed() -> float:
    """How many times as long a linear layer's forward and backward take in fp32 as in bf16, in CPU time; measured once per process."""
    rows, width = 256, 1024
    best: dict[str, float] = {}
    # without gradients and from a generator of its own: a run's draws and graphs must not depend on a measurement
    draw = torch.Generator().manual_seed(0)
    x, w, upstream = (torch.rand(n, width, generator=draw) for n in (rows, width, rows))
    narrow, wide = ([t.to(dtype) for t in (x, w, upstream)] for dtype in (torch.bfloat16, torch.float32))
    with torch.no_grad():
        for _ in range(5):  # the shortest of several, in turn: whatever else runs makes times longer, never shorter
            for name, (x, w, upstream) in (("bf16", narrow), ("fp32", wide)):
                start = time.process_time()
                _ = x @ w.T, upstream @ w, upstream.T @ x
                best[name] = min(best.get(name, math.inf), time.process_time() - start)
    return best["fp32"] / best["bf16"]


def load_config(path: Path) -> Any:
    """Model config with every dropout at 0 (detail 7 of arXiv 2403.17031): with dropout on, two passes over the same tokens differ, and
    KL = 0 and ratio = 1 fail.

    Raises: InputError for a config that transformers cannot read, or a model that only code of its own can load: Align runs none.
    """
    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    except Exception as error:  # whatever transformers raises for values that it does not take
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{path}: its config.json names code that comes with the model (auto_map), and transformers knows no such model by itself. "
                "Align runs no code of a model; take a base that transformers has built in."
            ) from error
        raise InputError(f"{path / CONFIG}: {unreadable(error)}.") from error
    for part in (config, *(getattr(config, name) for name in config.sub_configs if getattr(config, name, None) is not None)):
        for name, value in vars(part).items():
            if isinstance(value, float) and ("dropout" in name or name.endswith(("pdrop", "layerdrop"))):
                setattr(part, name, 0.0)
    if 0 < getattr(config, "rescale_every", 0) < config.num_hidden_layers:
        raise InputError(
            f"{path}: transformers rescales matrices of this {config.model_type} model in place when it evaluates, so that an adapter or a "
            "merged model would mean something else wherever it is loaded; take another base."
        )
    return config


def load_base(path: Path, *, quantize: str | None, dtype: torch.dtype, dequantise: bool = False) -> PreTrainedModel:
    """A language model with frozen weights on this process's device; of a multimodal one all parts, of which the text part trains.

    Args:
        quantize: None, "nf4" (bitsandbytes, double quantisation) or "int8"; what is not quantised has `dtype`. A checkpoint that is
            quantised already is loaded as it is.
        dequantise: turn the quantised weights back into `dtype`: what the adapter was trained on, as plain matrices.
    Raises: InputError where the folder holds no language model, or not exactly its weights.
    """
    settings = check_folder(path)
    own = quantisation(settings, path)
    if own and quantize not in (None, own):
        raise InputError(f"{path} is quantised already, in {own}; it cannot be loaded in {quantize}.")
    config = load_config(path)
    if kind := other_kind(config.to_dict()):  # by the defaults of its class too
        raise InputError(f"{path} holds {kind}; Align trains language models.")
    if is_encoder_decoder(config.to_dict()) != is_encoder_decoder(settings):
        raise InputError(f"{path / CONFIG}: a {config.model_type} model is an encoder-decoder; add is_encoder_decoder: true there.")
    kwargs: dict[str, Any] = {"device_map": {"": device()}} if quantize or own else {}
    if own:
        config.quantization_config = {**_plain(config.quantization_config), "bnb_4bit_compute_dtype": dtype}
    elif quantize:
        kwargs["quantization_config"] = {
            "nf4": BitsAndBytesConfig(
                load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
            ),
            "int8": BitsAndBytesConfig(load_in_8bit=True),
        }[quantize]
    model = _loaded(path, config, dtype, kwargs)
    for module in model.modules():
        # bitsandbytes repacks 4-bit weights in place for inference on CPUs with bf16 units, and then has no backward
        if hasattr(module, "support_avx512bf16_for_cpu"):
            setattr(module, "support_avx512bf16_for_cpu", False)  # noqa: B010 (mypy knows no such attribute)
    if kwargs and dequantise:
        model = _dequantised(model, dtype)
    model = model if kwargs else nn.Module.to(model, device())
    prepare(model)
    check_outputs(path, model)
    note_tying(model)
    return model


def _loaded(path: Path, config: Any, dtype: torch.dtype, kwargs: dict[str, Any]) -> PreTrainedModel:
    """The model in a folder, all of it. First on the meta device, where nothing is read: what the files lack, or hold beyond the model,
    is found before anything is allocated. Attention and experts are transformers' own choice, whatever config.json says."""
    kind = auto_class(config)
    if type(config) not in kind._model_mapping:
        raise InputError(f"{path}: a {config.model_type} model is not a language model that writes text; Align trains those.")

    def load(**more: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
        loaded: tuple[PreTrainedModel, dict[str, Any]] = kind.from_pretrained(
            path,
            config=copy.deepcopy(config),
            dtype=dtype,
            trust_remote_code=False,
            attn_implementation=None,
            experts_implementation=None,
            output_loading_info=True,
            **more,
        )
        return loaded

    if getattr(config, "quantization_config", None) is None:  # packed weights are no tensors of their own on the meta device
        empty, info = explained(path, lambda: load(device_map="meta", ignore_mismatched_sizes=True))
        check_complete(path, info, type(empty).__name__)
    model, info = explained(path, lambda: load(**kwargs))
    check_complete(path, info, type(model).__name__)
    return model


def _plain(found: Any) -> dict[str, Any]:
    """A quantisation config as a dict."""
    return dict(found) if isinstance(found, dict) else found.to_dict()


def _dequantised(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """The quantised weights as plain matrices, which save as such: what transformers noted to write them packed again is taken away."""
    quantizer: Any = model.hf_quantizer
    packing = {tuple(conversion.source_patterns) for conversion in quantizer.get_weight_conversions()}
    plain: Any = model.dequantize(dtype)
    noted = getattr(plain, "_weight_conversions", None) or []
    plain._weight_conversions = [conversion for conversion in noted if tuple(conversion.source_patterns) not in packing]
    return cast(PreTrainedModel, plain)


def prepare(model: PreTrainedModel) -> PreTrainedModel:
    """Freeze, switch to evaluation mode and select packed attention."""
    model.requires_grad_(False).eval()
    if model.base_model is model and not model.config.is_encoder_decoder:  # Llama 4 names its decoder otherwise than its class says
        embedding = model.get_input_embeddings()
        decoder = next(m for m in model.modules() if isinstance(m, PreTrainedModel) and any(child is embedding for child in m.children()))
        object.__setattr__(model, "text_decoder", decoder)  # a name beside the module's own, and none in a state dict
        model.base_model_prefix = "text_decoder"
    select_packed_attention(model)
    return model


def new_llama(shape: Any, tokenizer: PreTrainedTokenizerBase) -> PreTrainedModel:
    """A Llama with random weights, drawn from the global generator."""
    return prepare(AutoModelForCausalLM.from_config(llama_config(shape, tokenizer), dtype=torch.float32).to(device()))


@torch.no_grad()
def save_model(model: PreTrainedModel, folder: Path, dtype: str, text: Mapping[str, Any]) -> None:
    """Write a full model in the Hugging Face layout, in "fp32", "bf16" or "fp16". The live weights are rounded too, so that what is stored
    is what is measured. By its own settings it ends answers where the text contract `text` does."""
    stored = DTYPES[dtype]
    end_by_contract(model, text)
    for parameter in model.parameters():
        parameter.copy_(parameter.to(stored))
    state = {k: (v.to(stored) if v.is_floating_point() else v).detach().contiguous() for k, v in model.state_dict().items()}
    packed = model.config._attn_implementation
    model.config._attn_implementation = None
    model.config.dtype = stored
    if hasattr(model.config, "auto_map"):  # code that the base came with: it was not used and does not come along
        del model.config.auto_map
    model.save_pretrained(folder, state_dict=state)
    model.config._attn_implementation = packed
    for path in folder.iterdir():
        path.chmod(0o644)  # transformers leaves 0600


def end_by_contract(model: PreTrainedModel, text: Mapping[str, Any]) -> None:
    """Write every stop id into the settings that `generate`, pipelines and servers read; how the checkpoint samples stays as it was."""
    ends = text["stop_ids"][0] if len(text["stop_ids"]) == 1 else list(text["stop_ids"])
    model.config.get_text_config().eos_token_id = ends
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    generation.eos_token_id, generation.pad_token_id = ends, text["pad_token_id"]
    try:
        generation.validate(strict=True)
    except ValueError:  # a temperature without sampling, as old checkpoints ship it: transformers loads that and does not save it
        generation.do_sample = True


def stored_dtype(folder: Path) -> str:
    """The precision that a model folder's config names; fp32 where it names none."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return next((name for name, dtype in DTYPES.items() if dtype == getattr(config, "dtype", None)), "fp32")
