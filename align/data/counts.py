"""What reading and rendering did to rows beside what was asked: left out, cut, changed; counted, to be told and
recorded."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field, fields, replace
from typing import cast

from align.ground.errors import InputError
from align.ground.json import Json

EXAMPLES = 2
"""Rows of each data set that are shown of those that were left out as bad."""
REASONS = 20
"""Different reasons that are counted apart."""


class LeftOut(Counter[str]):
    """Rows that were left out, by the reason; of bad ones also the first examples."""

    examples: tuple[str, ...] = ()

    def bad(self, where: str, error: InputError) -> None:
        """Count a row that could not be used."""
        reason = f"bad rows: {_reason(where, str(error))}"
        reasons = sum(known.startswith("bad rows: ") for known in self)
        if len(self.examples) < EXAMPLES:
            self.examples = (*self.examples, str(error))
        elif reason not in self and reasons < EXAMPLES:  # than one more of the reasons that are shown already
            self.examples = (*self.examples[:reasons], str(error))
        self[reason if reason in self or len(self) < REASONS else "bad rows: other reasons"] += 1

    def figures(self, prefix: str) -> dict[str, int]:
        """The counts under names that a manifest may have: prefix/bad_rows_completion_is_empty."""
        found: Counter[str] = Counter()
        for reason, n in self.items():
            found[f"{prefix}/{slug(reason)}"] += n
        return dict(found)

    @property
    def counted(self) -> str:
        """How many, by the reason."""
        told = {
            reason: re.sub(r"^(bad|empty) rows\b", r"\1 row", reason) if n == 1 else reason
            for reason, n in self.items()
        }
        return ", ".join(f"{n:,} {told[reason]}" for reason, n in self.items())

    @property
    def shown(self) -> str:
        """The first bad rows, each on a line of its own."""
        return "".join(f"\n  left out: {example}" for example in self.examples)

    def __str__(self) -> str:
        return self.counted + self.shown


def slug(reason: str) -> str:
    """A reason as the end of a figure's name."""
    return re.sub(r"[^a-z0-9]+", "_", reason.lower()).strip("_")


def _reason(where: str, message: str) -> str:
    """What a message says without its place, what it quotes but single words, its figures and its remedy, so that
    like rows are counted together."""
    said = re.sub(r"(?<!\w)'(?!\w{1,30}')(?:[^'\\]|\\.)*'(?!\w)", "…", message.removeprefix(where).removeprefix(": "))
    said = re.sub(r" ?\((?:line \d+,? ?)?column \d+\)", "", re.split(r"[.;] ", said, maxsplit=1)[0].rstrip("."))
    said = re.sub(r"\b(is|found) -?\d[\d.]*(?:e[+-]?\d+)?(?![\w,])", r"\1 a number", said)
    return re.sub(r"(?<![\w-])\d[\d,.]*(?!\w)", "N", said)[:120]


SAID = {"missing_end": "with an answer that is cut off"}
"""Counts whose names need words."""


@dataclass
class Counts:
    """What rendering decided, to be printed and put into the metrics."""

    records: int = 0
    dropped_too_long: int = 0
    dropped_equal_once_cut: int = 0
    """Pairs whose chosen equals rejected up to max_length."""
    cut: int = 0
    missing_end: int = 0
    answers_not_learnt: int = 0
    """Answers with `weight: 0` or `train: false`."""
    answers_taken_apart: int = 0
    """Answers learnt in a sequence of their own, since the template renders them in another way once later turns
    follow."""
    dialogues_cut_after_their_last_answer: int = 0
    """Records that go on after it, to what no answer teaches; of pairs, either side."""
    earlier_thoughts_left_out: int = 0
    """Records whose template leaves out what the assistant thought in turns that are only read."""
    tokens_across_prompt_end: int = 0
    """Answers whose first token begins inside the prompt: sampling begins with other tokens there."""
    doubled_starts_cut: int = 0
    doubled_ends_cut: int = 0
    special_tokens_kept: int = 0
    """Records with special tokens in their contents, which act (`special_tokens: keep`)."""
    special_tokens_as_text: int = 0
    left_out: LeftOut = field(default_factory=LeftOut)
    """Records that cannot be rendered, where `bad_rows: drop` is set."""

    def of_dialogues(self) -> tuple[int, ...]:
        """What is counted of a prompt and of its answers alike."""
        return (
            self.earlier_thoughts_left_out,
            self.doubled_starts_cut,
            self.special_tokens_kept,
            self.special_tokens_as_text,
        )

    def once(self, before: tuple[int, ...]) -> None:
        """Count a record once where its prompt and its answers were each counted; `before`: `of_dialogues` before
        it."""
        if self.of_dialogues() != before:
            (
                self.earlier_thoughts_left_out,
                self.doubled_starts_cut,
                self.special_tokens_kept,
                self.special_tokens_as_text,
            ) = (min(now, then + 1) for now, then in zip(self.of_dialogues(), before, strict=True))

    def copy(self) -> Counts:
        """The counts as they are now."""
        out = replace(self, left_out=LeftOut(self.left_out))
        out.left_out.examples = self.left_out.examples
        return out

    def since(self, before: Counts) -> Json:
        """What was counted after `before`, as JSON."""
        plain = {f.name: getattr(self, f.name) - getattr(before, f.name) for f in fields(self) if f.name != "left_out"}
        examples = [e for e in self.left_out.examples if e not in before.left_out.examples]
        return plain | {"left_out": dict(self.left_out - before.left_out), "examples": examples}

    def add(self, found: Json) -> None:
        """Count what `since` gave before."""
        for f in fields(self):
            if f.name != "left_out":
                setattr(self, f.name, getattr(self, f.name) + found[f.name])
        reasons, examples = cast("dict[str, int]", found["left_out"]), cast("list[str]", found["examples"])
        self.left_out.update(reasons)
        self.left_out.examples = (*self.left_out.examples, *examples)[:EXAMPLES]

    def figures(self, prefix: str) -> dict[str, int]:
        """Records that were left out, for a manifest."""
        dropped = {f"{prefix}/too_long": self.dropped_too_long, f"{prefix}/equal_once_cut": self.dropped_equal_once_cut}
        return self.left_out.figures(prefix) | {name: n for name, n in dropped.items() if n}

    @property
    def plain(self) -> bool:
        """Whether there is nothing to tell but how many records there were."""
        return self == Counts(self.records)

    def __str__(self) -> str:
        parts = [f"{self.records:,} records"]
        figures = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("records", "left_out")}
        parts += [f"{n:,} {SAID.get(name) or name.replace('_', ' ')}" for name, n in figures.items() if n]
        return ", ".join(parts) + (f"; left out: {self.left_out}" if self.left_out else "")
