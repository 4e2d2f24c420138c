"""Rows of embedding and head that an adapter brings: tokens that the base has not, or whose rows it never trained.

PEFT's `trainable_token_indices` puts an adapter's rows in the place of the base's, in the head too where it is tied to
the embedding. They are injected, saved and loaded by PEFT. What is ours: several adapters share a base, some without
rows, and no call copies the matrix, (V, D), as PEFT's does.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import cast

import torch
from peft.utils import AuxiliaryTrainingWrapper, TrainableTokensWrapper
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from align.ground.errors import InputError

DELTA = "trainable_tokens_delta"
"""In the names of trained rows."""


def plain_name(key: str) -> str:
    """The name that something of the base had without adapters."""
    return key.replace(".token_adapter", "").replace(".base_layer", "")


class Matrix(nn.Module):
    """What is read of an embedding or a head, for types alone: weight (V, D), bias (V)."""

    weight: nn.Parameter
    bias: Tensor | None


class TokenRows(TrainableTokensWrapper):
    """An embedding or a head in which the active adapters' rows stand in the place of the base's."""

    def use(self, names: Sequence[str]) -> None:
        """Activate those of the adapters `names` that have rows here; `requires_grad` stays as it is."""
        self._active_adapter = self.token_adapter._active_adapter = self.having(names)

    def having(self, names: Sequence[str]) -> list[str]:
        """Those of the adapters `names` that have rows here."""
        return [name for name in names if name in self._adapters]

    def replaced(self) -> list[tuple[Tensor, nn.Parameter]]:
        """(ids (k), rows (k, D)) of each active adapter."""
        return [(self.ids(name), self.delta(name)) for name in self.active_adapters]

    def ids(self, name: str) -> Tensor:
        return torch.tensor(self.token_adapter.token_indices[name], device=self.original_module.weight.device)

    def delta(self, name: str) -> nn.Parameter:
        """The rows themselves, whatever PEFT calls them."""
        return cast(nn.Parameter, self.token_adapter.trainable_tokens_delta[name])

    def forward(self, x: Tensor) -> Tensor:
        """Ids -> embeddings (…, D), or hidden (…, D) -> logits (…, V)."""
        layer = self.original_module
        out: Tensor = layer(x)
        for ids, rows in self.replaced():
            own = rows.to(layer.weight.dtype)
            if not isinstance(layer, nn.Embedding):
                out = out.index_copy(-1, ids, F.linear(x, own))
                continue
            hit = x[..., None] == ids  # (…, k)
            new, scale = F.embedding(hit.int().argmax(-1), own), self.token_adapter._get_embed_scale()
            out = torch.where(hit.any(-1, keepdim=True), new if scale is None else new * scale.to(new.dtype), out)
        return out

    def adapter_state_dict(  # type: ignore[override]
        self, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """PEFT's, which expects that every adapter has rows."""
        return super().adapter_state_dict(adapter_name, state_dict) if adapter_name in self._adapters else {}

    def adapter_state_dict_load_map(self, adapter_name: str) -> dict[str, str]:
        return super().adapter_state_dict_load_map(adapter_name) if adapter_name in self._adapters else {}


def wrapped(model: PreTrainedModel) -> list[TokenRows]:
    """The embeddings and heads of a model in which adapters have rows; those that PEFT made become ours.

    Raises: InputError where an adapter's rows are in one of two tied matrices, or in a head with a bias, which PEFT
    leaves out.
    """
    for module in model.modules():
        if isinstance(module, TrainableTokensWrapper):
            module.__class__ = TokenRows
    found = [module for module in model.modules() if isinstance(module, TokenRows)]
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if found and bare(head).weight is bare(embedding).weight and not _tied(embedding, head):
        raise InputError(
            "trainable_token_indices changes one of embedding and head, which this base ties. Give the indices as one "
            "list, which changes both."
        )
    if isinstance(head, TokenRows) and bare(head).bias is not None:
        raise InputError(
            f"the head of {type(model).__name__} has a bias, which PEFT leaves out where rows of the head train. "
            f"{OTHER_BASE}"
        )
    return found


def _tied(embedding: nn.Module, head: nn.Module) -> bool:
    if not (isinstance(embedding, TokenRows) and isinstance(head, TokenRows)):
        return False
    return head.token_adapter.tied_adapter is embedding.token_adapter


OTHER_BASE = "Tokens cannot be added to it; take another base, or write them as words that it knows."


def bare(module: nn.Module) -> Matrix:
    """An embedding or a head as the base has it."""
    return cast(Matrix, module.original_module if isinstance(module, TrainableTokensWrapper) else module)


def is_wrapper(module: nn.Module) -> bool:
    return isinstance(module, AuxiliaryTrainingWrapper)


def _both(model: PreTrainedModel) -> tuple[Matrix, Matrix]:
    """Embedding and head as the base has them."""
    return bare(model.get_input_embeddings()), bare(model.get_output_embeddings())


@torch.no_grad()
def enlarge(model: PreTrainedModel, rows: int) -> None:
    """Give embedding and head at least `rows` rows: new ones are the mean of those that were there, of each of the two.

    To be done before adapters are on the model. Raises: InputError for a model that is not enlarged as a whole.
    """
    embedding, head = _both(model)
    had, tied = len(embedding.weight), embedding.weight is head.weight
    if rows <= had:
        return
    means = [module.weight.float().mean(0) for module in (embedding, head)]
    try:
        model.resize_token_embeddings(rows, mean_resizing=False)
    except (NotImplementedError, AttributeError, ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"{type(model).__name__} cannot be given more tokens ({error}). {OTHER_BASE}") from error
    embedding, head = _both(model)
    sizes = (len(embedding.weight), len(head.weight), model.config.get_text_config().vocab_size)
    text = model.config.get_text_config()
    changed = set(sizes) != {rows} or (embedding.weight is head.weight) != tied
    if changed or getattr(text, "vocab_size_per_layer_input", None):
        raise InputError(f"{type(model).__name__} keeps tokens in more than its embedding and head. {OTHER_BASE}")
    for module, mean in zip((embedding, head), means, strict=True):
        module.weight[had:] = mean.to(module.weight.dtype)
        bias = getattr(module, "bias", None)
        if bias is not None:
            bias[had:] = bias[:had].mean()
    model.requires_grad_(False)


@torch.no_grad()
def start_rows(model: PreTrainedModel, pieces: Mapping[int, Sequence[int]]) -> None:
    """Have the rows of new tokens (id -> the ids that their text was read as before) start as the mean of those pieces'
    rows (Gee et al. 2022, arXiv 2402.09977): near the meaning that the text had, and as large as rows are."""
    for module in _both(model):
        for new, old in pieces.items():
            module.weight[new] = module.weight[list(old)].float().mean(0).to(module.weight.dtype)


def indices(model: PreTrainedModel, ids: Collection[int]) -> list[int] | dict[str, list[int]]:
    """PEFT's `trainable_token_indices` for rows `ids` in embedding and head, tied or not."""
    embedding, head = _both(model)
    if head.weight is embedding.weight:
        return sorted(ids)
    names = {id(module): name for name, module in model.named_modules()}
    return {names[id(module)]: sorted(ids) for module in (embedding, head)}
