"""A GPU without a GPU: every stage's forward, loss and backward, and a step of sampling, on tensors that say that they
lie on one and hold no numbers.

A tensor that was left on the CPU beside them raises, and so does a question to a number, for which a GPU's queue would
have to run dry. What asks all the same, and why, is in `ASKS`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from align import bco, cpo, distill, kto, online_dpo, orpo, pretrain, simpo
from align.data.examples import Example
from align.distillation.teacher import Teacher
from align.losses.loss import Loss
from align.models.roles import Roles
from align.packed.pack import Batch, Layout
from align.packed.vocabulary import ELEMENTS
from align.sampling.decode import Cache
from align.training.steps import make_step
from tests.models.models import pairs, settings
from tests.training.test_invariants import LossOf, all_stages, groups, two_roles, with_random_reference

GPU = torch.device("meta")
ASKS = {
    "Ends.see": "which answers have ended: sampling stops, and rows leave the batch, when the last one has",
    "Cache": "once a rollout, and in `keep` when rows leave, how many rows grow on each prompt",
    "Teacher.of": "which rows of what is kept of a teacher a micro-batch has, once each, in the forward of `distill`",
    "StageTrainer.training_step": "once a step whether the loss is finite, before the optimizer's step",
    "StageTrainer._get_grad_norm": "the norm of the gradient, once a step, for the log and the guard",
    "processes.average_gradients": "with several processes, once a step, which tensors have a gradient",
    "tally.means": "what the losses measured, once a step, all of it in one copy",
}
"""Places that wait for a GPU, and why they do; but for what a teacher gave, none is in a forward, a loss or a
backward."""


def fake(tensor: Tensor) -> Tensor:
    """A tensor of the same shape that lies on the GPU, without numbers; inside a mode."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=GPU)


def moved(module: nn.Module) -> None:
    """Parameters and buffers as `fake` ones; those that are shared stay so."""
    made: dict[int, Tensor] = {}
    for part in module.modules():
        for held in (part._parameters, part._buffers):
            for name, tensor in held.items():
                if tensor is not None and id(tensor) not in made:
                    new = fake(tensor)
                    made[id(tensor)] = (
                        nn.Parameter(new, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else new
                    )
                if tensor is not None:
                    held[name] = made[id(tensor)]  # type: ignore[assignment]


def batch_of(batch: Batch) -> Batch:
    """What `Batch.to` gives, of fakes."""
    own = {f.name: fake(v) for f in fields(batch) if isinstance(v := getattr(batch, f.name), Tensor)}
    out = replace(
        batch, **own, layout=Layout(batch.layout.groups), columns={k: fake(v) for k, v in batch.columns.items()}
    )
    vars(out)["rows"] = fake(batch.rows)
    return out


@contextmanager
def without_numbers(roles: Roles) -> Iterator[None]:
    """`roles` are on the GPU inside."""
    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=False):
        patch.setitem(ELEMENTS, GPU.type, ELEMENTS["cuda"])
        patch.setattr(torch, "is_autocast_enabled", lambda device: False)  # which knows no meta device
        moved(roles)
        yield


def step(roles: Roles, loss: LossOf, batches: list[Batch], counts: dict[str, int]) -> None:
    for batch in batches:
        made: Any = loss(roles, batch_of(batch))
        for part in (made,) if isinstance(made, Loss) else made:
            scalar = part.scalar(counts)
            scalar.backward()
            assert scalar.device == GPU
            on_gpu = {name: value.device == GPU for name, (value, _) in part.metrics.items()}
            assert all(on_gpu.values()), on_gpu


def told(examples: list[Example], **values: float) -> list[Example]:
    """The examples with columns that hold one number each."""
    out = []
    for e in examples:
        sizes = [len(s) - e.prefix for s in e.sequences]
        more = {name: tuple(np.full(k, value) for k in sizes) for name, value in values.items()}
        out.append(replace(e, columns={**e.columns, **more}))
    return out


def taught(roles: Roles, batch: Batch) -> Loss:
    """The value's adapter as a teacher, asked as it is of answers that the student gave."""
    roles.assign("teacher", roles.adapters["value"])
    return distill.loss(roles, batch, DISTILL, Teacher(lambda: roles, 4, 97))


DISTILL = settings(distill.Config, teacher="none")
ONLINE_DPO = settings(online_dpo.Config, judges={"a": "b"}, group_size=4)


def other_stages() -> list[Any]:
    """Beside `all_stages`. `best_of_n` and `pairs` have no step of their own: they sample."""
    referred = with_random_reference(pairs(5))
    of_pairs = {m: settings(m.Config) for m in (simpo, cpo, orpo)}
    of_labels = {m: settings(m.Config) for m in (kto, bco)}
    labelled = told(referred, good=1.0, kl=0.1, shift=0.2)
    return [
        *(pytest.param(partial(m.loss, config=c), pairs(5), id=m.STAGE.name) for m, c in of_pairs.items()),
        *(pytest.param(partial(m.loss, config=c), labelled, id=m.STAGE.name) for m, c in of_labels.items()),
        pytest.param(partial(online_dpo.loss, config=ONLINE_DPO), told(groups(), side=1.0), id="online_dpo"),
        pytest.param(taught, pairs(5), id="distill"),
        pytest.param(pretrain.loss, pairs(5), id="pretrain"),
    ]


@pytest.mark.parametrize(("loss", "examples"), [*all_stages(), *other_stages()])
def test_a_step_leaves_nothing_behind_and_asks_nothing(loss: LossOf, examples: list[Any]) -> None:
    roles = two_roles()
    made = make_step(examples[:3], 64)
    assert all(len(batch.rows) for batch in made.batches)  # which looks at numbers, before they are moved
    with without_numbers(roles):
        step(roles, loss, made.batches, made.counts)
        gradients = [p.grad for p in roles.trainable().values() if p.grad is not None]
    assert gradients and {g.device for g in gradients} == {GPU}


def test_a_tensor_left_behind_and_a_question_are_seen() -> None:
    """The controls: a loss that adds a number from the CPU, and one that looks at its own."""
    from align import sft

    examples = with_random_reference(pairs(2))
    made = make_step(examples, 64)
    assert all(len(batch.rows) for batch in made.batches)

    def left(roles: Roles, batch: Batch) -> Loss:
        found = sft.loss(roles, batch)
        return replace(found, terms={k: (v * torch.ones(1), name) for k, (v, name) in found.terms.items()})

    def asks(roles: Roles, batch: Batch) -> Loss:
        found = sft.loss(roles, batch)
        assert all(float(v) >= 0 for v, _ in found.terms.values())
        return found

    for loss, error in ((left, RuntimeError), (asks, DataDependentOutputException)):
        roles = two_roles()
        with without_numbers(roles), pytest.raises(error):
            step(roles, loss, made.batches, made.counts)


def test_a_token_grows_without_a_question() -> None:
    """The prompts' forward, and one token more of each row, as `Sampler._grow` takes them; beside them it asks what
    `ASKS` says."""
    roles = two_roles()
    prompts = [[5, 6, 7], [8, 9]]
    cache = Cache([len(p) for p in prompts], 2, 4, torch.device("cpu"))
    with without_numbers(roles), torch.no_grad():
        for name, tensor in vars(cache).items():
            if isinstance(tensor, Tensor):
                setattr(cache, name, fake(tensor))
        ids = fake(torch.empty(1, len(list(chain(*prompts))), dtype=torch.long))
        decoder: Any = roles.base.base_model
        hidden = decoder(input_ids=ids, position_ids=ids, layout=cache, use_cache=False).last_hidden_state[0]
        cache.grow()
        hidden = hidden[cache.lengths.cumsum(0) - 1][cache.owner]
        logits = list(roles.head.blocks(hidden))
        new = fake(torch.empty(1, len(hidden), dtype=torch.long))
        decoder(input_ids=new, position_ids=cache.positions, layout=cache, use_cache=False)
    assert {z.device for z in logits} == {GPU}


if __name__ == "__main__":
    print("\n".join(f"{place}: {why}" for place, why in ASKS.items()))
