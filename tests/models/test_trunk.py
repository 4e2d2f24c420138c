"""Frozen lower layers that run once per row give what running them every time gives, and do not run again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from align import dpo, ppo, reward, sft
from align.adapters.targets import lora_config
from align.data.examples import Example
from align.ground.errors import InputError
from align.losses import loss
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.models.trunk import Trunk
from align.models.trunk_cache import Keeper, digest_below, find_trunk, passing_file
from align.packed.attention import select_packed_attention
from align.packed.layers import layers_of
from align.packed.pack import Batch, microbatches, pack
from align.packed.probe import probe, trial
from align.training.plan import Plan
from align.training.steps import make_step
from align.training.trainer import fit
from tests.models.models import CONFIGS, make_base, pairs, randomise, settings, several_pairs_of_a_prompt
from tests.training.test_invariants import DPO, PPO, add_head, copy_adapter, rollout_columns, with_random_reference

LossOf = Callable[[Roles, Batch], loss.Loss]


def layered(name: str = "llama", dtype: torch.dtype = torch.float64, **reach: int | None) -> Roles:
    """Roles by name, each with one adapter on that many layers from the top (None: all), with heads; the policy
    trains."""
    roles = Roles(make_base(name, dtype))
    if not roles.packed:  # Gemma 2 rounds scores to fp32, which the probe refuses in fp64
        select_packed_attention(roles.base)
        roles.packed = True
    for seed, (role, layers) in enumerate((reach or {"policy": 1, "reference": 1, "value": 1}).items()):
        roles.add_adapter(role, lora_config(4, 8, "all-linear", 0.0, roles.base, layers))
        randomise(roles, role, seed=seed)
        roles.assign(role, [role])
        add_head(roles, role, seed=10 + seed)
    roles.train_only("policy", heads=["policy"])
    return roles


def filled(roles: Roles, examples: list[Example], **more: Any) -> list[Example]:
    assert find_trunk(roles, "policy") == ""
    return Keeper(roles, "policy", 64, **more)(examples)


def found(roles: Roles, loss: LossOf, examples: list[Example]) -> dict[str, Tensor]:
    """The loss of one packed row and its gradients."""
    value = loss(roles, pack(examples)).scalar({"tokens": 7, "pairs": 3, "sequences": 6})
    trained = roles.trainable()
    gradients = torch.autograd.grad(value, list(trained.values()), allow_unused=True)
    return {"loss": value.detach()} | {
        key: torch.zeros_like(p) if g is None else g for (key, p), g in zip(trained.items(), gradients, strict=True)
    }


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor], atol: float = 1e-9) -> None:
    assert got.keys() == want.keys() and len(want) > 4
    for key, value in want.items():
        torch.testing.assert_close(got[key], value, atol=atol, rtol=atol, msg=key)


STAGES: dict[str, tuple[LossOf, list[Example]]] = {
    "sft": (sft.loss, pairs(5)),
    "reward": (lambda r, b: reward.loss(r, b, 0.05), pairs(5)),
    "dpo": (lambda r, b: dpo.loss(r, b, DPO), with_random_reference(pairs(5))),
    "ppo": (lambda r, b: ppo.loss(r, b, PPO), rollout_columns(pairs(5))),
}


# ---- exact -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_kept_equals_plain_for_every_architecture(name: str) -> None:
    """Log-probs of policy and reference, scores, and gradients, in fp64; rows of another text give others (negative
    control)."""
    roles = layered(name)
    plain = pairs(5)
    kept = filled(roles, plain)
    assert pack(plain).trunk is None and pack(kept).trunk is not None
    for role in ("policy", "reference", "value"):
        with torch.no_grad():
            for measure in (roles.logprobs, roles.scores, roles.values):
                torch.testing.assert_close(measure(role, pack(kept)), measure(role, pack(plain)), atol=1e-9, rtol=1e-9)
    loss, _ = STAGES["reward"]
    assert_same(found(roles, loss, kept), want := found(roles, loss, plain))
    other = [replace(e, trunk=tuple(part.flip(0) for part in e.trunk)) for e in kept]
    assert (found(roles, loss, other)["loss"] - want["loss"]).abs() > 1e-4


@pytest.mark.parametrize("stage", STAGES)
def test_gradients_of_every_loss(stage: str) -> None:
    """Also through PPO's two roles, with activation checkpointing, and for any split into micro-batches."""
    loss, examples = STAGES[stage]
    roles = layered()
    roles.train_only("policy", "value", heads=["policy", "value"])
    kept, want = filled(roles, examples), found(roles, loss, examples)
    assert_same(found(roles, loss, kept), want)
    step = make_step(kept, 30)
    assert len(step.batches) > 2 and all(b.trunk is not None for b in step.batches)
    for batch in step.batches:
        loss(roles, batch).scalar({"tokens": 7, "pairs": 3, "sequences": 6}).backward()
    split = {k: torch.zeros_like(p) if p.grad is None else p.grad for k, p in roles.trainable().items()}
    assert_same(split, {k: v for k, v in want.items() if k != "loss"})
    roles.enable_activation_checkpointing()
    assert_same(found(roles, loss, kept), want)


def test_stacked_on_a_parent_that_reaches_down() -> None:
    """A fresh adapter on the top layer over a frozen one on all layers: the frozen one's lower layers are part of what
    is kept."""
    roles = layered(policy=1, parent=None, reference=None)
    copy_adapter(roles, "parent", "reference")
    roles.assign("policy", ["parent", "policy"])
    roles.train_only("policy", heads=["policy"])
    kept = filled(roles, pairs(5))
    assert roles.trunk is not None and roles.trunk.depth == 1 and roles.trunk.roles == {"policy", "parent", "reference"}
    assert_same(found(roles, sft.loss, kept), found(roles, sft.loss, pairs(5)))
    with torch.no_grad():
        assert torch.equal(roles.logprobs("reference", pack(kept)), roles.logprobs("parent", pack(kept)))


# ---- who may start at the cut ----------------------------------------------------------------------------------------


def test_depth_is_that_of_the_lowest_layer_that_trains() -> None:
    roles = layered(policy=1, reference=1, value=None, reward=None)
    assert find_trunk(roles, "policy") == "" and roles.trunk is not None
    assert roles.trunk.depth == 1 and roles.trunk.roles == {"policy", "reference"}  # not the roles that reach down
    roles.train_only("value")
    assert not roles.trunk
    assert find_trunk(roles, "value") == "value trains from the first layer on"
    roles.train_only("policy")
    assert find_trunk(roles, "policy") == ""
    assert roles.trunk is not None
    roles.assign("reference", ["value"])  # what a role is made of may change later
    assert roles.trunk.roles == {"policy"}
    roles.train_base()
    assert roles.trunk is None and find_trunk(roles, "policy") == "the base trains from the first layer on"


def test_a_role_that_reaches_down_would_be_wrong() -> None:
    """Negative control of the sharing: with an adapter in a lower layer the kept rows are wrong, and unless forced they
    are not used."""
    roles = layered(policy=1, other=None)
    kept = filled(roles, pairs(5))
    with torch.no_grad():
        plain = roles.logprobs("other", pack(pairs(5)))
        assert torch.equal(roles.logprobs("other", pack(kept)), plain)
        assert roles.trunk is not None
        roles.trunk.roles.add("other")
        assert (roles.logprobs("other", pack(kept)) - plain).abs().max() > 1e-2


def test_bases_that_cannot_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """A base on the padded path, one whose layers hand on something else, and one that changes between its layers."""
    bloom = Roles(make_base("bloom"))
    bloom.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, bloom.base, 1))
    bloom.assign("policy", ["policy"])
    bloom.train_only("policy")
    assert find_trunk(bloom, "policy").startswith("this base takes the padded path (packed and alone differ")
    roles = layered()
    run = Trunk.top
    monkeypatch.setattr(Trunk, "top", lambda self, batch: run(self, batch) * 1.001)
    assert "does not give what the whole gives (hidden states by" in find_trunk(roles, "policy") and roles.trunk is None
    assert Keeper(roles, "policy", 64)(pairs(3))[0].trunk is None
    monkeypatch.setattr(
        Trunk, "top", lambda self, batch: run(self, batch).detach() + 0 * next(iter(roles.trainable().values())).sum()
    )
    assert "lora_" in find_trunk(roles, "policy")  # equal values, other gradients


def test_layers_that_are_not_there() -> None:
    with pytest.raises(InputError, match=r"adapter\.layers is 3, but LlamaForCausalLM here has 2 layers"):
        lora_config(4, 8, "all-linear", 0.0, make_base(), 3)


# ---- once ------------------------------------------------------------------------------------------------------------


def test_lower_layers_run_once_per_row(tmp_path: Path) -> None:
    """DPO over three epochs with a reference pass: each row passes the lower layer once, and no gradient ever does."""
    roles = layered()
    roles.train_only("policy")
    rows: Counter[int] = Counter()
    backward: Counter[int] = Counter()

    def note(i: int, hidden: Tensor, out: Tensor) -> None:
        rows.update({i: hidden.shape[1]})
        if out.requires_grad:
            out.register_hook(lambda _: backward.update([i]))

    for i, layer in enumerate(layers_of(roles.base)[1]):
        layer.register_forward_hook(lambda _, args, out, i=i: note(i, args[0], out))

    def run(examples: list[Example]) -> tuple[Counter[int], Counter[int]]:
        rows.clear()
        backward.clear()
        with torch.no_grad():
            roles.logprobs("reference", pack(examples))
        plan = Plan(examples, batch_size=2, epochs=3, max_steps=None, tokens_per_microbatch=64, seed=0)
        config = settings(dpo.Config, tokens_per_microbatch=64, learning_rate=1e-6)
        fit(roles, lambda r, b: dpo.loss(r, b, DPO), plan, config, title="test", checkpoints=tmp_path)
        return rows.copy(), backward.copy()

    examples = with_random_reference(pairs(6))
    tokens = sum(e.tokens for e in examples)
    assert find_trunk(roles, "policy") == ""
    rows.clear()
    kept = Keeper(roles, "policy", 64)(examples)
    assert rows == {0: tokens} and Keeper(roles, "policy", 64)(kept) == kept and rows == {0: tokens}  # filled once
    forward, back = run(kept)
    assert forward == {1: 4 * tokens} and set(back) == {1}
    forward, _ = run(examples)  # negative control: without what is kept
    assert forward == {0: 4 * tokens, 1: 4 * tokens}


# ---- where it is kept ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_a_file_holds_what_memory_holds(dtype: torch.dtype | None, tmp_path: Path) -> None:
    """Bit for bit; the file is gone and its pages stay. bf16 rounds to 8 bits: close, not equal."""
    roles = layered()
    plain = pairs(7)
    memory = filled(roles, plain, dtype=dtype)
    disk = filled(roles, plain, dtype=dtype, file=lambda _, parts: passing_file(tmp_path, parts))
    assert not list(tmp_path.iterdir())
    for a, b, example in zip(memory, disk, plain, strict=True):
        assert [len(part) for part in a.trunk] == [example.prefix, example.tokens - example.prefix]
        assert all(
            x.dtype == (dtype or torch.float64) and torch.equal(x, y) for x, y in zip(a.trunk, b.trunk, strict=True)
        )
    with torch.no_grad():
        got, want = (roles.logprobs("policy", pack(e)) for e in (disk, plain))
    difference = (got - want).abs().max()
    assert difference < 1e-9 if dtype is None else 1e-4 < difference < 0.5


def test_pairs_of_a_prompt_keep_its_rows_once(tmp_path: Path) -> None:
    """Their prefixes are one tensor, in memory and in a file; packed together they give what each gives alone without
    the cut."""
    roles = layered()
    plain = several_pairs_of_a_prompt()
    for kept in (filled(roles, plain), filled(roles, plain, file=lambda _, parts: passing_file(tmp_path, parts))):
        assert (
            kept[0].trunk[0].data_ptr()
            == kept[2].trunk[0].data_ptr()
            == kept[5].trunk[0].data_ptr()
            != kept[1].trunk[0].data_ptr()
        )
        together = [i for items in microbatches(kept, 4096) for i in items]
        with torch.no_grad():
            got = pack([kept[i] for i in together])
            assert got.trunk is not None and len(got.trunk) == got.input_ids.numel() < sum(e.tokens for e in plain)
            logprobs = roles.logprobs("policy", got)
            want = pack([plain[i] for i in together], share_prefix=False)
            torch.testing.assert_close(
                got.per_sequence(logprobs), want.per_sequence(roles.logprobs("policy", want)), atol=1e-9, rtol=1e-9
            )


def test_filling_depends_on_the_rows_alone() -> None:
    """In fp32, where packing rounds: filled again the rows are equal bit for bit, also when some were filled before."""
    roles = layered(dtype=torch.float32)
    roles.heads.float()
    a, b = filled(roles, pairs(7)), filled(roles, pairs(7))
    assert all(torch.equal(p, q) for x, y in zip(a, b, strict=True) for p, q in zip(x.trunk, y.trunk, strict=True))
    half = [*a[:3], *pairs(7)[3:]]
    assert all(x.trunk is y.trunk for x, y in zip(Keeper(roles, "policy", 64)(half)[:3], a[:3], strict=True))


def test_what_decides_the_key() -> None:
    """The cut, and what frozen adapters add below it; not what is above."""

    def key(scale: float = 1.0, top: int = 1) -> str:
        roles = layered(policy=1, parent=None)
        roles.assign("policy", ["parent", "policy"])
        first = next(roles.adapter_parameters("parent"))
        first.data *= scale
        randomise(roles, "policy", seed=top)
        assert find_trunk(roles, "policy") == ""
        return digest_below(roles, "policy")

    assert key() == key() == key(top=2) != key(scale=2.0)


# ---- beside the rest -------------------------------------------------------------------------------------------------


def test_a_merged_copy_copies_what_its_role_adapts() -> None:
    """With a policy on the top layer and a value role on all, the copy for sampling shares the lower layer's
    matrices."""
    roles = layered(policy=1, value=None)
    merged = MergedCopy(roles, "policy")
    merged.merged()
    assert len(merged.matrices) == 7
    shared = {p.data_ptr() for p in roles.base.parameters()}
    copied = {name for name, p in merged.model.named_parameters() if p.data_ptr() not in shared}
    assert len(copied) == 7 and all(".layers.1." in name for name in copied)
    with torch.no_grad(), roles.use("value"):  # another role being active does not reach into the copy
        decoder: Any = merged.model.base_model
        batch = pack(pairs(2))
        got = decoder(input_ids=batch.input_ids, position_ids=batch.position_ids, layout=batch.layout, use_cache=False)[
            0
        ][0]
        torch.testing.assert_close(got, roles.hidden_as("policy", batch), atol=1e-6, rtol=1e-6)
        assert (got - roles.hidden_as("value", batch)).abs().max() > 1e-2


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_a_stored_adapter_is_a_plain_peft_folder(tmp_path: Path) -> None:
    """PEFT itself loads an adapter on the top layer, with the same logits; it names the layers, and holds no others."""
    from peft import PeftModel

    from align.packed.attention import select_native_attention

    roles = layered(policy=1)
    roles.save_adapter("policy", tmp_path / "adapter", "base")
    plain = make_base()
    select_native_attention(plain)
    ids = torch.tensor([pairs(1)[0].sequences[0]])
    bare = plain(input_ids=ids).logits
    model = PeftModel.from_pretrained(plain, str(tmp_path / "adapter"))
    config: Any = model.peft_config["default"]
    assert config.layers_to_transform == [1] and config.layers_pattern == "layers"
    example = Example((ids[0].tolist(),), ([False] + [True] * (ids.shape[1] - 1),))
    with torch.no_grad():
        got, want = model(input_ids=ids).logits[0], roles.head(roles.hidden_as("policy", pack([example])))
    torch.testing.assert_close(got, want, atol=1e-6, rtol=1e-6)
    assert (bare[0] - want).abs().max() > 1e-2
    again = Roles(make_base())
    again.load_adapter("policy", tmp_path / "adapter")
    assert len(list(again.adapter_parameters("policy"))) == 14
    assert probe(trial(again.base))[0] and isinstance(layers_of(again.base)[1], nn.ModuleList)
