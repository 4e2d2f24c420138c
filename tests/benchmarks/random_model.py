"""Llamas with random weights, made where they compute: no download, no files, never a second copy. Imports nothing of
Align."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    LlamaConfig,
    PreTrainedModel,
)
from transformers.quantizers import AutoHfQuantizer

LLAMA_8B = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0},
    "tie_word_embeddings": False,
}
"""Llama-3.1-8B without its scaling of rotary embeddings, which begins beyond 8,192 tokens (arXiv 2407.21783, table
3)."""
STD = 0.02


def compute_dtype(dtype: str) -> torch.dtype:
    """What a model in fp32, bf16 or nf4 computes in; a CPU takes fp32 beside NF4, because bf16 is slow there."""
    return torch.float32 if dtype == "fp32" or (dtype == "nf4" and not torch.cuda.is_available()) else torch.bfloat16


def make(shape: dict[str, Any], dtype: str, *, scores: bool = False, **special: Any) -> PreTrainedModel:
    """A Llama of `shape` on this machine's device in "fp32", "bf16" or "nf4" (4 bits, double quantisation), for
    language or for `scores`.

    `special`: ids such as pad_token_id.
    """
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    auto, config = (
        (AutoModelForSequenceClassification if scores else AutoModelForCausalLM),
        LlamaConfig(**shape, **special),
    )
    if scores:
        config.num_labels = 1
    with device if dtype != "nf4" else torch.device("meta"):
        model = auto.from_config(config, dtype=compute_dtype(dtype))
    return model if dtype != "nf4" else in_nf4(model, device)


def in_nf4(model: PreTrainedModel, device: torch.device) -> PreTrainedModel:
    """A model that is on the meta device, on `device`: linear layers but the head in NF4, one at a time, all else in
    its own dtype."""
    dtype = model.dtype
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear and name not in ("lm_head", "score"):
            new: Any = Linear4bit(
                module.in_features,
                module.out_features,
                False,
                dtype,
                compress_statistics=True,
                quant_type="nf4",
                device="meta",
            )
            drawn = torch.empty(module.out_features, module.in_features, dtype=dtype, device=device).normal_(std=STD)
            weight: Any = Params4bit(drawn, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new)
            new.weight = weight.to(device)
            new.support_avx512bf16_for_cpu = False  # it would repack weights for inference, and then has no backward
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, new)
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.is_meta:
                drawn = torch.empty(parameter.shape, dtype=dtype, device=device)
                module._parameters[name] = nn.Parameter(
                    drawn.normal_(std=STD) if parameter.dim() > 1 else drawn.fill_(1.0)
                )
    rotary: Any = model.base_model.rotary_emb
    with device:
        model.base_model.rotary_emb = type(rotary)(model.config)
    model.tie_weights()
    model.is_loaded_in_4bit = model.is_quantized = True  # type: ignore[assignment]
    model.quantization_method = "bitsandbytes"  # type: ignore[assignment]
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )
    model.hf_quantizer = AutoHfQuantizer.from_config(config)  # Trainer asks it whether what is quantised can be trained
    return model
