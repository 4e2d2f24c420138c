"""Byte-level BPE for a model from scratch, trained on its own text (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2)."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"


def train_tokenizer(texts: Sequence[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """At most `vocab_size` entries, with separate begin, end and padding tokens."""
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
