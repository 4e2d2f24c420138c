"""Packed groups against each sequence alone through transformers' own attention, for every architecture."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from align.data.examples import Example
from align.models.roles import Roles
from align.packed.attention import native_attention
from align.packed.batches import batches
from align.packed.forward import hidden_states
from align.packed.pack import bins, microbatches, pack
from align.training.plan import Plan
from tests.models.models import CONFIGS, PADDED, make_roles, pair, pairs, several_pairs_of_a_prompt

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


def one_by_one(roles: Roles, examples: list) -> list[torch.Tensor]:
    """Log-probs of every target of every sequence, each sequence alone in its row, through the model's own logits."""
    out = []
    with roles.use("policy"), native_attention(roles.base):
        for example in examples:
            for sequence, counts in zip(example.sequences, example.supervised, strict=True):
                ids = torch.tensor([sequence])
                logits = roles.base(input_ids=ids, use_cache=False).logits[0, :-1]
                logp = torch.log_softmax(logits, -1).gather(1, ids[0, 1:, None])[:, 0]
                out.append(logp[torch.tensor(counts[1:])])
    return out


def packed(roles: Roles, examples: list, **kwargs: bool) -> list[torch.Tensor]:
    batch = pack(examples, **kwargs)
    logp = roles.logprobs("policy", batch)
    return [p[m] for p, m in zip(batch.split(logp), batch.split(batch.loss_mask), strict=True)]


def gradient(roles: Roles, logprobs: list[torch.Tensor]) -> torch.Tensor:
    roles.train_only("policy")
    weights = [torch.linspace(-1, 1, len(p), dtype=p.dtype) + i for i, p in enumerate(logprobs)]
    total = sum((p * w).sum() for p, w in zip(logprobs, weights, strict=True))
    return torch.cat([g.flatten() for g in torch.autograd.grad(total, list(roles.trainable().values()))])


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_one_by_one_in_fp64(name: str, all_fp64: None) -> None:
    check_packed_equals_one_by_one(name, torch.float64)


@pytest.mark.parametrize("name", CONFIGS)
def test_packed_equals_one_by_one_in_fp32(name: str) -> None:
    check_packed_equals_one_by_one(name, torch.float32)


def check_packed_equals_one_by_one(name: str, dtype: torch.dtype) -> None:
    """Values and LoRA gradients of packed, shared-prefix groups are those of each sequence alone."""
    roles = make_roles(name, dtype)
    assert roles.packed, roles.why_padded
    roles.train_only("policy")
    examples = [*pairs(5), pair(20, 14, 3, seed=9)]
    got, want = packed(roles, examples), one_by_one(roles, examples)
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=TOLERANCE[dtype], rtol=0)
    grad, truth = gradient(roles, got), gradient(roles, want)
    assert (grad - truth).norm() / truth.norm() <= TOLERANCE[dtype]


def test_leak_across_branches_is_seen() -> None:
    """Negative control: the same rows in one causal row without groups give other log-probs."""
    roles = make_roles()
    examples = pairs(4)
    batch = pack(examples)
    with roles.use("policy"), native_attention(roles.base), torch.no_grad():
        leaked = roles.base.base_model(input_ids=batch.input_ids, use_cache=False).last_hidden_state[0]
    with roles.use("policy"), torch.no_grad():
        exact = roles.hidden(batch)
    assert (leaked - exact).abs().max() > 1e-2


@pytest.mark.parametrize("name", CONFIGS)
def test_shared_prefix_equals_repeated_prompt(name: str, all_fp64: None) -> None:
    """A prompt seen once by two completions gives the log-probs and gradients of seeing it twice."""
    roles = make_roles(name)
    roles.train_only("policy")
    shared, repeated = packed(roles, pairs(4)), packed(roles, pairs(4), share_prefix=False)
    torch.testing.assert_close(torch.cat(shared), torch.cat(repeated), atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient(roles, shared), gradient(roles, repeated), atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("name", CONFIGS)
def test_pairs_of_one_prompt_share_it(name: str, all_fp64: None) -> None:
    """In one row the prompt of several pairs stands once; values, gradients, margins and columns are those of each pair
    alone."""
    roles = make_roles(name)
    roles.train_only("policy")
    examples = several_pairs_of_a_prompt()
    ((order, batch),) = batches(examples, 4096, roles.base.device)
    assert sorted(len(branches) for _, branches in batch.layout.groups) == [2, 4, 6]
    logp = roles.logprobs("policy", batch)
    together = [p[m] for p, m in zip(batch.split(logp), batch.split(batch.loss_mask), strict=True)]
    alone = packed(roles, [examples[i] for i in order], share_prefix=False)
    torch.testing.assert_close(torch.cat(together), torch.cat(alone), atol=1e-9, rtol=0)
    torch.testing.assert_close(gradient(roles, together), gradient(roles, alone), atol=1e-9, rtol=1e-9)
    assert batch.margins.tolist() == [float(i) for i in order]
    for sequence, i in enumerate(i for i in order for _ in range(2)):
        assert set(batch.split(batch.columns["place"])[sequence][batch.split(batch.loss_mask)[sequence]].tolist()) == {
            float(i)
        }
    assert batch.counts["pairs"] == 6
    # Negative control: a row in which another prompt comes between shares less.
    assert len(pack(examples).layout.groups) == 6 and batch.input_ids.numel() < pack(examples).input_ids.numel()


def test_a_prompt_with_more_answers_than_fit_is_cut() -> None:
    """Parts of a group stay within the budget; each repeats the prompt, and every example is there once."""
    examples = several_pairs_of_a_prompt()
    plan = microbatches(examples, 32)
    assert sorted(i for items in plan for i in items) == list(range(6)) and len(plan) > 3
    assert all(pack([examples[i] for i in items]).input_ids.numel() <= 32 for items in plan)


def test_pairs_of_a_prompt_come_in_one_step() -> None:
    """Every pass takes every pair once, prompts in shuffled order, the pairs of each in a row."""
    examples = several_pairs_of_a_prompt()
    plan = Plan(examples, batch_size=3, epochs=2, max_steps=None, tokens_per_microbatch=4096, seed=1)
    passes = [[i for step in steps for i in plan.chosen(step)] for steps in ((0, 1), (2, 3))]
    for taken in passes:
        assert sorted(taken) == list(range(6))
        heads = [examples[i].head for i in taken]
        assert sum(a != b for a, b in pairwise(heads)) == 2
    assert passes[0] != passes[1]
    (step, *_) = list(plan)
    assert step.tokens == sum(b.input_ids.numel() for b in step.batches)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2"])
def test_padded_path_equals_packed(name: str, all_fp64: None) -> None:
    """The path for bases that fail the probe gives the same hidden states."""
    roles = make_roles(name)
    batch = pack(pairs(4))
    with torch.no_grad():
        exact = hidden_states(roles.base, batch)
        with native_attention(roles.base):
            padded = hidden_states(roles.base, batch, packed=False)
    torch.testing.assert_close(padded, exact, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", PADDED)
def test_probe_refuses_what_ignores_the_layout(name: str, all_fp64: None) -> None:
    """Bloom takes a custom attention's name and never calls it: the probe finds out, and the padded path is right."""
    roles = make_roles(name)
    assert not roles.packed and roles.why_padded
    got, want = packed(roles, pairs(3)), one_by_one(roles, pairs(3))
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, atol=1e-9, rtol=0)


def test_positions_targets_and_mask_by_hand() -> None:
    """Prompt 5 6 7, completions 8 9 and 10: the last shared token opens each branch."""
    example = Example(([5, 6, 7, 8, 9], [5, 6, 7, 10]), ([False] * 3 + [True] * 2, [False] * 3 + [True]), shared=3)
    batch = pack([example])
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9, 7, 10]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 4, 2, 3]]
    assert batch.targets[batch.loss_mask].tolist() == [8, 9, 10]
    assert batch.segment_ids.tolist() == [-1, -1, 0, 0, 0, 1, 1]
    assert batch.ends.tolist() == [4, 6]
    assert batch.layout.groups == ((2, (3, 2)),)
    assert batch.counts == {"tokens": 3, "sequences": 2, "pairs": 1, "chosen_tokens": 2}


def test_bins_hold_every_item_once_and_respect_the_budget() -> None:
    sizes = [900, 100, 500, 500, 1500, 3]
    plan = bins(sizes, 1000)
    assert sorted(i for b in plan for i in b) == list(range(len(sizes)))
    assert all(len(b) == 1 or sum(sizes[i] for i in b) <= 1000 for b in plan)
    assert len(plan) == 4  # 1500 | 900 + 100 | 500 + 500 | 3
