"""Tokenizers: read from a folder, or trained for a model from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import cast

from tokenizers import ByteLevelBPETokenizer
from transformers import AddedToken, AutoConfig, AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from align.folders.config import CONFIG
from align.ground.errors import InputError

BOS, EOS, PAD = "<|begin|>", "<|end|>", "<|pad|>"


def train_tokenizer(texts: Sequence[str], vocab_size: int, context: int) -> PreTrainedTokenizerFast:
    """Byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909; bytes as in GPT-2) of at most `vocab_size` entries, with
    separate begin, end and padding tokens."""
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts, vocab_size=vocab_size, min_frequency=2, show_progress=False, special_tokens=[BOS, EOS, PAD]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe._tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=context,
        clean_up_tokenization_spaces=False,
    )


def add_tokens(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> dict[int, list[int]]:
    """Have the tokenizer read each of `texts` as one token: id -> the ids that it was read as before.

    They are no *special* tokens in the tokenizer's sense, as Qwen's <tool_call> is none: an answer keeps them when it
    is decoded, and rows may hold them; those that the chat template writes around turns count as control tokens by
    that.
    Raises: InputError for a text that is one token already, comes twice, or that the tokenizer does not read as one.
    """
    pieces = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
    known = tokenizer.get_vocab()
    for text, ids in zip(texts, pieces, strict=True):
        if text in known or texts.count(text) > 1 or text != text.strip() or not ids:
            why = "blanks begin or end it, or are all"
            if text in known:
                why = f"the tokenizer has it already, with id {known[text]}"
            elif texts.count(text) > 1:
                why = "it stands there twice"
            raise InputError(f"new_tokens: {text!r} cannot be added: {why}. Leave it out.")
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False) for text in texts])
    added = tokenizer.get_vocab()
    for text in texts:
        if added[text] not in tokenizer(f"a{text}b", add_special_tokens=False)["input_ids"]:
            raise InputError(
                f"new_tokens: the tokenizer does not read {text!r} as one token beside other text. Take another text."
            )
    return {added[text]: ids for text, ids in zip(texts, pieces, strict=True)}


def check_config(folder: Path) -> None:
    """Raises: InputError where a model's config.json is there and transformers cannot use it."""
    if not (folder / CONFIG).is_file():
        return
    try:
        AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # of as many kinds as there are settings
        why = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{folder / CONFIG}: transformers {version('transformers')} cannot use it ({why[:300]}). Copy the model "
            "again."
        ) from error


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder. Raises: InputError for none, one without EOS, a slow one, and one with code of its
    own."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        tokenizer("")  # settings that are none show when it is used
    except Exception as error:  # transformers and tokenizers raise many kinds for files that are no tokenizer
        if "trust_remote_code" in str(error):
            raise InputError(
                f"{folder}: its tokenizer is code that comes with the model (auto_map), and Align runs no code of a "
                "model."
            ) from error
        check_config(folder)  # which a tokenizer is told by, too
        first = next(iter(str(error).splitlines()), type(error).__name__)
        raise InputError(
            f"{folder}: no tokenizer can be read there ({first}). Expected tokenizer.json and tokenizer_config.json, "
            "as save_pretrained writes them."
        ) from error
    if tokenizer.eos_token_id is None:
        raise InputError(
            f"{folder}: the tokenizer has no EOS token, so a model could never learn to stop. Set eos_token in "
            "tokenizer_config.json."
        )
    if not tokenizer.is_fast:
        raise InputError(
            f"{folder}: only a slow tokenizer was found; character spans need tokenizer.json (a fast tokenizer)."
        )
    return cast(PreTrainedTokenizerBase, tokenizer)
