"""Is a loaded model what its files hold? Nothing drawn, left over or of another shape, no quantised head, outputs that
are numbers and never see later tokens."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    modeling_utils,
)

from align.folders.config import CONFIG, is_multimodal, read_json
from align.folders.weights import types, weight_files
from align.ground.errors import AlignError, InputError
from align.packed.attention import native_attention
from align.packed.encoder_decoder import embeddings
from align.packed.forward import read
from align.parallel.narrow import kept

T = TypeVar("T")
LoadingInfo = Mapping[str, Collection[Any]]
"""What transformers reports of loading: names of tensors, and of those of another shape also both shapes."""
STORED = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
"""What safetensors calls a type."""
TOLERANCE = 2e-2
"""Largest difference of equal rows, relative to the largest value; rounding in bf16 stays below."""


def auto_class(config: PreTrainedConfig) -> Any:
    """The auto class whose model holds all of a checkpoint: with its vision part or its encoder where there is one."""
    if is_multimodal(config.to_dict()):
        return AutoModelForImageTextToText
    return AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM


def explained(path: Path, load: Callable[[], T]) -> T:
    """What `load` gives.

    Raises: InputError in place of whatever transformers raises for files that it cannot load; a lack of memory stays
    what it is.
    """
    try:
        return load()
    except (AlignError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if "DefaultCPUAllocator" in str(error):
            raise
        raise InputError(f"{path}: {unreadable(error)}.") from error


@contextmanager
def mapped_or_read(path: Path, settings: Mapping[str, object], dtype: torch.dtype, plain: bool) -> Iterator[None]:
    """How a folder's weights are loaded inside: files whose tensors are `plain` and have `dtype` already are mapped,
    and are the model's memory. Others are read tensor by tensor: mapped, they would all lie in memory beside what is
    made of them."""
    if plain and types(path, settings) == {STORED[dtype]}:
        yield
        return
    mapped = modeling_utils.safe_open

    def unmapped(file: str, framework: str, device: str = "cpu", backend: str = "") -> object:
        return mapped(file, framework=framework, device=device, backend="pread")

    modeling_utils.safe_open = unmapped  # type: ignore[misc,assignment]  # transformers has no setting for it
    try:
        yield
    finally:
        modeling_utils.safe_open = mapped  # type: ignore[misc]


def check_mappable(path: Path, own: str | None, dtype: torch.dtype) -> None:
    """A folder's weights can stay in their files and be computed with in `dtype`. `own`: how they are quantised there.

    Raises: InputError where they would be made anew, in memory.
    """
    held, wanted = types(path, read_json(path / CONFIG)), STORED[dtype]
    if held == {wanted} and not own:
        return
    there = own or " and ".join(sorted(held))
    precision = {"F32": "`precision: fp32`", "BF16": "`precision: bf16`"}.get("".join(held), "") if not own else ""
    raise InputError(
        f"{path}: base_offload is disk, but its files hold {there}, and the run computes in {wanted}: weights that are "
        f"converted lie in memory. Take {precision + ' or ' if precision else ''}`base_offload: true`."
    )


def in_memory(path: Path, model: nn.Module) -> tuple[int, int]:
    """Bytes of a model's matrices, or of this process's shards of them, that lie in memory of their own, and of all of
    them; what else there is is mapped from the folder's files, by this process's map of its memory (proc(5))."""
    files = {str(file.resolve()) for file in weight_files(path, read_json(path / CONFIG))}
    lines = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    spans = [[int(end, 16) for end in line[0].split("-")] for line in lines if line[-1] in files]
    beside = total = 0
    for parameter in model.parameters():
        part = parameter.data.to_local() if isinstance(parameter.data, DTensor) else parameter.data
        if part.ndim > 1:
            total += part.nbytes
            beside += 0 if any(start <= part.data_ptr() < end for start, end in spans) else part.nbytes
    return beside, total


def unreadable(error: Exception) -> str:
    """What transformers does not take, in the first words of its own error."""
    reason = " ".join(str(error).split()) or "no reason given"
    return f"transformers {transformers.__version__} cannot read it ({type(error).__name__}: {reason[:300]})"


def check_complete(path: Path, info: LoadingInfo, name: str) -> None:
    """What transformers reports of loading (`output_loading_info`) is that every tensor was there, and no other.

    Raises: InputError naming tensors.
    """
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise InputError(
            f"{path}: its weight files lack {_some(lacking)} of {name}, which would be drawn at random. Fetch or copy "
            "the model again; if "
            f"it is of another kind than {CONFIG} says, name the language model that it was made from."
        )
    if other := sorted(info["mismatched_keys"], key=str):
        key, stored, wanted = other[0]
        raise InputError(
            f"{path}: {key} is {tuple(stored)} in its weight files, and {tuple(wanted)} by its {CONFIG} ({len(other)} "
            "tensors differ). The two do not belong together: copy the model again."
        )
    if left := sorted(info["unexpected_keys"]):
        raise InputError(
            f"{path}: its weight files hold {_some(left)} that {name} does not have and that would be left out. It is "
            f"a model of another kind than {CONFIG} says: name the language model that it was made from."
        )


def _some(names: list[str]) -> str:
    """`3 tensors (a, b, …)`."""
    return f"{len(names)} tensor{'s' * (len(names) > 1)} ({', '.join(names[:2])}{', …' * (len(names) > 2)})"


@torch.no_grad()
def check_outputs(path: Path, model: PreTrainedModel) -> None:
    """A model's hidden states are numbers, and the first token's are the same whatever comes after it.

    Raises: InputError for weights that hold NaN or infinity, and for an encoder.
    """
    head: nn.Module | None = model.get_output_embeddings()
    if head is None or type(head).__name__ in ("Linear4bit", "Linear8bitLt"):
        what = "has no head that gives logits" if head is None else "is quantised in its head too"
        raise InputError(f"{path}: {type(model).__name__} {what}; name a language model whose head is a plain matrix.")
    ids = torch.tensor([[3, 5], [3, 7]], device=model.device)
    with native_attention(model):
        out = explained(path, lambda: read(model, ids))
    hidden = getattr(out, "last_hidden_state", None)
    if hidden is None:
        raise InputError(
            f"{path}: transformers' {type(model).__name__} gives logits and no hidden states; Align cannot train on it."
        )
    if not hidden.isfinite().all():
        raise InputError(
            f"{path}: the model's outputs are not numbers; its weights hold NaN or infinity. Fetch or copy the model "
            "again."
        )
    first, second = hidden[:, 0].float()
    if (first - second).abs().max() > TOLERANCE * first.abs().max().clamp(min=1e-6):
        raise InputError(
            f"{path}: this {type(model).__name__} reads what comes after a token too, as encoders do; Align trains "
            "decoders."
        )


def note_tying(model: PreTrainedModel) -> None:
    """Where a checkpoint holds a head unlike its embeddings, transformers loads both, even if its config.json ties
    them: then the config says so too, or what is written from this model would be tied by others."""
    head: Any = model.get_output_embeddings()
    if all(kept(head) is not kept(module) for module in embeddings(model)):
        for config in {id(c): c for c in (model.config, model.config.get_text_config())}.values():
            config.tie_word_embeddings = False
