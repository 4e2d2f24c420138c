"""A base that computes in fp32 and keeps its matrices in the 16 bits of its files: every bit is that of a base in fp32.

The truths: the same base read as fp32, by digests and by equal tensors, and transformers' own model in fp32. The
negative control is a product in 16 bits, which is what such a weight gives where nobody widens it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from align import inputs
from align.adapters import lora
from align.adapters.targets import adapted_share, lora_config
from align.inputs.narrow import stored_in
from align.models import base as base_module
from align.models import weights
from align.models.base import load_base
from align.models.roles import Roles
from align.packed import vocabulary
from align.packed.head import Head
from align.packed.pack import pack
from align.packed.vocabulary import row_logprobs
from align.parallel import narrow
from align.parallel.narrow import Narrow, Room, kept
from align.sampling.rollout import Sampler
from align.stage import layout
from align.store import Artifact
from tests.conftest import Pipeline
from tests.models.families import logprobs, plain, rows
from tests.models.family_models import build
from tests.stage.test_layout import asked
from tests.stages.helpers import forget, run


@pytest.fixture(autouse=True)
def of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have small bases, which are not worth it."""
    monkeypatch.setattr(inputs.narrow, "WORTH", 0)


TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
Found = tuple[list[Tensor], list[list[int]]]


def stored(name: str, folder: Path, dtype: str = "bf16") -> Path:
    """A family's model in a folder, in 16 bits."""
    build(name, folder)
    for file in folder.glob("*.safetensors"):
        held = {key: t.to(TYPES[dtype]) if t.is_floating_point() else t for key, t in load_file(file).items()}
        save_file(held, file, metadata={"format": "pt"})
    return folder


def loaded(folder: Path, dtype: str | None) -> Roles:
    """The base with two random adapters."""
    kept = TYPES[dtype] if dtype else None
    roles = Roles(load_base(folder, quantize=None, dtype=torch.float32, narrow=kept))
    torch.manual_seed(0)
    for adapter in ("policy", "other"):
        roles.add_adapter(adapter, lora_config(4, 8, "all-linear", 0.0, roles.base))
        roles.assign(adapter, [adapter])
    for key, parameter in roles.base.named_parameters():
        if "lora_B" in key:
            nn.init.normal_(parameter, 0, 0.02)
    roles.train_only("policy")
    return roles


def computed(roles: Roles) -> Found:
    """Log-probs with an adapter and without, entropies, gradients, an unfused forward; and samples."""
    batch = pack(list(rows(64)))
    logp = roles.logprobs("policy", batch)
    logp.sum().backward()
    found = [logp.detach(), *(p.grad for key, p in sorted(roles.trainable().items()) if p.grad is not None)]
    with torch.no_grad():
        found += [roles.logprobs("base", batch), roles.head(roles.hidden_as("other", batch))]
    torch.manual_seed(1)
    answers = [Sampler(roles, role, [1], 2)([[5, 9, 30]], n=3, max_new_tokens=6, temperature=1.0)[0] for role in ROLES]
    found += [torch.tensor(answer.logprobs) for several in answers for answer in several]
    return found, [answer.ids for several in answers for answer in several]


ROLES = ("policy", "base")


def equal(one: Found, other: Found) -> bool:
    return one[1] == other[1] and all(torch.equal(a, b) for a, b in zip(one[0], other[0], strict=True))


@pytest.mark.parametrize(
    ("name", "dtype", "packed"),
    [
        ("Llama", "bf16", True),
        ("Qwen2", "fp16", True),
        ("Gemma 3 text", "bf16", True),
        ("Phi-3", "bf16", True),
        ("GPT-2", "bf16", True),
        ("Mamba", "bf16", False),
        ("Qwen3-MoE", "bf16", True),
    ],
)
def test_every_bit_is_that_of_fp32(name: str, dtype: str, packed: bool, tmp_path: Path) -> None:
    """Among them: a scaled embedding, tied and untied heads, biases, transposed matrices and experts, which are
    widened at once, a fused projection, a recurrence on the padded path."""
    folder = stored(name, tmp_path / "base", dtype)
    wide, thin = loaded(folder, None), loaded(folder, dtype)
    assert thin.packed == wide.packed == packed and thin.base.dtype == torch.float32
    held = [module for module in thin.base.modules() if isinstance(module, Narrow)]
    assert held and {kept(module).dtype for module in held} == {TYPES[dtype]}
    theirs = {key: p for key, p in wide.base_parameters()}
    for key, parameter in thin.base_parameters():
        assert torch.equal(parameter.float(), theirs[key])
        assert parameter.ndim > 1 or parameter.dtype == torch.float32
    assert not any(isinstance(module, Narrow) for module in wide.base.modules())
    assert adapted_share(thin.base, thin.configs["policy"]) == adapted_share(wide.base, wide.configs["policy"])
    assert equal(computed(wide), computed(thin))


def test_it_is_transformers_in_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within 1e-5; the control, whose products are in 16 bits, is far from that."""
    folder = stored("Llama", tmp_path / "base")
    truth, example = plain(folder), next(rows(64))
    (ids, _), start, batch = example.sequences, example.shared, pack([example])
    roles = loaded(folder, "bf16")

    def apart() -> float:
        mine = batch.split(roles.logprobs("base", batch))[0][batch.split(batch.loss_mask)[0]]
        return float((mine - logprobs(truth, ids, start)).abs().max())

    with torch.no_grad():
        assert apart() < 1e-5
        round_products(monkeypatch)
        assert apart() > 1e-3


def round_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the linear layers compute in the 16 bits of their weights."""

    def rounded(self: Any, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.bfloat16()
        return nn.functional.linear(x.bfloat16(), kept(self), bias).float()

    monkeypatch.setattr(narrow.NarrowLinear, "forward", rounded)


def in_a_chain(pipeline: Pipeline, base: Artifact) -> dict[str, Artifact]:
    """sft, and on it reward, dpo and ppo, which samples, of a base."""
    made = {"sft": run(pipeline, "sft", parent=base.digest)}
    for stage in ("reward", "dpo", "ppo"):
        more = {"reward": made["reward"].digest} if stage == "ppo" else {}
        made[stage] = run(pipeline, stage, parent=made["sft"].digest, **more)
    return made


def test_stages_make_the_same_artifacts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Digest and all, of a base in bf16 that is read as fp32; matrices that are moved by rounding make others."""
    seen: list[Any] = []
    load = load_base

    def noting(*args: Any, **how: Any) -> Any:
        seen.append(how.get("narrow"))
        return load(*args, **how)

    monkeypatch.setattr(base_module, "load_base", noting)
    base = run(pipeline, "pretrain", save_dtype="bf16")
    seen.clear()
    thin = in_a_chain(pipeline, base)
    assert seen == [torch.bfloat16] * 4
    for artifact in thin.values():
        forget(pipeline.store, artifact)
    with monkeypatch.context() as patch:
        patch.setattr(layout, "in_16_bits", lambda question, token_rows: None)
        wide = in_a_chain(pipeline, base)
    assert seen[4:] == [None] * 4
    assert {stage: a.digest for stage, a in thin.items()} == {stage: a.digest for stage, a in wide.items()}
    forget(pipeline.store, thin["sft"])
    monkeypatch.setattr(lora, "matrix", lambda module: kept(module).float() * (1 + 2**-9))
    assert run(pipeline, "sft", parent=base.digest).digest != thin["sft"].digest


def test_a_base_stays_in_its_files(tmp_path: Path) -> None:
    """Mapped; the control is one that is read as fp32."""
    folder = stored("Llama", tmp_path / "base")
    for dtype in ("bf16", None):
        model = loaded(folder, dtype).base
        own, total = weights.in_memory(folder, model)
        adapters = sum(p.nbytes for key, p in model.named_parameters() if "lora_" in key)
        assert own - adapters == (0 if dtype else total - adapters) and total > adapters


def test_what_is_read_is_fp32_and_what_is_kept_is_not(tmp_path: Path) -> None:
    """Whoever asks a module for its weight; a matrix of another's is not what was widened before."""
    model = loaded(stored("Qwen2", tmp_path / "base"), "bf16").base
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    assert head.weight.dtype == torch.float32 and torch.equal(head.weight, kept(head).float())
    assert (kept(head) is kept(embedding)) == model.config.tie_word_embeddings
    room = Room(6)
    small, large = torch.ones(2, 3).bfloat16(), torch.ones(3, 3).bfloat16()
    first = room.widened(small)
    assert first.data_ptr() == room.widened(small * 2).data_ptr() and (first == 2).all()
    assert room.widened(large).data_ptr() != first.data_ptr() and room.widened(large).dtype == torch.float32


def test_where_a_base_is_wide(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not proven, and a base in fp32; the controls are LoRA and rsLoRA on the same base in bf16."""
    full = pipeline.made["pretrain"].digest
    half = run(pipeline, "pretrain", save_dtype="bf16").digest
    for changes in (
        {"adapter": {"method": "dora", "rank": 4}},
        {"adapter": {"rank": 4, "init_lora_weights": "pissa"}},
        {"new_tokens": ["<x>"]},
        {"parent": full},
    ):
        given: dict[str, Any] = {"parent": half} | changes
        assert layout.in_16_bits(asked(pipeline, **given), 0) is None
    for method in ("lora", "rslora"):
        question = asked(pipeline, parent=half, adapter={"method": method, "rank": 4})
        assert layout.in_16_bits(question, 0) == "bf16" and layout.in_16_bits(question, 301) is None
    monkeypatch.setattr(inputs.narrow, "WORTH", 1 << 20)  # and a small base
    assert layout.in_16_bits(question, 0) is None


def test_files_of_several_types(tmp_path: Path) -> None:
    folder = stored("Llama", tmp_path / "base")
    assert stored_in(folder) == "bf16"
    file = folder / "model.safetensors"
    held = load_file(file)
    held["model.norm.weight"] = held["model.norm.weight"].float()
    save_file(held, file, metadata={"format": "pt"})
    assert stored_in(folder) is None


@pytest.mark.parametrize(("name", "wide"), [("Qwen3-MoE", True), ("GPT-2", True), ("Qwen2", False)])
def test_what_would_lie_in_memory_twice_is_read_as_fp32(name: str, wide: bool, tmp_path: Path) -> None:
    """Routed experts and transposed matrices, which are widened when they are read, beside the mapped files."""
    assert stored_in(stored(name, tmp_path / "base")) == (None if wide else "bf16")


def test_one_row_does_not_widen_the_whole_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block has no more numbers of the head than a block of logits may have; values are those of one block."""
    roles = loaded(stored("Llama", tmp_path / "base"), "bf16")
    width, words = kept(roles.head.module).shape[1], len(roles.head.matrix)
    hidden, target = torch.randn(1, width), torch.tensor([words - 1])
    whole = row_logprobs(roles.head, hidden, target)
    weigh, seen = Head.weight, list[int]()

    def noting(self: Head, block: slice) -> Tensor:
        seen.append(len(found := weigh(self, block)))
        return found

    monkeypatch.setattr(Head, "weight", noting)
    monkeypatch.setitem(vocabulary.ELEMENTS, "cpu", 16 * width)
    torch.testing.assert_close(row_logprobs(roles.head, hidden, target), whole)
    assert max(seen) == 16 and sum(seen) == words
