"""A fresh adapter's settings held against its base, without torch: its configuration, the headers of its weights."""

from __future__ import annotations

from align.folders.weights import tensors, weight_files
from align.ground.errors import AlignError, InputError
from align.inputs.bases import BaseModel, layer_count
from align.recipe import StageConfig, TrainConfig

LINEARS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
"""Linear layers of a decoder in Llama's layout: files that hold these name each layer as the model does."""
OTHERS = {"lm_head": "it is the head", "embed_tokens": "it is the embedding, no linear layer"}
"""Matrices of such a decoder that are not adapted, and why."""


def check_layers(config: StageConfig, base: BaseModel | None) -> None:
    """`adapter.layers` asks for no more layers than the base's configuration names, of one list. Raises: InputError."""
    wanted = config.adapter.layers if isinstance(config, TrainConfig) else None
    if wanted is None or base is None:
        return
    if base.is_encoder_decoder:
        what = f"the base {base.label} is an encoder-decoder, which has two lists of layers"
        raise InputError(f"adapter.layers is {wanted}, but {what}; leave it out.")
    there = layer_count(base)
    if there and wanted > there:
        raise InputError(
            f"adapter.layers is {wanted}, but the base {base.label} has {there} layers; give at most that."
        )


def check_targets(config: StageConfig, base: BaseModel | None, parent: str | None) -> None:
    """`adapter.targets` and `adapter.experts` name something of the base; looked at where the headers of its files tell
    surely, in dense decoders of Llama's layout. `parent` is the kind of artifact that the parent is.

    Raises: InputError.
    """
    if base is None or not isinstance(config, TrainConfig) or "adapter" in config.without_effect(parent):
        return
    targets = [] if config.adapter.targets == "all-linear" else config.adapter.targets
    if not (targets or config.adapter.experts):
        return
    matrices = _matrices(base)
    if not matrices >= LINEARS:
        return
    model = (base.config.get("architectures") or [base.label])[0]  # type: ignore[index]
    for target in targets:
        name = target.rpartition(".")[2]
        if name in OTHERS or name not in matrices:
            why = OTHERS.get(name, "it names no linear layer")
            raise InputError(
                f"adapter.targets: {target!r} cannot be adapted in {model}: {why}. It has {', '.join(sorted(LINEARS))}."
            )
    if config.adapter.experts:
        raise InputError(f"adapter.experts is true, but {model} has no routed experts; leave it out.")


def _matrices(base: BaseModel) -> set[str]:
    """Last names of the layers whose weight is a matrix; empty where files are missing, or hold routed experts."""
    try:
        held = {
            name: sizes for file in weight_files(base.path, base.config) for name, (_, sizes) in tensors(file).items()
        }
    except (AlignError, OSError):  # a base that is still to be made; a run says what is wrong with it
        return set()
    if any("expert" in name or "router" in name for name in held):
        return set()
    return {name.split(".")[-2] for name, sizes in held.items() if name.endswith(".weight") and len(sizes) == 2}
