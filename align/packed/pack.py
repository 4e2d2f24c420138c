"""Packing: examples in, one flat row of T tokens out, no padding and no attention mask.

Legend of every tensor file: T tokens in the packed row, S sequences (branches; preference pairs are neighbours: chosen
2i, rejected 2i+1), G groups, V vocabulary, D hidden size, R LoRA rank. Everything per token is `(T,)`, everything per
sequence `(S,)`.

A *group* is a shared prefix and 1..N *branches*: those of one example, and of its neighbours with the same prefix, so
that a prompt is computed once for all its pairs in a row. The prefix stops before the last shared token; each branch
starts with its own copy of that token, so that every position has exactly one target, except a branch's last token.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from align.data.examples import Example


@dataclass(frozen=True)
class Layout:
    """Lengths of the prefixes (G) and of each group's branches, in row order; what attention needs to know of a packed
    row."""

    groups: tuple[tuple[int, tuple[int, ...]], ...]
    masks: dict[Any, Any] = field(default_factory=dict, compare=False)
    """Attention's own: the masks that it made for these groups."""


@dataclass(frozen=True)
class Batch:
    """One packed row."""

    input_ids: Tensor  # (1, T)
    position_ids: Tensor  # (1, T): a branch goes on where its prefix ends
    targets: Tensor  # (T,): the token that position t predicts
    loss_mask: Tensor  # (T,): True where the target counts
    segment_ids: Tensor  # (T,): index of the sequence, -1 inside prefixes
    ends: Tensor  # (S,): row of each branch's last token
    margins: Tensor  # (S // 2,): margin of each preference pair, 0 where none was given
    layout: Layout
    columns: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (T,)
    trunk: Tensor | None = None  # (T, D): what enters the first layer that trains, where it is kept
    void: bool = False  # computed for the collectives' sake alone: counts nothing, whatever it holds

    @property
    def counts(self) -> dict[str, int]:
        """What a loss term may be divided by: tokens that count, those of chosen completions, sequences, pairs."""
        sequences = 0 if self.void else len(self.ends)
        tokens, chosen = int(self.loss_mask.sum()), int(self.lengths[0::2].sum())
        return {"tokens": tokens, "chosen_tokens": chosen, "sequences": sequences, "pairs": sequences // 2}

    @property
    def lengths(self) -> Tensor:
        """(S): tokens that count in each sequence."""
        return self.per_sequence(self.loss_mask.long())

    @cached_property
    def rows(self) -> Tensor:
        """(N,): rows whose target counts. `to` takes it along: to look for them on a GPU, the CPU would have to wait
        for it."""
        return self.loss_mask.nonzero()[:, 0]

    @cached_property
    def spans(self) -> list[Tensor]:
        """Positions of each sequence (S), those of its prefix before those of its branch."""
        out, start = [], 0
        for prefix, branches in self.layout.groups:
            head = torch.arange(start, start + prefix, device=self.input_ids.device)
            start += prefix
            for n in branches:
                out.append(torch.cat([head, torch.arange(start, start + n, device=self.input_ids.device)]))
                start += n
        return out

    def to(self, device: torch.device) -> Batch:
        moved: dict[str, Any] = {
            f.name: move(v, device) for f in fields(self) if isinstance(v := getattr(self, f.name), Tensor)
        }
        out = replace(self, **moved, columns={k: move(v, device) for k, v in self.columns.items()})
        vars(out)["rows"] = move(self.rows, device)
        return out

    def per_sequence(self, values: Tensor) -> Tensor:
        """Sum `values (T)` over each sequence: (S). Positions inside prefixes are left out."""
        sums = values.new_zeros(len(self.ends) + 1)  # the first is that of all prefixes
        return sums.index_add(0, self.segment_ids + 1, values)[1:]

    def split(self, values: Tensor) -> list[Tensor]:
        """Cut `values (T)` into one piece per sequence, aligned with its branch."""
        sizes = [n for prefix, branches in self.layout.groups for n in (prefix, *branches)]
        is_branch = [branch for _, branches in self.layout.groups for branch in (False, *(True for _ in branches))]
        return [piece for piece, keep in zip(values.split(sizes), is_branch, strict=True) if keep]


def move(tensor: Tensor, device: torch.device) -> Tensor:
    """To a GPU from pinned memory, queued behind its work; a copy from other memory would wait until that is done."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class _Row:
    """A packed row as it grows: pieces of every column, in order."""

    def __init__(self, columns: Iterable[str]) -> None:
        self.ids: list[np.ndarray] = []
        self.positions: list[np.ndarray] = []
        self.targets: list[np.ndarray] = []
        self.mask: list[np.ndarray] = []
        self.segments: list[np.ndarray] = []
        self.columns: dict[str, list[np.ndarray]] = {name: [] for name in columns}
        self.ends: list[int] = []
        self.length = 0

    def add_prefix(self, example: Example, prefix: int) -> None:
        """Its first `prefix` tokens, which all of its branches share."""
        self.ids.append(np.asarray(example.head, dtype=np.int64))
        self.positions.append(np.arange(prefix))
        self.targets.append(np.asarray(example.sequences[0][1 : prefix + 1], dtype=np.int64))
        self.mask.append(np.zeros(prefix, dtype=bool))
        self.segments.append(np.full(prefix, -1))
        for pieces in self.columns.values():
            pieces.append(np.zeros(prefix, dtype=np.float32))
        self.length += prefix

    def add_branch(self, example: Example, i: int, prefix: int) -> int:
        """Sequence `i` of an example behind its prefix; its length there. Raises: ValueError where a shared token
        counts."""
        supervised = example.supervised[i]
        if any(supervised[: example.shared]):
            raise ValueError("a token of the shared prefix is supervised; it would count once per branch")
        branch = np.asarray(example.sequences[i][prefix:], dtype=np.int64)
        n = len(branch)
        self.ids.append(branch)
        self.positions.append(np.arange(prefix, prefix + n))
        self.targets.append(np.append(branch[1:], 0))
        self.mask.append(np.append(np.asarray(supervised[prefix + 1 :], dtype=bool), False))
        self.segments.append(np.full(n, len(self.ends)))
        for name, pieces in self.columns.items():
            values = np.asarray(example.columns[name][i], dtype=np.float32)
            pieces.append(np.concatenate([np.zeros(n - len(values), dtype=np.float32), values]))
        self.length += n
        self.ends.append(self.length - 1)
        return n


def pack(examples: Sequence[Example], share_prefix: bool = True) -> Batch:
    """Lay examples out in one row. `share_prefix=False` repeats the prompt for every branch (the slow truth that tests
    compare with)."""
    row = _Row(examples[0].columns)
    groups: list[tuple[int, tuple[int, ...]]] = []
    margins: list[float] = []
    for example, joins in zip(examples, joined(examples), strict=True):
        joins, prefix = joins and share_prefix, example.prefix if share_prefix else 0
        if prefix and not joins:
            row.add_prefix(example, prefix)
        lengths = [row.add_branch(example, i, prefix) for i in range(len(example.sequences))]
        if joins:
            groups[-1] = (prefix, (*groups[-1][1], *lengths))
        elif share_prefix:
            groups.append((prefix, tuple(lengths)))
        else:
            groups.extend((0, (n,)) for n in lengths)
        margins.extend([example.margin] * (len(lengths) // 2))
    kept = share_prefix and all(e.trunk is not None for e in examples)
    return Batch(
        input_ids=_tensor(row.ids)[None],
        position_ids=_tensor(row.positions)[None],
        targets=_tensor(row.targets),
        loss_mask=_tensor(row.mask),
        segment_ids=_tensor(row.segments),
        ends=torch.tensor(row.ends),
        margins=torch.tensor(margins),
        layout=Layout(tuple(groups)),
        columns={name: _tensor(pieces) for name, pieces in row.columns.items()},
        trunk=trunk_rows(examples) if kept else None,
    )


def _tensor(pieces: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces))


def trunk_rows(examples: Sequence[Example]) -> Tensor:
    """(T, D): what examples keep, in the order of their packed row."""
    return torch.cat([part for e, joins in zip(examples, joined(examples), strict=True) for part in e.trunk[joins:]])


def joined(examples: Sequence[Example]) -> list[bool]:
    """Whether each example has the prefix of its neighbour before, whose group it joins in a packed row."""
    return [False, *(bool(e.head) and e.head == before.head for before, e in pairwise(examples))][: len(examples)]


def bins(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Indices of `sizes` in as few bins of `budget` tokens as first-fit decreasing finds; an item above the budget gets
    its own bin."""
    filled: list[list[int]] = []
    room: list[int] = []
    for index in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        for b, left in enumerate(room):
            if sizes[index] <= left:
                filled[b].append(index)
                room[b] -= sizes[index]
                break
        else:
            filled.append([index])
            room.append(budget - sizes[index])
    return [sorted(items) for items in filled]


def microbatches(examples: Sequence[Example], budget: int) -> list[list[int]]:
    """Indices of `examples`, split into micro-batches of at most `budget` tokens, with those that share a prefix next
    to each other."""
    groups = [part for indices in by_prefix(examples) for part in _cut(examples, indices, budget)]
    sizes = [row_tokens([examples[i] for i in indices]) for indices in groups]
    return [[i for g in chosen for i in groups[g]] for chosen in bins(sizes, budget)]


def by_prefix(examples: Sequence[Example]) -> list[list[int]]:
    """Indices of `examples`, those with the same prefix together, in the order in which each prefix comes first."""
    groups: list[list[int]] = []
    of_head: dict[bytes, list[int]] = {}
    for i, example in enumerate(examples):
        head = example.head and hashlib.sha256(array("q", example.head)).digest()  # of many, less than their tokens
        if head and head in of_head:
            of_head[head].append(i)
            continue
        groups.append([i])
        if head:
            of_head[head] = groups[-1]
    return groups


def row_tokens(examples: Sequence[Example]) -> int:
    """Tokens that examples take in one packed row."""
    return sum(e.tokens - e.prefix * joins for e, joins in zip(examples, joined(examples), strict=True))


def _cut(examples: Sequence[Example], indices: list[int], budget: int) -> list[list[int]]:
    """Examples with the same prefix in parts within `budget`; one that is above it has a part of its own."""
    parts: list[list[int]] = []
    room = 0
    for i in indices:
        example = examples[i]
        size = example.tokens - example.prefix
        if parts and size <= room:
            parts[-1].append(i)
        else:
            parts.append([i])
            room = budget - example.prefix
        room -= size
    return parts
