"""Templates for encoder-decoders whose tokenizer has none: what the encoder reads, and behind it what the decoder
writes."""

from __future__ import annotations

import json
from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

LABELLED = "{% if talk and m.role != 'system' %}{{ 'Assistant: ' if m.role == 'assistant' else 'User: ' }}{% endif %}"
BETWEEN = "{% if not loop.last %}\n\n{% endif %}"


def two_part_template(tokenizer: PreTrainedTokenizerBase, start: int | None, plain: bool) -> str:
    """A prompt as the tokenizer gives a text to a model, with the special tokens that it puts around one, and the
    answer as another text.

    One message stands as it is; where an answer stands among several, it is said who speaks. `plain`: contents joined,
    nothing in between. `start`: what the decoder begins with, which an answer does not begin with again.
    """
    before, after = _around(tokenizer)
    opening = [] if start is not None and before == [start] else before
    label, between = ("", "") if plain else (LABELLED, BETWEEN)
    return (
        "{% set answered = messages[-1].role == 'assistant' and not add_generation_prompt %}{% set asked = "
        "messages[:-1] if answered else messages %}{% set talk = asked | selectattr('role', 'equalto', 'assistant') "
        f"| list %}}{_literal(tokenizer, before)}{{% for m in asked %}}{label}{{{{ m.content }}}}{between}{{% endfor "
        f"%}}{{% if answered or add_generation_prompt %}}{_literal(tokenizer, after)}{{% endif %}}{{% if answered "
        f"%}}{{% generation %}}{_literal(tokenizer, opening)}{{{{ messages[-1].content }}}}{{{{ eos_token }}}}{{% "
        "endgeneration %}{% endif %}"
    )


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Ids that the tokenizer puts before and after a text."""
    whole, alone = (tokenizer("x", add_special_tokens=special)["input_ids"] for special in (True, False))
    starts = range(len(whole) - len(alone) + 1)
    at = next((i for i in starts if whole[i : i + len(alone)] == alone), 0)
    return whole[:at], whole[at + len(alone) :]


def _literal(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    text = "".join(tokenizer.convert_ids_to_tokens(list(ids)))
    return f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}" if text else ""
