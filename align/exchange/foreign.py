"""An adapter that PEFT saved: what PEFT computes with it on a fresh base, against Align's fused layers and its merged
copy."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from align.adapters import adalora
from align.adapters.methods import of_adapter
from align.data.examples import Example
from align.ground.errors import InputError
from align.models.merged import MergedCopy
from align.models.reloads_equal import PROBE_TEXT
from align.models.roles import Roles
from align.packed.attention import select_native_attention
from align.packed.encoder_decoder import is_encoder_decoder
from align.packed.forward import logits
from align.packed.pack import pack
from align.rendering.render import Renderer

EQUAL = 1e-5
"""Nats per token that fp32 may differ by. More only where the two differ by a tenth of that on the bare base, or PEFT's
own result moves by a tenth of it when the adapter's weights do by one rounding step: large factors that nearly cancel,
as of a converted PiSSA, round more."""


@torch.no_grad()
def token_logprobs(model: Any, rows: Sequence[Sequence[int]]) -> Tensor:
    """Log-prob of every token behind each row's prompt, one after the other, by transformers' own forward: fp32 on the
    CPU."""
    found = []
    for row in rows:
        ids = torch.tensor([row], device=next(model.parameters()).device)
        theirs = logits(model, ids, prompt_of(model, row))[0, :-1]
        found.append(torch.log_softmax(theirs.float(), -1).gather(1, ids[0, -len(theirs) :, None])[:, 0].cpu())
    return torch.cat(found)


def prompt_of(model: Any, row: Sequence[int]) -> int:
    """How many of a row's tokens are its prompt: of an encoder-decoder half, else the one that nothing predicts."""
    return len(row) // 2 if is_encoder_decoder(model) else 1


@torch.no_grad()
def by_peft(base: PreTrainedModel, folder: Path, rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor, float]:
    """`token_logprobs` of the bare base and with PEFT's adapter from `folder` on it, and by how much the latter move
    when every weight of the adapter does by one rounding step of fp32, up or down; the base is PEFT's afterwards."""
    select_native_attention(base)
    bare = token_logprobs(base, rows)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's about its own future, and about keys that `Roles.load_adapter` refuses
        model = PeftModel.from_pretrained(base, str(folder))
    wanted = token_logprobs(model.eval(), rows)
    generator, step = torch.Generator().manual_seed(0), torch.finfo(torch.float32).eps
    for name, parameter in model.named_parameters():
        if of_adapter(name):
            signs = torch.randint(2, parameter.shape, generator=generator).mul_(2).sub_(1)
            parameter.mul_(1 + step * signs.to(parameter.device))
    return bare, wanted, (token_logprobs(model, rows) - wanted).abs().max().item()


def write_in_full(weights: Path, pattern: Mapping[str, list[bool]], written: Path) -> None:
    """An AdaLoRA adapter's tensors without what PEFT's `rank_pattern` left out, written with it.

    Raises: InputError where the two do not fit together.
    """
    try:
        tensors = adalora.in_full(load_file(weights), pattern)
    except (StopIteration, AttributeError, TypeError, IndexError, RuntimeError, ValueError) as error:
        raise InputError(f"{weights} does not hold what adapter_config.json's rank_pattern names of it.") from error
    save_file(tensors, written)


def probe_rows(renderer: Renderer, context: int, tokens: Sequence[int]) -> list[list[int]]:
    """A probe text, ids drawn from the whole vocabulary, among them the first of `tokens`, whose rows are an
    adapter's."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(len(renderer.tokenizer), (24,), generator=generator).tolist()
    return [
        list(row[:context])
        for row in (renderer.tokenizer(PROBE_TEXT)["input_ids"], [*drawn[:4], *tokens[:8], *drawn[4:]])
    ]


def check_as_peft(
    roles: Roles, role: str, rows: Sequence[Sequence[int]], bare: Tensor, wanted: Tensor, rounding: float, where: str
) -> None:
    """A role computes what PEFT does, in its fused layers and in its merged copy; `bare`, `wanted` and `rounding` are
    what `by_peft` gave on `rows`.

    Raises: InputError naming the computation and by how much it differs.
    """
    floor = (_of_role(roles, "base", rows) - bare).abs().max().item()
    found = {"the layers that train": _of_role(roles, role, rows)}
    merged = MergedCopy(roles, role).merged()
    select_native_attention(merged)
    found["the merged copy that answers are drawn from"] = token_logprobs(merged, rows)
    for what, logprobs in found.items():
        difference = (logprobs - wanted).abs().max().item()
        if not difference <= max(EQUAL, 10 * floor, 10 * rounding):
            raise InputError(
                f"{where}: {what} would compute another model than PEFT does, by {difference:.1e} nats for a token of "
                f"a probe text (on the bare base {floor:.1e}, by rounding {rounding:.1e}). Nothing was stored. Merge "
                "it into its base with PEFT and start from that model with --base."
            )


@torch.no_grad()
def _of_role(roles: Roles, role: str, rows: Sequence[Sequence[int]]) -> Tensor:
    """What `token_logprobs` gives, as stages compute it."""
    prompts = [prompt_of(roles.base, row) for row in rows]
    examples = [Example((row,), ([False] * n + [True] * (len(row) - n),)) for row, n in zip(rows, prompts, strict=True)]
    batch = pack(examples).to(roles.base.device)
    return roles.logprobs(role, batch)[batch.loss_mask].float().cpu()


SIZES = re.compile(r"size mismatch for (\S+): .*?Size\(\[([\d, ]*)\]\).*?Size\(\[([\d, ]*)\]\)")
"""What torch says of a tensor that does not fit."""


def first_line(error: Exception) -> str:
    """What does not fit, of what torch or PEFT says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = lines[1] if len(lines) > 1 else lines[0] if lines else type(error).__name__
    if sizes := SIZES.match(line):
        found, expected = (group.replace(", ", " x ") for group in sizes.groups()[1:])
        return (
            f"{sizes[1]} has sizes {found}, where this base takes {expected}. It was trained on another model: check "
            "its base."
        )
    return line
