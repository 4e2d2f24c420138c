"""A reward role as a sequence classifier of plain transformers: the merged decoder, and the score head's weight as its
one linear layer.

That layer has no bias there, so the head's is left out: it moves all scores alike, and no order or difference of scores
depends on it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from align.ground.errors import InputError
from align.ground.progress import Task
from align.models import base, process
from align.models.heads import ScoreHead
from align.packed.attention import select_native_attention
from align.rendering.render import Renderer


def check_family(path: Path) -> None:
    """Raises: InputError where transformers has no sequence classifier of the model's family."""
    config = base.load_config(path)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise InputError(
            f"{path}: transformers has no sequence classifier for a {config.model_type} model, so its rewards cannot "
            "leave as one. Use the reward through align.load, or check it out as an adapter with its score head."
        )


def pad_apart(renderer: Renderer) -> None:
    """Give the tokenizer a padding token that ends no answer: a classifier reads the last token that is not padding.

    It is one of the tokenizer's own special tokens where it has another, else a new one, <|pad|>.
    """
    tokenizer, stops = renderer.tokenizer, set(renderer.stop_ids)
    if tokenizer.pad_token_id not in stops:
        return
    others = sorted(
        {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder} - stops,
        key=lambda i: (i == tokenizer.bos_token_id, i),
    )
    if others:
        tokenizer.pad_token = tokenizer.convert_ids_to_tokens(others[0])
    else:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})


@torch.no_grad()
def as_classifier(merged: PreTrainedModel, head: ScoreHead, pad_id: int) -> PreTrainedModel:
    """A classifier with one label on the decoder of `merged`, which it shares.

    Raises: InputError where the family's classifier is more than one linear layer on the decoder.
    """
    select_native_attention(merged)
    config = copy.deepcopy(merged.config)
    config.num_labels = 1
    with torch.device("meta"):
        model: Any = AutoModelForSequenceClassification.from_config(config)
    decoder, name = merged.base_model, model.base_model_prefix
    alike = type(getattr(model, name, None)) is type(decoder)
    setattr(model, name, decoder)
    own = {key: parameter for key, parameter in model.named_parameters() if parameter.is_meta}
    if not alike or [tuple(p.shape) for p in own.values()] != [(1, head.weight.numel())]:
        raise InputError(
            f"{type(model).__name__} is not one linear layer on a {type(decoder).__name__}; the reward cannot leave "
            "as one."
        )
    (key,) = own
    place, _, leaf = key.rpartition(".")
    setattr(model.get_submodule(place), leaf, nn.Parameter(head.weight.detach()[None].clone(), requires_grad=False))
    if pad_id >= (rows := model.get_input_embeddings().num_embeddings):
        model.resize_token_embeddings(pad_id + 1, mean_resizing=False)
        model.get_input_embeddings().weight[rows:] = 0.0
    model.config.get_text_config().pad_token_id = pad_id  # after the row is there: an embedding wants it among its own
    return model.eval()


@torch.no_grad()
def scores_by_transformers(
    folder: Path, rows: Sequence[Sequence[int]], tokenizer: PreTrainedTokenizerBase
) -> tuple[nn.Module, Tensor]:
    """The classifier in `folder` as plain transformers loads it, and its scores (N,) of a padded batch, in fp32."""
    with Task("reading what was written"):
        model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, trust_remote_code=False)
        model = model.to(process.device()).eval()
    batch = tokenizer.pad({"input_ids": [list(row) for row in rows]}, return_tensors="pt").to(model.device)
    return model, model(**batch).logits[:, 0].cpu()


def compare_scores(ours: Sequence[float] | np.ndarray, after: Tensor) -> dict[str, float]:
    """Scores (N,) of the same texts, up to a constant: largest difference; of the preferences that they give over all
    pairs, mean KL(ours || after) in nats per pair, and how often the same one is preferred."""
    before, after = torch.as_tensor(ours, dtype=torch.float64), after.double()
    shift = (after - before).mean()
    one, two = torch.combinations(torch.arange(len(before))).T
    p, q = (torch.stack([s[one] - s[two], s[two] - s[one]]) for s in (before, after))
    log_p, log_q = nn.functional.logsigmoid(p), nn.functional.logsigmoid(q)
    return {
        "score_max_abs_diff": (after - before - shift).abs().max().item(),
        "kl": (log_p.exp() * (log_p - log_q)).sum(0).mean().clamp(min=0.0).item(),  # NaN stays NaN
        "preference_agreement": (p[0].sign() == q[0].sign()).double().mean().item(),
    }
