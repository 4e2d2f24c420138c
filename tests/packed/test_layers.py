"""The last layer computes what is read of it, and that is what it would be if all were computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.models.llama.modeling_llama import LlamaMLP

from align.models.heads import ScoreHead
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.packed import again, forward, probe
from align.packed.attention import native_attention
from align.packed.layers import layers_of, limit, limited, unlimit
from align.packed.pack import Batch, pack
from align.training.steps import empty
from tests.models.models import CONFIGS, make_base, make_roles, pair, pairs, several_pairs_of_a_prompt

Measure = Callable[[Roles, Batch], Tensor]
MEASURES: dict[str, Measure] = {
    "logprobs": lambda roles, batch: roles.logprobs("policy", batch),
    "scores": lambda roles, batch: roles.scores("policy", batch),
    "values": lambda roles, batch: roles.values("policy", batch),
}


def with_head(name: str) -> Roles:
    roles = make_roles(name)
    head = ScoreHead(32).double()
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(1))
    roles.assign("policy", ["policy"], head)
    roles.train_only("policy", heads=["policy"])
    return roles


def measured(roles: Roles, measure: Measure, batch: Batch) -> list[Tensor]:
    """Values, and the gradients of their squares."""
    out = measure(roles, batch)
    trained = list(roles.trainable().values())
    grads = torch.autograd.grad(out.square().sum(), trained, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(trained, grads, strict=True))]


@pytest.fixture
def rows_computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows that reach the feed-forward of the last layer of a Llama."""
    seen: list[int] = []
    inner = again._feed_forward

    def noted(self: Any, hidden: Tensor) -> Tensor:
        if hasattr(self, "told"):
            seen.append(hidden.shape[1])
        return inner(self, hidden)

    monkeypatch.setattr(again, "_feed_forward", noted)
    return seen


@pytest.mark.parametrize("what", MEASURES)
@pytest.mark.parametrize("name", CONFIGS)
def test_as_if_all_rows_were_computed(name: str, what: str, all_fp64: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and gradients, with prefixes, without, and with several pairs on one: also in groups of a call per
    branch."""
    roles = with_head(name)
    assert limited(roles.base.base_model)
    for examples in (pairs(5), [pair(0, 4, 3), pair(30, 1, 2)], several_pairs_of_a_prompt()):
        batch = pack(examples)
        for whole in (256, 0):
            batch.layout.masks.clear()
            with monkeypatch.context() as patch:
                patch.setattr("align.packed.attention.WHOLE", whole)
                got = measured(roles, MEASURES[what], batch)
                patch.setattr(forward, "MOST", 0.0)
                want = measured(roles, MEASURES[what], batch)
            for g, w in zip(got, want, strict=True):
                torch.testing.assert_close(g, w, atol=1e-9, rtol=1e-9)
            assert max(w.abs().max() for w in want[1:]) > 1e-2


def test_rows_that_are_not_read_are_not_computed(rows_computed: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Log-probs need the rows that count, scores the ends; everything is computed where it is asked for, and where most
    of it is read."""
    roles, batch = with_head("llama"), pack(pairs(5))
    rows_computed.clear()
    for measure in MEASURES.values():
        measure(roles, batch)
    roles.hidden_as("policy", batch)
    total = batch.input_ids.numel()
    assert rows_computed == [len(batch.rows), len(batch.ends), len(batch.rows), total] and len(batch.rows) < total
    rows_computed.clear()
    monkeypatch.setattr(forward, "MOST", len(batch.rows) / total)
    roles.logprobs("policy", batch)
    assert rows_computed == [total]


def test_with_activation_checkpointing(all_fp64: None) -> None:
    """The forward that is computed again computes the same rows."""
    roles, batch = with_head("llama"), pack(pairs(5))
    want = measured(roles, MEASURES["logprobs"], batch)
    roles.enable_activation_checkpointing()
    for got, truth in zip(measured(roles, MEASURES["logprobs"], batch), want, strict=True):
        torch.testing.assert_close(got, truth, atol=1e-9, rtol=1e-9)


def test_nothing_is_remembered_from_one_forward_to_the_next(all_fp64: None) -> None:
    """transformers' own attention on the base, and a merged copy, compute all rows after a forward that read few."""
    roles = with_head("llama")
    ids = torch.randint(3, 90, (1, 7), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), native_attention(roles.base), roles.use("policy"):
        want = roles.base(input_ids=ids).logits
    roles.scores("policy", pack(pairs(5)))
    copied = MergedCopy(roles, "policy").merged()
    with torch.no_grad(), native_attention(roles.base), native_attention(copied), roles.use("policy"):
        torch.testing.assert_close(roles.base(input_ids=ids).logits, want)
        torch.testing.assert_close(copied(input_ids=ids).logits, want)


def test_a_layer_that_mixes_rows_after_its_attention_computes_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """The probe finds a feed-forward that looks at its neighbours; and one without attention and feed-forward is left
    as it is."""
    inner = LlamaMLP.forward
    monkeypatch.setattr(LlamaMLP, "forward", lambda self, hidden: inner(self, hidden).cumsum(1))
    base = make_base()
    batch = pack(pairs(3))
    whole = forward.hidden_states(base, batch)[batch.rows]
    probe._limit_last_layer(base, batch, 1e-9)
    assert not limited(base.base_model)
    limit(base)  # negative control: it would have been wrong
    assert (forward.hidden_states(base, batch, batch.rows) - whole).abs().max() > 1e-2
    unlimit(base)
    torch.testing.assert_close(forward.hidden_states(base, batch, batch.rows), whole)
    layers_of(base)[1][-1].third = nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"LlamaDecoderLayer consists of self_attn, mlp, third, not of an attention and a feed-forward"
    ):
        limit(base)
    probe._limit_last_layer(base, batch, 1e-9)
    assert not limited(base.base_model)


def test_a_batch_of_which_nothing_is_read() -> None:
    """As a rank has it that would otherwise have none: a gradient of zero for every trained tensor, as DDP waits for
    one."""
    roles, batch = with_head("llama"), empty(pairs(1)[0])
    assert len(batch.rows) == 0
    roles.train_only("policy")
    roles.logprobs("policy", batch).sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() == 0 for p in roles.trainable().values())
