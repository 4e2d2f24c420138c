"""What a model from scratch is, before it has weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers import LlamaConfig, PreTrainedTokenizerBase

if TYPE_CHECKING:
    from align.memory.shapes import LlamaSizes


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
