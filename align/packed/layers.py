"""A decoder's layers, and the last one for no more than the rows that are read.

Log-probs are read where targets count, scores at the ends of sequences: of what the last layer makes of a prompt, only
keys and values are looked at. What a layer does after its attention it does row by row, so that the last one's
feed-forward leaves the other rows out, and its attention the queries of shared prefixes. Gradients are exact too: what
is not read has none. What a layer consists of is observed, and the probe compares; a base that fails computes all rows.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel


def layers_of(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """A decoder's list of layers and its name there. Raises: ValueError where there is none."""
    wanted = model.config.get_text_config().num_hidden_layers
    for name, module in model.base_model.named_children():
        if isinstance(module, nn.ModuleList) and len(module) == wanted:
            return name, module
    raise ValueError(f"{type(model.base_model).__name__} has no list of {wanted} layers")


class Read:
    """What an attention tells the feed-forward after it: the rows (N) that are read of their layer, or None for all."""

    rows: Tensor | None = None


def limit(model: PreTrainedModel) -> None:
    """Have the last layer take `read (N)`, the rows that are read, as an argument. Raises: ValueError for a model that
    is not a list of layers, each an attention and a feed-forward."""
    if limited(model.base_model):  # a copy of one that was
        unlimit(model)
    attention, feed_forward = _parts_of_last(model)
    attention.told = feed_forward.told = Read()
    model.base_model.limited = True  # type: ignore[assignment]
    for part in (attention, feed_forward):
        part.whole = part.forward
    # inside the layer, because activation checkpointing calls its forward again; methods, because a deep copy's are
    # bound to the copy
    attention.forward, feed_forward.forward = MethodType(_tell, attention), MethodType(_only_read, feed_forward)


def unlimit(model: PreTrainedModel) -> None:
    """Compute all rows, as the model did before."""
    for part in _parts_of_last(model):
        part.forward = part.whole
        del part.whole, part.told
    del model.base_model.limited


def limited(decoder: nn.Module) -> bool:
    """Whether the last layer of a decoder, or of a copy, takes `read`."""
    return getattr(decoder, "limited", False)


def _parts_of_last(model: PreTrainedModel) -> list[Any]:
    layer = layers_of(model)[1][-1]
    parts = [(name, part) for name, part in layer.named_children() if any(p.ndim > 1 for p in part.parameters())]
    if len(parts) != 2:
        raise ValueError(
            f"{type(layer).__name__} consists of {', '.join(name for name, _ in parts)}, not of an attention and a "
            "feed-forward"
        )
    return [part for _, part in parts]


def _tell(attention: Any, *args: Any, read: Tensor | None = None, **kwargs: Any) -> Any:
    attention.told.rows = read
    return attention.whole(*args, **kwargs, **({} if read is None else {"branches_alone": True}))


def _only_read(feed_forward: Any, hidden: Tensor, *args: Any) -> Any:
    """The feed-forward of hidden (1, T, D): 0 in rows that are not read."""
    rows = feed_forward.told.rows
    if rows is None:
        return feed_forward.whole(hidden, *args)
    out: Tensor = feed_forward.whole(hidden[:, rows], *args)
    return out.new_zeros(1, hidden.shape[1], out.shape[2]).index_copy(1, rows, out)
