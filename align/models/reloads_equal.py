"""Does what was written reload equal? Everything with weights passes this, as the store gives it back, before it is
committed.

Adapters and heads: settings and tensors bit for bit, and the same outputs from a spare slot on the same base.
Tokenizers: the same ids and the same rendering. Full models: bit for bit in the precision they are stored in; held by
their hashes, so that no second model is needed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from align.data.examples import Example
from align.ground.disk import sha256_file
from align.ground.errors import AlignError, InputError
from align.ground.progress import Task, each
from align.models import base, precision
from align.models.adapted import plain_key
from align.models.heads import ScoreHead
from align.models.roles import Roles
from align.packed.pack import pack
from align.rendering.render import Renderer, load_renderer

NOTHING = "Nothing was committed."
PROBE_TEXT = "Which colour is the cup? 3 + 4 = 7!\n\tnaïve café — 東京 👍  two spaces"
PROBE_CHAT = (
    {"role": "system", "content": "You are terse."},
    {"role": "user", "content": "3 plus 4?"},
    {"role": "assistant", "content": "7."},
    {"role": "user", "content": PROBE_TEXT},
)


def check_adapter(folder: Path, live: Mapping[str, Tensor], config: str) -> None:
    """An adapter's folder holds exactly the live tensors and settings, and no tensor is empty. Raises: AlignError."""
    path = folder / "adapter_config.json"
    found, wanted = path.read_text(encoding="utf-8") if path.is_file() else "", json.loads(config)
    if found != config:
        try:
            stored = json.loads(found)
            keys = [key for key in sorted({*stored, *wanted}) if stored.get(key) != wanted.get(key)] or ["its text"]
        except ValueError:
            keys = ["all of it: it is no JSON"]
        raise AlignError(f"{path} does not reload equal: {', '.join(keys)}. {NOTHING}")
    check_tensors(folder / "adapter_model.safetensors", live)


def check_tensors(path: Path, live: Mapping[str, Tensor]) -> None:
    """A safetensors file holds exactly the live tensors, bit for bit, and none is empty.

    Raises: AlignError naming the first that differs.
    """
    try:
        stored = {plain_key(name): tensor for name, tensor in load_file(path).items()}
    except (OSError, SafetensorError) as error:
        size = f"{path.stat().st_size:,} bytes" if path.is_file() else "missing"
        raise AlignError(f"{path} ({size}) cannot be read: {error}. {NOTHING}") from error
    if other := sorted(set(stored) ^ set(live)):
        where = "is missing there" if other[0] in live else "was never trained"
        raise AlignError(
            f"{path} holds other tensors than the live model: {len(other)} differ; {other[0]} {where}. {NOTHING}"
        )
    for name, tensor in live.items():
        if tensor.numel() == 0:
            raise AlignError(f"{path}: {name} is empty; it was gathered without its weights. {NOTHING}")
        if stored[name].dtype != tensor.dtype or not torch.equal(stored[name], tensor.detach().cpu()):
            raise AlignError(f"{path}: {name} does not reload equal. {NOTHING}")


def check_head(path: Path, head: ScoreHead) -> None:
    check_tensors(path, head.state_dict())


def check_text(folder: Path, renderer: Renderer) -> None:
    """A tokenizer folder gives the live tokenizer's ids on a probe text, its rendering of a probe dialogue, and its
    contract.

    Raises: AlignError naming the folder and what differs.
    """
    try:
        again = load_renderer(folder, None, renderer.max_length)
    except Exception as error:  # whatever transformers raises for files that are no tokenizer
        raise AlignError(
            f"{folder}: the stored tokenizer does not load ({type(error).__name__}: {error}). {NOTHING}"
        ) from error
    again = replace(again, stop_ids=renderer.stop_ids)  # some of them are the base's own
    for what, of in (
        ("gives other ids on a probe text", lambda r: r.tokenizer(PROBE_TEXT)["input_ids"]),
        ("has another chat template", lambda r: r.tokenizer.chat_template),
        ("renders a probe dialogue in another way", _rendered),
        ("has another text contract", Renderer.contract),
    ):
        if of(again) != of(renderer):
            raise AlignError(f"{folder}: the stored tokenizer {what} than the live one. {NOTHING}")


def _rendered(renderer: Renderer) -> object:
    """The dialogue with its own template. A template may refuse a dialogue, such as one with a system message; then the
    refusal counts."""
    try:
        return renderer.tokenizer.apply_chat_template(
            list(PROBE_CHAT), chat_template=renderer.template.source, add_generation_prompt=True
        )
    except Exception as error:
        return str(error)


@torch.no_grad()
def weight_hashes(model: nn.Module, dtype: str) -> dict[str, str]:
    """sha256 of every tensor of a model in "fp32", "bf16" or "fp16", by name; whole numbers keep their type."""
    stored, held = precision.DTYPES[dtype], model.state_dict().items()
    tensors = each("hashing weights", held, "tensors")
    return {name: _hash(t.to(stored) if t.is_floating_point() else t) for name, t in tensors}


def _hash(tensor: Tensor) -> str:
    found = hashlib.sha256(repr((tensor.dtype, tuple(tensor.shape))).encode())
    found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_model(folder: Path, dtype: torch.dtype) -> Roles:
    """A full model as it was written, ready to be compared.

    Raises: AlignError naming the file that is cut short, or why it does not load.
    """
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise AlignError(f"{path} ({path.stat().st_size:,} bytes) cannot be read: {error}. {NOTHING}") from error
    try:
        with Task("reading what was written"):
            return Roles(base.load_base(folder, quantize=None, dtype=dtype))
    except (InputError, OSError, ValueError, RuntimeError) as error:
        raise AlignError(
            f"{folder}: the stored model does not load ({type(error).__name__}: {error}). {NOTHING}"
        ) from error


def check_weights(folder: Path, reloaded: nn.Module, hashes: Mapping[str, str], dtype: str) -> None:
    """A model that was loaded from `folder` holds the tensors whose hashes were taken before. Raises: AlignError naming
    the first that differs."""
    found = weight_hashes(reloaded, dtype)
    if wrong := [name for name in sorted({*found, *hashes}) if found.get(name) != hashes.get(name)]:
        raise AlignError(
            f"{folder}: {wrong[0]} does not reload equal ({len(wrong)} of {len(hashes)} tensors differ). {NOTHING}"
        )


def check_files(folder: Path, hashes: Mapping[str, str]) -> None:
    """A folder holds the files whose sha256 were taken before, and no others. Raises: AlignError naming the first that
    differs."""
    found = file_hashes(folder)
    if wrong := [name for name in sorted({*found, *hashes}) if found.get(name) != hashes.get(name)]:
        raise AlignError(f"{folder / wrong[0]} is not the file that was measured. {NOTHING}")


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of a folder, by its path inside it."""
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


@torch.no_grad()
def probe_difference(roles: Roles, role: str, others: Roles, other: str) -> float:
    """Largest difference between two roles' outputs on a fixed probe row (values where both have a head, else hidden
    states)."""
    vocab = roles.base.config.get_text_config().vocab_size
    ids = torch.randint(vocab, (24,), generator=torch.Generator().manual_seed(0)).tolist()
    batch = pack([Example((ids,), ([False] * 12 + [True] * 12,))]).to(roles.base.device)

    def measured(roles: Roles, role: str) -> Tensor:
        hidden = roles.hidden_as(role, batch)
        return roles.heads[role](hidden) if role in roles.heads else hidden

    return (measured(roles, role) - measured(others, other)).abs().max().item()


def check_outputs(roles: Roles, role: str, others: Roles, other: str, what: str) -> None:
    """Two roles give the same outputs, bit for bit on a CPU. Raises: AlignError."""
    difference = probe_difference(roles, role, others, other)
    if not difference <= (0.0 if roles.base.device.type == "cpu" else 1e-3):
        raise AlignError(f"the stored {what} gives other outputs than the trained one (by {difference:.1e}). {NOTHING}")
