"""Tokenizers: read from a folder, or trained for a model from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from tokenizers import ByteLevelBPETokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.errors import InputError

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"


def train_tokenizer(texts: Sequence[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2) of at most `vocab_size` entries, with separate begin, end
    and padding tokens."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(texts, vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=[BOS, EOS, PAD])
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises: InputError for none, one without EOS, a slow one, and one with code of its own."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers and tokenizers raise many kinds for files that are no tokenizer
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{folder}: its tokenizer is code that comes with the model (auto_map), and Align runs no code of a model."
            ) from error
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{folder}: no tokenizer can be read there ({first}). Expected tokenizer.json and tokenizer_config.json, as save_pretrained "
            "writes them."
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer has no EOS token, so a model could never learn to stop. Set eos_token in tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise InputError(f"{folder}: only a slow tokenizer was found; character spans need tokenizer.json (a fast tokenizer).")
    return cast(PreTrainedTokenizerBase, tokenizer)
