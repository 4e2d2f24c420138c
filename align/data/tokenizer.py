"""Byte-level BPE for a model from scratch, trained on its own text (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2); and whether
a tokenizer fits a model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import ByteLevelBPETokenizer
from transformers import PreTrainedTokenizerFast

from align.errors import InputError

if TYPE_CHECKING:
    from align.data.render import Renderer

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


def check_vocabulary(renderer: Renderer, rows: int, folder: Path) -> None:
    """Each token that can occur has a row in an embedding of `rows`: all but added ones that neither template nor special ids name, such as
    a text model's token for images.

    Raises: InputError naming the tokens that have none.
    """
    tokenizer = renderer.tokenizer
    used = {tokenizer.bos_token_id, tokenizer.pad_token_id, *renderer.stop_ids}
    beyond = [(id_, token) for token, id_ in tokenizer.get_vocab().items() if id_ >= rows]
    added = tokenizer.added_tokens_decoder
    if wrong := sorted((id_, token) for id_, token in beyond if id_ not in added or id_ in used or token in renderer.template.source):
        id_, token = wrong[0]
        raise InputError(
            f"{folder}: the tokenizer gives {token!r} the id {id_:,}, and the model's embedding has {rows:,} rows ({len(wrong):,} tokens "
            "have none). Take the tokenizer that the model was trained with, or enlarge the model with resize_token_embeddings."
        )
