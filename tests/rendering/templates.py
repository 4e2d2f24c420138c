"""Tokenizers for chat templates: tiny-base's, with the special tokens that a template writes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from transformers import AddedToken, AutoTokenizer, GenerationConfig

from align.data.examples import Example
from align.data.records import Message
from align.rendering.render import Renderer

ROOT = Path(__file__).parents[2]
TOKENS = re.compile(
    r"<\|[^|<>'\" "
    r"]+\|>|<\|\w+>|<\w+\|>|<｜[^｜]+｜>|<(?:start|end)_of_turn>|<end_of_utterance>|\[/?[A-Z_]+\]|\[gMASK\]|<sop>"
)
ENDS_OF_CALLS = ("<|call|>", "<|observation|>", "<|user|>", "<|tool_response>", "<|eom_id|>")
"""Tokens that end an answer by their checkpoints' generation_config alone."""


def template_folder(template: str | dict[str, str], folder: Path, *, eos: str = "<eos>", stops: bool = True) -> Path:
    """A tokenizer folder with this template."""
    source = json.dumps(template, ensure_ascii=False) if isinstance(template, dict) else template
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny-base")
    names = [*sorted(set(TOKENS.findall(source))), "<bos>", eos]
    tokenizer.add_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.bos_token, tokenizer.eos_token = "<bos>", eos
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    ends = [tokenizer.convert_tokens_to_ids(name) for name in ENDS_OF_CALLS if name in names]
    if stops:
        GenerationConfig(eos_token_id=[tokenizer.eos_token_id, *ends]).save_pretrained(folder)
    return folder


def user(content: str) -> Message:
    return Message("user", content)


def answer(content: str, **more: Any) -> Message:
    return Message("assistant", content, **more)


def counted(renderer: Renderer, example: Example) -> list[str]:
    """What counts of each sequence, as text."""
    pairs = zip(example.sequences, example.supervised, strict=True)
    return [str(renderer.tokenizer.decode([i for i, m in zip(ids, mask, strict=True) if m])) for ids, mask in pairs]


def read(renderer: Renderer, example: Example, which: int = 0) -> str:
    return str(renderer.tokenizer.decode(list(example.sequences[which])))
