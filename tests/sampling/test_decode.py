"""Sampling: the cache gives what a forward over the whole text gives, samples share their prompt, and draws follow the
distribution."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare

from align.packed.attention import native_attention
from align.sampling import rollout
from align.sampling.generating import pad
from align.sampling.rollout import Answer, Sampler, generation_config
from tests.models.models import CONFIGS, VOCAB, make_roles

PROMPTS = [[5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], [20, 21, 22], [30, 31, 32, 33, 34, 35, 36]]


def ids_of(answers: list[list[Answer]]) -> list[list[list[int]]]:
    return [[a.ids for a in several] for several in answers]


def trimmed(row: list[int], stop_ids: list[int]) -> list[int]:
    """Up to the first stop id."""
    return row[: next((i + 1 for i, token in enumerate(row) if token in stop_ids), len(row))]


def alone(roles: Any, ids: list[int]) -> torch.Tensor:
    """The model's own logits after `ids`, by transformers' attention over one sequence."""
    with torch.no_grad(), roles.use("policy"), native_attention(roles.base):
        return roles.base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]


def worst_difference(
    roles: Any, sampler: Sampler, monkeypatch: pytest.MonkeyPatch, n: int = 3, new: int = 10
) -> tuple[float, int]:
    """Largest difference between the logits that tokens were drawn from and the model's own after the same text; and
    the rows looked at."""
    drawn: list[tuple[torch.Tensor, torch.Tensor]] = []

    def draw(blocks: Iterable[torch.Tensor], at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = torch.cat(list(blocks), 1)
        tokens = torch.multinomial(torch.softmax(logits, -1), 1)[:, 0]
        drawn.append((logits, tokens))
        return tokens, logits.new_zeros(len(tokens))

    monkeypatch.setattr(rollout, "draw", draw)
    torch.manual_seed(0)
    samples = ids_of(sampler(PROMPTS, n=n, max_new_tokens=new, temperature=1.0))
    first = {tuple(tokens.tolist()) for _, tokens in drawn[:1]}
    assert len(first) == 1
    worst, looked = 0.0, 0
    texts = [
        (p, s) for p, several in sorted(zip(PROMPTS, samples, strict=True), key=lambda x: len(x[0])) for s in several
    ]
    for step, (logits, tokens) in enumerate(drawn):
        for prompt, sample in texts:
            if len(sample) <= step:
                continue
            want = alone(roles, [*prompt, *sample[:step]])
            found = [(logits[i] - want).abs().max().item() for i in range(len(tokens)) if tokens[i] == sample[step]]
            worst, looked = max(worst, min(found)), looked + 1
    return worst, looked


@pytest.mark.parametrize("name", sorted(CONFIGS))
@pytest.mark.parametrize("merged", [True, False])
def test_what_is_drawn_from_is_the_models_own_distribution(
    name: str, merged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = name == "gemma2"  # whose own attention rounds to fp32 whatever the weights
    roles = make_roles(name, torch.float32 if eager else torch.float64)
    assert roles.packed
    # a fifth of the vocabulary ends: rows leave soon
    sampler = Sampler(roles, "policy", stop_ids=list(range(40, 60)), pad_id=0)
    if not merged:
        sampler.copy = None
    worst, looked = worst_difference(roles, sampler, monkeypatch)
    assert looked > 20
    assert worst < (1e-4 if eager else 1e-9)


def test_a_cache_that_forgot_the_prompts_lengths_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: padded keys of shorter prompts are seen."""
    roles = make_roles()
    sampler = Sampler(roles, "policy", stop_ids=[2], pad_id=0)
    monkeypatch.setattr(rollout.Cache, "_unseen", lambda self, window, like: torch.zeros(()))
    assert worst_difference(roles, sampler, monkeypatch)[0] > 1e-3


def test_greedy_equals_generate() -> None:
    roles = make_roles()
    sampler = Sampler(roles, "policy", stop_ids=[2, 50], pad_id=0)
    ours = ids_of(sampler(PROMPTS, n=1, max_new_tokens=16, temperature=0.0))
    ids, mask = pad(PROMPTS, 0, torch.device("cpu"), "left")
    with torch.no_grad(), roles.use("policy"), native_attention(roles.base):
        config = generation_config([2, 50], 0, 16)
        theirs = roles.base.generate(input_ids=ids, attention_mask=mask, generation_config=config)[:, ids.shape[1] :]
    assert [s[0] for s in ours] == [trimmed(row, [2, 50]) for row in theirs.tolist()]


def test_batches_do_not_change_greedy_answers() -> None:
    roles = make_roles()
    sampler = Sampler(roles, "policy", stop_ids=[2, 50], pad_id=0)
    one, all_ = (sampler(PROMPTS, n=1, max_new_tokens=9, temperature=0.0, tokens=tokens) for tokens in (1, 65536))
    assert ids_of(one) == ids_of(all_)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_two_tokens_follow_the_exact_distribution(temperature: float) -> None:
    """Chi-square over 24,000 samples of two tokens, the second given the likeliest first; at twice the temperature it
    fails."""
    roles = make_roles(dtype=torch.float32)
    sampler = Sampler(roles, "policy", stop_ids=[2], pad_id=0)
    torch.manual_seed(1)
    samples = ids_of(sampler(PROMPTS[1:2], n=24_000, max_new_tokens=2, temperature=temperature, tokens=1 << 20))[0]
    share = torch.softmax(alone(roles, PROMPTS[1]) / temperature, -1).double().numpy()
    assert fit([s[0] for s in samples], share) > 1e-3
    likeliest = int(share.argmax())
    following = torch.softmax(alone(roles, [*PROMPTS[1], likeliest]) / temperature, -1).double().numpy()
    seconds = [s[1] for s in samples if s[0] == likeliest and len(s) == 2]
    assert len(seconds) > 1000
    assert fit(seconds, following) > 1e-3
    flat = torch.softmax(alone(roles, PROMPTS[1]) / (2 * temperature), -1).double().numpy()
    assert fit([s[0] for s in samples], flat) < 1e-6


def fit(tokens: list[int], share: np.ndarray) -> float:
    """p-value of the counts; tokens expected fewer than five times are taken together."""
    counts = np.bincount(tokens, minlength=VOCAB).astype(float)
    expected = share / share.sum() * len(tokens)
    rare = expected < 5
    pooled = np.append(counts[~rare], counts[rare].sum()), np.append(expected[~rare], expected[rare].sum())
    keep = pooled[1] > 0
    return float(chisquare(pooled[0][keep], pooled[1][keep] * pooled[0][keep].sum() / pooled[1][keep].sum()).pvalue)
