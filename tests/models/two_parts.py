"""Tiny random encoder-decoders with a tokenizer of their own, of a few words: no file of data/ is of that kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    T5Config,
    T5ForConditionalGeneration,
    T5GemmaConfig,
    T5GemmaForConditionalGeneration,
    T5Tokenizer,
)

VOCAB = 128
TALK = (
    "What is 3 plus 4? It is 7.",
    "Be brief. User: Assistant: Who knows? Which colour is the cup? Red!",
    "naïve café 0123456789,'\"",
)
T5: dict[str, Any] = dict(
    vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4, decoder_start_token_id=0
)
GEMMA: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    query_pre_attn_scalar=8,
    sliding_window=16,
    bos_token_id=2,
    eos_token_id=1,
    pad_token_id=0,
)


def make(name: str) -> PreTrainedModel:
    """With large random weights, so that attention is far from uniform."""
    torch.manual_seed(0)
    model: PreTrainedModel
    if name == "T5":
        model = T5ForConditionalGeneration(T5Config(**T5))
    elif name == "T5 v1.1":
        untied: dict[str, Any] = {**T5, "tie_word_embeddings": False}
        model = T5ForConditionalGeneration(T5Config(**untied, feed_forward_proj="gated-gelu"))
    elif name == "T5Gemma":
        ids: dict[str, Any] = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0)
        model = T5GemmaForConditionalGeneration(T5GemmaConfig(encoder=GEMMA, decoder=GEMMA, vocab_size=VOCAB, **ids))
    else:
        layers = dict(encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4)
        sizes = dict(vocab_size=VOCAB, d_model=32, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=256)
        ids = dict(bos_token_id=2, eos_token_id=1, pad_token_id=0, decoder_start_token_id=1, forced_eos_token_id=1)
        shape: dict[str, Any] = {**layers, **sizes, **ids}
        model = BartForConditionalGeneration(BartConfig(**shape, init_std=0.1))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.std() < 0.05:
                parameter.normal_(0, 0.1)
    return model.eval()


def tokenizer() -> PreTrainedTokenizerBase:
    """T5's, whose special tokens are <pad> 0, </s> 1 and <unk> 2."""
    words = sorted({f"▁{word}" for text in TALK for word in text.split()})
    letters = sorted({letter for text in TALK for letter in text if not letter.isspace()} | {"▁"})
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    return T5Tokenizer(
        vocab=[*special, *((word, -3.0) for word in words), *((letter, -5.0) for letter in letters)], extra_ids=4
    )


def write(name: str, folder: Path) -> Path:
    make(name).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder
