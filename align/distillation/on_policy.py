"""The student's own answers as what it learns on, in a share of the steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from align.data.examples import Example
from align.ground.errors import InputError
from align.ground.ranks import world
from align.rendering.render import Renderer
from align.sampling.rollout import as_example, sampler
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.models.roles import Roles


def opening_of(example: Example) -> list[int]:
    """The tokens before the first that counts."""
    ids, counts = example.sequences[0], example.supervised[0]
    return list(ids[: list(counts).index(True)])


def check(bench: Workbench, renderer: Renderer, examples: Sequence[Example]) -> None:
    """Each prompt leaves room for an answer, and one process draws them. Raises: InputError."""
    if world() > 1:
        raise InputError(
            f"{bench.title}: lmbda is {bench.config.lmbda}, and the student's own answers are drawn in one process. "
            "Start it without torchrun, or set `lmbda: 0`."
        )
    longest, new = max(len(opening_of(e)) for e in examples), bench.config.max_new_tokens
    if longest + new > renderer.max_length:
        raise InputError(
            f"{bench.title}: a prompt has {longest:,} tokens and {new:,} more are to be sampled, but {renderer.limit} "
            f"is {renderer.max_length:,}. Lower max_new_tokens, or raise max_length."
        )


def answered(bench: Workbench, roles: Roles, renderer: Renderer) -> Callable[[list[Example], int], list[Example]]:
    """What replaces a step's examples by the student's answers to their prompts, in a share `lmbda` of the steps; what
    is drawn depends on seed and step alone."""
    c = bench.config
    draws = sampler(roles, "policy", renderer)

    def prepare(examples: list[Example], step: int) -> list[Example]:
        if np.random.default_rng([c.seed, step]).random() >= c.lmbda:
            return examples
        torch.manual_seed(int(np.random.SeedSequence([c.seed, step]).generate_state(1, np.uint64)[0]))
        prompts = [opening_of(example) for example in examples]
        answers = draws(prompts, n=1, max_new_tokens=c.max_new_tokens, temperature=c.temperature)
        draws.forget()
        return [as_example(prompt, [one.ids]) for prompt, (one,) in zip(prompts, answers, strict=True)]

    return prepare
