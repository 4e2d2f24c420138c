"""A reward as a sequence classifier: on every family, transformers' own forward gives the reward's scores of a padded
batch."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoTokenizer

from align.exchange.classifier import as_classifier, check_family, compare_scores, pad_apart
from align.ground.errors import InputError
from align.models.heads import ScoreHead
from align.models.merged import MergedCopy
from align.packed.pack import pack
from align.rendering.render import load_renderer
from align.sampling.rollout import as_example
from tests.conftest import ROOT
from tests.models.models import CONFIGS, VOCAB, make_roles

ROWS = [[5, 9, 11, 3], [7, 8, 30, 31, 32, 33, 3], [40, 3]]


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("pad", [4, VOCAB])
@torch.no_grad()
def test_scores_are_the_rewards(family: str, pad: int) -> None:
    """With a padding token that the model has, and with one that it gets a row for. Negative control: another role's
    adapters."""
    roles = make_roles(family, adapters=("reward", "other"))
    head = ScoreHead(32).double()
    head.weight.normal_(generator=torch.Generator().manual_seed(0))
    for role in ("reward", "other"):
        roles.assign(role, [role], head)
    batch = pack([as_example(row[:1], [row[1:]]) for row in ROWS])
    expected = roles.scores("reward", batch)
    model = as_classifier(MergedCopy(roles, "reward").merged(), head, pad)
    longest = max(map(len, ROWS))
    ids = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ROWS])
    found = model(input_ids=ids, attention_mask=(ids != pad).long()).logits[:, 0]
    assert torch.allclose(found, expected, atol=1e-9) and model.config.num_labels == 1
    assert not torch.allclose(found, roles.scores("other", batch), atol=1e-3)


def test_a_family_without_a_classifier_is_refused(tmp_path: Path) -> None:
    AutoConfig.for_model("cohere", vocab_size=99).save_pretrained(tmp_path / "cohere")
    with pytest.raises(InputError, match="no sequence classifier for a cohere model"):
        check_family(tmp_path / "cohere")
    CONFIGS["llama"].save_pretrained(tmp_path / "llama")
    check_family(tmp_path / "llama")  # negative control


def test_what_pads_ends_no_answer() -> None:
    """The tokenizer's own padding token where it ends nothing, else another special one before BOS, else a new one."""

    def padded(stops: set[str]) -> str:
        found = load_renderer(ROOT / "data/tiny-base", None, 64)
        pad_apart(replace(found, stop_ids=tuple(found.tokenizer.convert_tokens_to_ids(sorted(stops)))))
        return str(found.tokenizer.pad_token)

    special = {"<|begin|>", "<|end|>", "<|pad|>"}
    assert padded({"<|end|>"}) == "<|pad|>"
    assert padded({"<|begin|>", "<|pad|>"}) == "<|end|>" and padded({"<|end|>", "<|pad|>"}) == "<|begin|>"
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data/tiny-base")
    assert set(tokenizer.all_special_tokens) == special


def test_scores_are_compared_by_the_preferences_that_they_give() -> None:
    """By hand for two texts; a constant counts for nothing, NaN is never equal."""
    before, after = torch.tensor([1.0, 0.0]), torch.tensor([3.5, 3.0])
    p, q = 1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(-0.5))
    by_hand = p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    found = compare_scores(before.tolist(), after)
    assert found["kl"] == pytest.approx(by_hand, rel=1e-9) and found["score_max_abs_diff"] == pytest.approx(0.25)
    assert compare_scores(before.tolist(), before + 7)["kl"] == 0.0
    assert compare_scores(before.tolist(), -before)["preference_agreement"] == 0.0
    assert math.isnan(compare_scores(before.tolist(), torch.full((2,), torch.nan))["kl"])
