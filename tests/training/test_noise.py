"""NEFTune: transformers' own noise for a sequence alone, and of packed sequences each its own length's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.integrations.neftune import neftune_post_forward_hook

from align import sft
from align.data.examples import Example
from align.packed.forward import padded_rows
from align.packed.pack import Batch, pack
from align.training.noise import apart, noisy
from align.training.step_module import StepModule
from tests.models.models import make_roles

ALPHA, WIDTH = 5.0, 32


def example(n: int, shared: int = 1) -> Example:
    return Example((tuple(range(3, 3 + n)),), ((*[False] * shared, *[True] * (n - shared)),), shared)


def noise(roles: Any, batch: Batch, ids: Tensor) -> Tensor:
    """What is added to the embeddings of `ids` while a step on `batch` is computed."""
    embedding = roles.base.get_input_embeddings()
    with noisy(roles, batch, ALPHA):
        noised = embedding(ids)
    return noised - embedding(ids)


def loss(roles: Any, examples: list[Example], alpha: float | None, seed: int = 7) -> float:
    torch.manual_seed(seed)
    batch = pack(examples)
    return StepModule(roles, sft.loss, torch.float64, noise=alpha)(batch).scalar(batch.counts).item()


@pytest.mark.parametrize("family", ["llama", "bloom"])
def test_a_sequence_alone_has_transformers_noise(family: str) -> None:
    """The same loss as with transformers' own hook, on the packed path and on the padded one."""
    roles, one = make_roles(family), [example(9)]
    noised = loss(roles, one, ALPHA)
    embedding = roles.base.get_input_embeddings()
    embedding.train()
    embedding.neftune_noise_alpha = ALPHA
    handle = embedding.register_forward_hook(neftune_post_forward_hook)
    assert loss(roles, one, None) == pytest.approx(noised, abs=1e-6)  # whose scale is fp32
    handle.remove()
    assert abs(loss(roles, one, None) - noised) > 1e-3  # negative control


@pytest.mark.parametrize("packed", [True, False])
def test_each_sequence_has_the_noise_of_its_own_length(packed: bool) -> None:
    """No number of a sequence of n tokens moves by more than alpha / sqrt(n D), and of so many one comes near."""
    lengths = [4, 60, 20]
    batch = pack(apart([example(n) for n in lengths]))
    ids = batch.input_ids if packed else padded_rows(batch)[0]
    found = noise(make_roles(), batch, ids)
    each = found[0].split(lengths) if packed else [row[:n] for row, n in zip(found, lengths, strict=True)]
    for n, one in zip(lengths, each, strict=True):
        most = ALPHA / (n * WIDTH) ** 0.5
        assert 0.9 * most < one.abs().max().item() <= most and abs(one.mean().item()) < 0.2 * most
        # negative control: the length of the packed row would give another scale
        assert one.abs().max().item() > 1.05 * ALPHA / (sum(lengths) * WIDTH) ** 0.5


def test_a_prompt_has_noise_of_its_own_in_each_sequence() -> None:
    """Answers to one prompt share it in a packed row; with noise they are apart, as in TRL."""
    examples = [example(12, shared=6), example(15, shared=6)]
    assert pack(examples).input_ids.shape == (1, 5 + 7 + 10)  # negative control: shared
    alone, roles = pack(apart(examples)), make_roles()
    assert alone.input_ids.shape == (1, 27) and alone.counts == pack(examples).counts
    assert loss(roles, apart(examples), None) == pytest.approx(loss(roles, examples, None), abs=1e-9)
    first, second = noise(roles, alone, alone.input_ids)[0].split([12, 15])
    assert not torch.allclose(first[:6] * 12**0.5, second[:6] * 15**0.5, atol=0.1)


def test_what_is_measured_has_none() -> None:
    """The step's forward alone is noised: roles that are asked afterwards answer as they did."""
    roles, batch = make_roles(), pack([example(9)])
    before = roles.logprobs("policy", batch)
    noised = loss(roles, [example(9)], ALPHA)
    assert torch.equal(roles.logprobs("policy", batch), before)
    assert noised != loss(roles, [example(9)], ALPHA, seed=8)  # negative control


def test_transformers_hook_takes_the_whole_row() -> None:
    """Negative control: on a packed row transformers' scale is that of all its tokens."""
    out = torch.zeros(1, 84, WIDTH)
    theirs = neftune_post_forward_hook(SimpleNamespace(training=True, neftune_noise_alpha=ALPHA), None, out)
    assert theirs.abs().max().item() <= ALPHA / (84 * WIDTH) ** 0.5
