"""A base that is read in parts: each process of a run reads its shard of every tensor, and no process ever holds the
whole.

The model is made on the meta device and cut there; transformers then reads of a weight that is cut this process's slice
alone, through the same renaming and conversion of tensors as always.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.folders.config import CONFIG, read_json
from align.folders.weights import weight_files
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.terminal import say
from align.models.base import checked, looked_at, name_decoder, once_made, outline, prepare, read_as
from align.models.process import device
from align.models.weights import check_mappable, in_memory, mapped_or_read
from align.packed.layers import layers_of
from align.parallel.gather import gathered
from align.parallel.shards import Offload, Shards


def load_in_parts(path: Path, dtype: torch.dtype, offload: Offload = False) -> tuple[PreTrainedModel, Shards] | None:
    """A base as `load_base` gives it, in shards, with `offload` in CPU memory or in its files; None where it has to be
    read whole, as quantised weights have.

    Raises: InputError as `load_base` and `layers` do, and where files are to be mapped that cannot be.
    """
    config, own = checked(path, None)
    if offload == "disk":
        check_mappable(path, own, dtype)
    if own:
        return None
    empty = outline(path, config, dtype)
    layers(empty)
    tied = empty.get_output_embeddings().weight is empty.get_input_embeddings().weight or stored_twice(path, empty)
    cut: list[Shards] = []
    kind = type(empty)

    def cut_it(made: PreTrainedModel) -> None:
        name_decoder(made)
        cut.append(Shards(made, layers(made), device(), tied, offload))

    kwargs: Json = {} if offload or device().type == "cpu" else {"device_map": {"": device()}}
    with mapped_or_read(path, read_json(path / CONFIG), dtype, plain=not kwargs):
        model = read_as(once_made(kind, cut_it), path, config, dtype, kwargs)
    model.__class__ = kind
    (shards,) = cut
    model.requires_grad_(False)  # before a layer is whole, whose weights are others then
    shards.begin()
    if offload == "disk":
        say_where(path, model)
    with gathered(shards.units[0]):  # what its feed-forward is, is tried
        prepare(model)
    return looked_at(path, model), shards


def say_where(path: Path, model: PreTrainedModel) -> None:
    """How much of a base that was to stay in its files does not, such as shards of unequal size, which are filled up.

    Raises: InputError where most does not.
    """
    if not Path("/proc/self/maps").exists():
        say(f"{path.name}: this system does not tell how much of it stays in its files")
        return
    beside, total = in_memory(path, model)
    if beside > total / 2:
        raise InputError(
            f"{path}: base_offload is disk, but transformers makes {beside / 2**20:,.0f} of {total / 2**20:,.0f} MiB "
            "of its matrices anew from its files, in memory. Take `base_offload: true`."
        )
    say(f"{path.name} stays in its files: of {total / 2**20:,.1f} MiB of matrices {beside / 2**20:,.1f} lie in memory")


def stored_twice(path: Path, empty: PreTrainedModel) -> bool:
    """Whether the files hold, beside the embedding that config.json ties the head to, that matrix again as the head."""
    names = [name for pair in empty.all_tied_weights_keys.items() for name in pair]
    found: dict[str, Tensor] = {}
    for file in weight_files(path, read_json(path / CONFIG)):
        with safe_open(file, "pt") as held:
            found |= {name: held.get_tensor(name) for name in set(names) & set(held.keys())}
    return len(found) == len(names) == 2 and torch.equal(*found.values())


def layers(model: PreTrainedModel) -> list[nn.Module]:
    """What is cut, each a unit of its own. Raises: InputError for a base whose layers are not called one after the
    other."""
    if model.config.is_encoder_decoder:
        raise InputError(
            f"parallel is shard, but {type(model).__name__} is an encoder-decoder, whose layers Align does not cut. "
            "Set `parallel: replicate`."
        )
    try:
        return list(layers_of(model)[1])
    except ValueError as error:
        raise InputError(f"parallel is shard, but {error}. Set `parallel: replicate`.") from error
