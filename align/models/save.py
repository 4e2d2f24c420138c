"""Full models written in the Hugging Face layout."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from align.ground.progress import Task, each
from align.models.precision import DTYPES


@torch.no_grad()
def save_model(model: PreTrainedModel, folder: Path, dtype: str, text: Mapping[str, object]) -> None:
    """Write a full model in the Hugging Face layout, in "fp32", "bf16" or "fp16". The live weights are rounded too, so
    that what is stored is what is measured. By its own settings it ends answers where the text contract `text` does."""
    stored = DTYPES[dtype]
    end_by_contract(model, text)
    for parameter in each("rounding weights", [*model.parameters()], "tensors"):
        parameter.copy_(parameter.to(stored))
    held = model.state_dict()
    # once for all that share a tensor, or a tied head would be written beside its embedding
    once = {id_of(v): v.to(stored) if v.is_floating_point() else v for v in held.values()}
    state = {name: once[id_of(v)].detach().contiguous() for name, v in held.items()}
    packed = model.config._attn_implementation
    model.config._attn_implementation = None
    if hasattr(model.config, "auto_map"):  # code that the base came with: it was not used and does not come along
        del model.config.auto_map
    # each of several processes reads again what it wrote; transformers has one alone write
    model.should_save_on_this_rank = bool  # type: ignore[method-assign, assignment]
    with Task("writing the model"):
        model.save_pretrained(folder, state_dict=state)
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        if isinstance(config, PreTrainedConfig):
            config.dtype = stored  # transformers wrote the precision of the live weights
    model.config.save_pretrained(folder)
    model.config._attn_implementation = packed
    for path in folder.iterdir():
        path.chmod(0o644)  # transformers leaves 0600


def id_of(tensor: torch.Tensor) -> tuple[int, torch.Size]:
    """The same for names of one tensor."""
    return tensor.data_ptr(), tensor.shape


def end_by_contract(model: PreTrainedModel, text: Mapping[str, object]) -> None:
    """Write every stop id into the settings that `generate`, pipelines and servers read; how the checkpoint samples
    stays as it was."""
    stop_ids = cast("list[int]", text["stop_ids"])
    ends = stop_ids[0] if len(stop_ids) == 1 else list(stop_ids)
    model.config.get_text_config().eos_token_id = ends
    generation = getattr(model, "generation_config", None)
    if generation is None:
        return
    generation.eos_token_id, generation.pad_token_id = ends, text["pad_token_id"]
    try:
        generation.validate(strict=True)
    # a temperature without sampling, as old checkpoints ship it: transformers loads that and does not save it
    except ValueError:
        generation.do_sample = True


def stored_dtype(folder: Path) -> str:
    """The precision that a model folder's config names; fp32 where it names none."""
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return next((name for name, dtype in DTYPES.items() if dtype == getattr(config, "dtype", None)), "fp32")
