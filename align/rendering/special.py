"""Special tokens inside what people wrote: refused, read as plain text, or let through; and text to token ids.

A content that holds `<|im_end|>` would end its turn in the middle, or open another one. A template's own special tokens
are told apart from a content's by marks around the latter while it is rendered, as transformers does
(`sanitize_control_tokens`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from transformers import PreTrainedTokenizerBase

from align.data.counts import Counts
from align.data.records import Message, Messages
from align.ground.errors import InputError
from align.rendering.seams import APART, Seams
from align.rendering.templates.template import Span, Template
from align.rendering.tokens import Tokens
from align.rendering.words import Words, words_of

Policy = Literal["error", "text", "keep"]
OPEN, CLOSE = chr(0x10FFFE), chr(0x10FFFF)
"""Around a content's special token while it is rendered; Unicode keeps them free of characters."""
MANY = 1000
"""Texts at once from which it pays to learn words."""
MARKS = re.compile(f"{OPEN}(.*?){CLOSE}", re.DOTALL)


@dataclass
class SpecialTokens:
    """The special tokens of a tokenizer, and what to do with those that a text holds."""

    tokenizer: PreTrainedTokenizerBase
    policy: Policy
    stops: tuple[int, ...]
    template: Template
    rows: int | None = None
    """Rows of the model's embedding, where there is a model."""

    def __post_init__(self) -> None:
        tokens = self.tokenizer.added_tokens_decoder  # made anew at every look, and Gemma has 6,384
        self.added = added = {i: str(t) for i, t in tokens.items() if str(t).strip()}
        own = self.template.controls([*added.values()])
        names = [t for i, t in added.items() if tokens[i].special or i in self.stops or t in own]
        self.pattern = _any_of(names)
        self.first = set("".join(n[0] for n in names))
        self.begin = _any_of([n[:3] for n in names])  # few, where Gemma's thousands of names are slow to search for
        self.ids = {i for i, t in added.items() if t in names}
        self.end = _any_of([added[i] for i in self.stops if i in added])
        self.bos = added.get(self.tokenizer.bos_token_id)
        self.writes_bos = self.template.writes(self.tokenizer.bos_token)
        self.seams = Seams(names)

    @cached_property
    def words(self) -> Words | None:
        """What reads plain texts quicker, where there is such."""
        return words_of(self.tokenizer)

    def stand_in(self, text: str) -> bool:
        """Whether a text holds one."""
        may = any(sign in text for sign in self.first) and self.begin.search(text)
        return bool(may and self.pattern.search(text))

    def may_join(self, messages: Messages, tools: str) -> bool:
        """Whether contents could make special tokens where they meet; of calls and schemas that is not known before
        they are looked through."""
        if tools or any(m.tool_calls for m in messages):
            return True
        return any(self.seams.open(text) for m in messages for text in _strings(m))

    def screen(self, messages: Messages, tools: str, where: str, counts: Counts) -> tuple[Messages, bool]:
        """(messages as they are to be rendered, whether their special tokens need marks).

        An end-of-turn token that somebody wrote at the end of an answer is cut, since the template writes it, and so is
        a BOS at the start of a prompt that was rendered before; unless they are to be text.
        Raises: InputError naming message and token, where they are errors.
        """
        for what, text in _texts(messages, tools).items():
            _no_marks(f"{where}: {what}", text)
        if not any(self.stand_in(text) for m in messages for text in _strings(m)) and not self.stand_in(tools):
            return messages, False
        if self.policy != "text":
            messages = tuple(self._without_end_of_turn(m, counts) for m in messages)
        if self.policy == "keep" and self.writes_bos:
            first = replace(messages[0], content=self._without_start(messages[0].content, counts))
            messages = (first, *messages[1:])
        held = {what: text for what, text in _texts(messages, tools).items() if self.stand_in(text)}
        if held and self.policy == "error":
            what, text = next(iter(held.items()))
            raise InputError(self._refusal(f"{where}: {what}", text))
        self._count(counts, bool(held))
        return messages, bool(held)

    def _without_end_of_turn(self, message: Message, counts: Counts) -> Message:
        if message.role != "assistant":
            return message
        return replace(message, content=self.without_end(message.content, counts))

    def _count(self, counts: Counts, held: bool) -> None:
        if self.policy == "text":
            counts.special_tokens_as_text += held
        else:
            counts.special_tokens_kept += held

    def without_end(self, text: str, counts: Counts) -> str:
        """A text without the end-of-turn tokens at its end, which would stand there twice."""
        shorter, ends = text, [*self.end.finditer(text)]
        while ends and not shorter[ends[-1].end() :].strip():
            shorter = shorter[: ends[-1].start()].rstrip()
            ends = [*self.end.finditer(shorter)]
        counts.doubled_ends_cut += shorter != text
        return shorter

    def _without_start(self, text: str, counts: Counts) -> str:
        shorter = text.removeprefix(self.bos) if self.bos else text
        counts.doubled_starts_cut += shorter != text
        return shorter

    def screen_document(self, text: str, where: str, counts: Counts) -> str:
        """A plain text as it is to be tokenised, with BOS and EOS around it. Raises: InputError as `screen` does."""
        _no_marks(where, text)
        if not self.stand_in(text):
            return text
        if self.policy != "text":
            text = self._without_start(self.without_end(text, counts), counts)
        if self.policy == "error" and self.stand_in(text):
            raise InputError(self._refusal(where, text))
        self._count(counts, self.stand_in(text))
        return text

    def _refusal(self, what: str, text: str) -> str:
        found = self.pattern.search(text)
        assert found is not None
        rendered = len(set(self.pattern.findall(text))) > 1 or bool(self.bos and text.startswith(self.bos))
        before = (
            " It looks as if it had been rendered with a chat template before: give the bare text." if rendered else ""
        )
        return (
            f"{what} holds the special token {found[0]!r}, which would act as one.{before} Set `special_tokens: text` "
            "to read such tokens as plain text, or `special_tokens: keep` to let them act."
        )

    # ---- marks and ids -----------------------------------------------------------------------------------------------

    def mark(self, value: object) -> object:
        """A JSON value with marks around the special tokens in its texts."""
        if isinstance(value, str) and self.stand_in(value):
            return self.pattern.sub(rf"{OPEN}\g<0>{CLOSE}", value)
        if isinstance(value, dict):
            return {self.mark(key): self.mark(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.mark(item) for item in value]
        return value

    def made_by_seams(self, text: str, apart: str, where: str, counts: Counts) -> None:
        """What is to become of special tokens in a text that are not there when its contents stand `apart`. Raises:
        InputError."""
        made = Counter(self.pattern.findall(text)) - Counter(self.pattern.findall(apart))
        if not made:
            return
        if self.policy != "keep":
            raise InputError(
                f"{where}: contents make the special token {next(iter(made))!r} where the chat template joins them, "
                "and it would act as one. Change the text there, or set `special_tokens: keep` to let it act."
            )
        counts.special_tokens_kept += 1

    def tokenise(
        self, texts: Sequence[str], written: Sequence[Sequence[Span]], wheres: Sequence[str], counts: Counts
    ) -> list[Tokens]:
        """Ids and offsets of rendered texts; `written[i]` are the special tokens that stand in contents of text i.

        Raises: InputError where a tokenizer cannot read those as plain text and all else as it stands, where its
        normaliser makes a special token of what was none, and for a token without a row in the model's embedding.
        """
        if not texts:
            return []
        rows = self._read(texts)
        for n, (text, row, spans, where) in enumerate(zip(texts, rows, written, wheres, strict=True)):
            if not row.plain:
                spans = [*spans, *self._made_by_normaliser(text, row, where, counts)]
            if spans and self.policy == "text":
                rows[n] = self._as_text(text, row, spans, where)
            self._check_rows(rows[n].ids, where)
        return rows

    def _read(self, texts: Sequence[str]) -> list[Tokens]:
        """Tokens of each text, without any that is not written in it."""
        words = self.words if len(texts) >= MANY or "words" in vars(self) else None
        read = [words.tokens(text) if words else None for text in texts]
        if others := [text for text, row in zip(texts, read, strict=True) if row is None]:
            more = {"return_attention_mask": False, "return_token_type_ids": False, "verbose": False}
            out: Any = self.tokenizer(others, add_special_tokens=False, **more)
            rest = iter(map(Tokens, out["input_ids"], out.encodings))
            return [row or next(rest) for row in read]
        return [row for row in read if row]

    def _own(self, row: Tokens) -> list[tuple[int, Span]]:
        """(id, where it stands) of each special token."""
        return [(i, row.span(n)) for n, i in enumerate(row.ids) if i in self.ids]

    def _made_by_normaliser(self, text: str, row: Tokens, where: str, counts: Counts) -> list[Span]:
        """Where special tokens stand that the text spells in another way, such as in capitals, and the template does
        not write so."""
        spelt = [(i, span) for i, span in self._own(row) if self.added[i] not in text[slice(*span)]]
        found = [(i, span) for i, span in spelt if text[slice(*span)].strip() not in self.template.source]
        if found and self.policy == "error":
            i, span = found[0]
            if i == self.tokenizer.unk_token_id:
                raise InputError(
                    f"{where}: the tokenizer has no token for {text[slice(*span)]!r} and reads {self.added[i]!r}, so "
                    "the model would not see what it is. Change it in the data, or set `special_tokens: keep` to let "
                    "it stand as that."
                )
            raise InputError(
                f"{where}: the tokenizer reads {text[slice(*span)]!r} as the special token {self.added[i]!r}, which "
                "would act as one. Set `special_tokens: text` to read such tokens as plain text, or "
                "`special_tokens: keep` to let them act."
            )
        self._count(counts, bool(found))
        return [span for _, span in found]

    def _check_rows(self, ids: Sequence[int], where: str) -> None:
        if self.rows is not None and ids and max(ids) >= self.rows:
            raise InputError(
                f"{where}: holds {self.tokenizer.convert_ids_to_tokens(max(ids))!r}, a token of the id {max(ids):,}, "
                f"and the model's embedding has {self.rows:,} rows. Remove it from the data, or enlarge the model with "
                "resize_token_embeddings."
            )

    def _as_text(self, text: str, row: Tokens, written: Sequence[Span], where: str) -> Tokens:
        """The text between two special tokens of the template is read alone, once as it stands, which must give the ids
        of `row`, and once without special tokens."""
        options = {"add_special_tokens": False, "return_offsets_mapping": True, "verbose": False}
        own = [(i, span) for i, span in self._own(row) if not overlap(span, written)]
        edges = [0, *(edge for _, span in own for edge in span), len(text)]
        plain: tuple[list[int], list[Span]] = ([], [])
        again: list[int] = []
        for n, (start, end) in enumerate(zip(edges[::2], edges[1::2], strict=True)):
            for tokens, split in ((plain, True), ((again, []), False)):
                out = self.tokenizer(text[start:end], split_special_tokens=split, **options)
                tokens[0].extend(out["input_ids"])
                tokens[1].extend((a + start, b + start) for a, b in out["offset_mapping"])
                if n < len(own):
                    tokens[0].append(own[n][0])
                    tokens[1].append(own[n][1])
        if again != row.ids or sum(i in self.ids for i in plain[0]) != len(own):
            raise InputError(
                f"{where}: special_tokens: text: this tokenizer cannot read {text[slice(*written[0])]!r} as plain text "
                "here; change it in the data, or set `special_tokens: keep`."
            )
        return Tokens(plain[0], offsets=plain[1])


def unmark(text: str, marks: Sequence[Span]) -> tuple[str, list[Span], list[Span]]:
    """(text without marks, spans of what they stood around, and the spans `marks` of the marked text in it)."""
    places = [i for i, c in enumerate(text) if c in (OPEN, CLOSE)]
    bare = text.replace(OPEN, "").replace(CLOSE, "")

    def at(i: int) -> int:
        return i - sum(place < i for place in places)

    return bare, [(at(m.start()), at(m.end())) for m in MARKS.finditer(text)], [(at(a), at(b)) for a, b in marks]


def overlap(span: Span, others: Sequence[Span]) -> bool:
    """Whether a span shares a character with one of the others."""
    return any(span[0] < end and start < span[1] for start, end in others)


def _any_of(names: Sequence[str]) -> re.Pattern[str]:
    longest_first = sorted(set(names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or "(?!)")


def _strings(message: Message) -> list[str]:
    texts = (message.content, message.reasoning, message.tool_calls, message.tool_call_id, message.name)
    return [text for text in texts if text]


def _texts(messages: Messages, tools: str) -> dict[str, str]:
    """All texts of a dialogue, by where they stand in it."""
    texts = {f"message {i} ({m.role})": "".join(_strings(m)) for i, m in enumerate(messages, 1)}
    return texts | {"tools": tools}


def _no_marks(what: str, text: str) -> None:
    if held := [mark for mark in (OPEN, CLOSE, APART) if mark in text]:
        raise InputError(
            f"{what} holds the character U+{ord(held[0]):X}, which Unicode keeps free and Align marks special "
            "tokens with. Remove it."
        )
