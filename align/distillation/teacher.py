"""A teacher at work: its likeliest tokens at every position that counts, computed once per store for rows that are
given, and as they come for answers of the student."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from align import distillation, models, packed
from align.data.examples import Example
from align.data.examples import digest as digest_examples
from align.ground.cost import libraries
from align.ground.errors import InputError
from align.ground.progress import Task
from align.ground.terminal import say
from align.inputs.fit import rows_of
from align.losses.loss import Loss
from align.models.roles import Roles
from align.packed.batches import batches
from align.packed.pack import Batch, microbatches
from align.stage import learning, on_base
from align.stage.workbench import Workbench
from align.store import digest_json

MOST = 1 << 24
"""Positions that a column of fp32 can number."""


class Teacher:
    """Role "teacher" of `roles`, which `load` gives when it is first needed; None there where all that is needed is
    kept.

    Args:
        k, words: the `k` likeliest of the first `words` tokens.
    """

    def __init__(self, load: Callable[[], Roles], k: int, words: int):
        self.load, self.k, self.words = load, min(k, words), words
        self.roles: Roles | None = None
        self.kept = np.zeros(0, dtype=self.row)

    @property
    def row(self) -> np.dtype:
        """What is kept of a position."""
        outcomes = self.k + (self.k < self.words)
        return np.dtype([("ids", "<i4", (self.k,)), ("logprobs", "<f4", (outcomes,))])

    def of(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """At the rows of `batch` that count: ids (N, k), and log-probs of these and of all others together."""
        if "teacher" not in batch.columns:
            return self.computed(batch)
        rows = self.kept[batch.columns["teacher"][batch.rows].long().cpu().numpy()]
        device = batch.input_ids.device
        return (
            torch.from_numpy(rows["ids"].astype(np.int64)).to(device),
            torch.from_numpy(rows["logprobs"].copy()).to(device),
        )

    @torch.no_grad()
    def computed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        self.roles = self.roles or self.load()
        with self.roles.use("teacher"):
            hidden = self.roles.hidden(batch, batch.rows)
            ids, logprobs = distillation.outcomes.likeliest(self.roles.head, hidden, self.k, self.words)
        return ids, logprobs.float()

    def keep(self, bench: Workbench, examples: Sequence[Example]) -> list[Example]:
        """The examples with column `teacher`: which row of what is kept in the store each position has."""
        budget, device = bench.config.tokens_per_microbatch, models.process.device()
        order = [i for items in microbatches(examples, budget) for i in items]
        positions = sum(sum(counts) for e in examples for counts in e.supervised)
        if len(self.kept) + positions > MOST:
            raise InputError(
                f"{bench.title}: {positions:,} tokens count, of at most {MOST:,} that a teacher's probabilities are "
                "kept of. Take fewer rows, or several stages."
            )

        def parts() -> Iterator[memoryview]:
            with Task("asking the teacher", len(examples), "records") as task:
                for indices, batch in batches(examples, budget, device):
                    ids, logprobs = self.computed(batch)
                    rows = np.zeros(len(ids), dtype=self.row)
                    rows["ids"], rows["logprobs"] = ids.cpu().numpy(), logprobs.cpu().numpy()
                    yield memoryview(rows.tobytes())
                    task.add(len(indices))

        key = digest_json(
            {
                "teacher": bench.parents["teacher"].digest,
                "outcomes": [self.k, self.words],
                "precision": [bench.settings["precision"], device.type, budget, libraries()],
                "examples": digest_examples(examples),
            }
        )
        if bench.shards:  # whose forwards are those of all processes
            made = learning.once_for_all(bench, key, lambda: b"".join(parts()))
            rows = np.frombuffer(made, dtype=self.row, count=positions)
        else:
            with bench.store.cached_file(key, parts()) as path:
                rows = np.fromfile(path, dtype=self.row, count=positions)
        at, out = len(self.kept), list(examples)
        self.kept = np.concatenate([self.kept, rows])
        for i in order:
            columns = []
            for ids, counts in zip(examples[i].sequences, examples[i].supervised, strict=True):
                column = np.zeros(len(ids) - examples[i].prefix, dtype=np.float32)
                places = np.flatnonzero(counts) - 1 - examples[i].prefix  # what predicts a token stands before it
                column[places] = np.arange(at, at + len(places))
                at += len(places)
                columns.append(column)
            out[i] = replace(examples[i], columns={**examples[i].columns, "teacher": tuple(columns)})
        return out

    def leave(self) -> None:
        """Give its memory back, where it is not asked again."""
        self.roles = None


def loaded(bench: Workbench) -> Roles:
    """Role "teacher" on a base of its own. It draws nothing that the student's draws depend on."""
    base, artifact = distillation.inputs.base_of_teacher(bench), bench.parents["teacher"]
    dtype, _ = models.precision.explain_precision(bench.config.precision)
    say(f"{bench.title}: loading the teacher {artifact.short} on {base.label}")
    with torch.random.fork_rng(devices=[]), Task(f"loading {base.label}"):
        model = models.base.load_base(base.path, quantize=base.quantize, dtype=dtype)
        base.check_unchanged()
        if rows := rows_of({"teacher": artifact}, bench.store):
            packed.token_rows.enlarge(model, rows)
        roles = models.roles.Roles(model)
        on_base.add_role(bench, roles, "teacher", folder_of(bench))
    return roles


def folder_of(bench: Workbench) -> Path | None:
    """The teacher's adapters; None where it is a base itself."""
    artifact = bench.parents["teacher"]
    return None if artifact.kind == "model" else bench.store.folder(artifact)


@torch.no_grad()
def measured(
    examples: Sequence[Example], budget: int, roles: Roles, loss: Callable[[Roles, Batch], Loss]
) -> dict[str, float]:
    """Mean divergence and KL(teacher || student) of the tokens that count; nothing where there are no examples."""
    if not examples:
        return {}
    sums, tokens = np.zeros(2), 0
    for _, batch in batches(examples, budget, roles.base.device):
        found = loss(roles, batch)
        sums += float(found.terms["divergence"][0]), float(found.metrics["kl"][0])
        tokens += len(batch.rows)
    return {"eval/loss": float(sums[0]) / tokens, "eval/kl": float(sums[1]) / tokens}
