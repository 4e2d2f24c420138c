"""What each kind of artifact is made of: its files by name, and the shape of what stands in its manifest and its files.

What comes from a remote is held against these lists, and what is on none of them is refused
(`align.store.remote.arrival`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable

from align.store.artifact import is_digest

Fits = Callable[[object], bool]
"""Whether a value has a shape."""

PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" '
    "content=\"default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'\">\n"
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
)
"""How every report's page begins: a browser that has read this runs no script and fetches nothing, whatever follows."""
ELEMENTS = {
    "article",
    "body",
    "circle",
    "dd",
    "details",
    "div",
    "dl",
    "dt",
    "g",
    "h1",
    "h2",
    "h3",
    "h4",
    "head",
    "header",
    "html",
    "li",
    "line",
    "main",
    "p",
    "polygon",
    "polyline",
    "pre",
    "rect",
    "section",
    "span",
    "style",
    "summary",
    "svg",
    "table",
    "tbody",
    "td",
    "text",
    "tfoot",
    "th",
    "thead",
    "title",
    "tr",
    "ul",
    "wbr",
}
"""Elements of a report's page after that."""

# ---- names of files --------------------------------------------------------------------------------------------------

_WORD = r"[A-Za-z0-9._+=@-]+"
_ADAPTER = r"adapters/\d{1,3}/(adapter_config\.json|adapter_model\.safetensors)"
_TEXT_FILES = (
    rf"({_WORD}\.(json|jinja|model|spm|tiktoken)|additional_chat_templates/{_WORD}\.jinja"
    r"|merges\.txt|vocab\.txt|dict\.txt|bpe\.codes|prophetnet\.tokenizer)"
)
_LOGS = r"(history|guard|watched|trained_on|reference)\.jsonl"
_MODEL = rf"model/({_TEXT_FILES}|{_WORD}\.safetensors)|{_LOGS}"
_ONE_ADAPTER = ("adapters/0/adapter_config.json", "adapters/0/adapter_model.safetensors", "tokenizer/tokenizer.json")
FILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "model": (_MODEL, ("model/config.json",)),
    "classifier": (_MODEL, ("model/config.json",)),
    "adapter": (rf"(value/)?{_ADAPTER}|value/head\.safetensors|tokenizer/{_TEXT_FILES}|{_LOGS}", _ONE_ADAPTER),
    "reward": (rf"{_ADAPTER}|head\.safetensors|tokenizer/{_TEXT_FILES}|{_LOGS}", (*_ONE_ADAPTER, "head.safetensors")),
    "data": (r"data\.jsonl", ("data.jsonl",)),
    "report": (r"report\.html|table\.txt|samples\.jsonl", ("report.html", "table.txt")),
}
"""By kind, the files that an artifact may have, as a pattern of their whole paths, and those that it cannot do
without."""

ATTRIBUTES = {
    "aria-hidden",
    "aria-label",
    "class",
    "cx",
    "cy",
    "dy",
    "height",
    "points",
    "r",
    "role",
    "rx",
    "scope",
    "style",
    "tabindex",
    "text-anchor",
    "viewBox",
    "width",
    "x",
    "x1",
    "x2",
    "y",
    "y1",
    "y2",
}
"""What these elements may have: nothing that runs or names another file."""
TAG = re.compile(r"</([A-Za-z0-9]+)\s*>|<([A-Za-z0-9]+)((?:\s+[A-Za-z0-9-]+=\"[^\"<>]*\")*)\s*/?>")
"""The one way in which a report writes tags."""
COLOUR = re.compile(r"--colour: var\(--[a-z0-9]+\)(; --dash: [0-9]+px)?")
"""The one style that an element of a report has of its own: a row's colour, and where it comes again its dashes."""
FETCHES = re.compile(r"@import|url|image|src|expression|\\", re.IGNORECASE)
"""What of a style sheet could name another file."""

LIMITS = {
    "tokenizer.json": 512 << 20,
    ".json": 16 << 20,
    ".jinja": 1 << 20,
    ".html": 64 << 20,
    ".txt": 64 << 20,
    ".safetensors": 1 << 50,
}
"""Bytes of a file by the end of its name, and for all others: they are read into memory whole."""
LIMIT = 1 << 30


# ---- manifests -------------------------------------------------------------------------------------------------------

MARKUP = set("\n\t<>|`")
PLAIN = set(" _.+@,()/:-")
"""What the name of a model may hold beside letters and digits: nothing that ends a literal, a line or a cell of a
table."""


def _is_name(text: str) -> bool:
    """Whether a text can name a model of the hub or a folder, but no path that leads elsewhere, and nothing else than a
    name."""
    plain = all(sign.isalnum() or sign in PLAIN for sign in text)
    return plain and len(text) <= 200 and not set(text.split("/")) & {"", ".", ".."}


def _id(value: object) -> bool:
    return value is None or (type(value) is int and 0 <= value < 1 << 32)


def is_number(value: object) -> bool:
    """Of a size that can be drawn and counted with, or none that is finite."""
    return (type(value) is float and (abs(value) < 1e100 or not math.isfinite(value))) or (
        type(value) is int and abs(value) < 1 << 63
    )


def is_measure(value: object) -> bool:
    """A figure, the two ends of its interval, or a verdict."""
    if isinstance(value, list):
        return len(value) == 2 and all(map(is_number, value))
    return (
        value is None
        or isinstance(value, bool)
        or is_number(value)
        or bool(re.fullmatch(r"[A-Za-z_-]{1,40}", str(value)))
    )


def _is_history(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    step = row["step"]
    return isinstance(step, int | float) and 0 <= step < 1 << 53 and all(map(is_number, row.values()))


def _is_warning(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    texts, when = (row["sign"], row["message"]), (row.get("rollout", row.get("step")), row["gone"] or 0)
    return all(isinstance(text, str) for text in texts) and all(type(number) is int for number in when)


def _is_watched(row: object) -> bool:
    if not isinstance(row, dict):
        return False
    texts = [m["content"] for m in row["prompt"]] + [a["text"] for a in row["answers"]]
    texts += [row.get("unit", "rollout")]
    return all(isinstance(text, str) for text in texts) and all(type(a["after"]) is int for a in row["answers"])


def _is_move(row: object) -> bool:
    return isinstance(row, dict) and type(row["step"]) is int and is_digest(row["policy"])


ROWS: dict[str, Fits] = {
    "history.jsonl": _is_history,
    "guard.jsonl": _is_warning,
    "watched.jsonl": _is_watched,
    "reference.jsonl": _is_move,
    "trained_on.jsonl": lambda row: isinstance(row, str),
    **dict.fromkeys(("data.jsonl", "samples.jsonl"), lambda row: isinstance(row, dict)),
}
NEEDED = {**dict.fromkeys(("adapter", "reward"), ("base", "text")), **dict.fromkeys(("model", "classifier"), ("text",))}
BASE: dict[str, Fits] = {
    "model": lambda v: isinstance(v, str) and _is_name(v),
    "revision": lambda v: v is None or (isinstance(v, str) and _is_name(v)),
    "digest": is_digest,
    "quantize": lambda v: v in (None, "nf4", "fp4", "int8"),
}
COMPARED = {
    "classifier": {"kl", "preference_agreement", "score_max_abs_diff", "bias_left_out"},
    "model": {"kl", "logit_max_abs_diff", "greedy_agreement"},
}
"""Figures that a merge's verdict is shown with; other kinds have none."""
QUANTISED = {"quantised/kl", "quantised/greedy_agreement"}
"""And those of a model that was merged from a quantised base."""
VERDICTS = ("equal", "close", "different")
NAME, KEY = 300, 1000
"""Characters of a role or of a name of data, and of any other key of a manifest."""
NEWER = {"tokenizer_options", "template_date"}
"""Keys of the text contract that older artifacts lack."""
TOKENIZER: dict[str, Fits] = {
    "model_max_length": lambda v: v is None or (isinstance(v, int | float) and not isinstance(v, bool) and v > 0),
    **dict.fromkeys(("padding_side", "truncation_side"), lambda v: v in ("left", "right")),
    **dict.fromkeys(
        ("split_special_tokens", "clean_up_tokenization_spaces", "add_prefix_space", "add_bos_token", "add_eos_token"),
        lambda v: v is None or isinstance(v, bool),
    ),
}
"""Settings of a tokenizer that are used as they stand."""
TEXT: dict[str, Fits] = {
    "tokenizer": is_digest,
    "tokenizer_options": is_digest,
    "chat_template": is_digest,
    "template_date": lambda v: v is None or bool(re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(v))),
    "bos_token_id": _id,
    "eos_token_id": _id,
    "pad_token_id": _id,
    "stop_ids": lambda v: isinstance(v, list) and all(type(id_) is int and 0 <= id_ < 1 << 32 for id_ in v),
}
