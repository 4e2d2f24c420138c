"""The memory plan: bytes counted by hand and by autograd, recipes that fit and do not, proposals that hold, and no
torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from align import dpo, evaluate, grpo, memory, merge, pairs, ppo, pretrain, reward, sft
from align.ground.errors import InputError
from align.memory import budget, parts
from align.memory.shapes import Shape, weights_in_files
from align.stage import catalogue
from tests.conftest import ROOT, Pipeline
from tests.test_recipes import fake_hub, own_data

GIB = 1 << 30
TINY = Shape("llama", hidden=8, layers=2, heads=2, kv_heads=1, head_size=4, intermediate=16, vocabulary=32, tied=False)
LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "dtype": "bfloat16",
}


MODULES = {m.__name__.split(".")[-1]: m for m in (dpo, evaluate, grpo, merge, pairs, ppo, pretrain, reward, sft)}
NEEDED: dict[str, dict[str, Any]] = {
    "ppo": {"reward": "none"},
    "grpo": {"judges": {"right": "judge.py:score"}},
    "pairs": {"judge": "judge.py:score"},
}


def footprint(kind: str) -> memory.Footprint:
    found = catalogue.stage_of(kind).footprint
    assert found is not None
    return found


def setup(kind: str = "sft", shape: Shape = TINY, **settings: Any) -> memory.Setup:
    """A stage on a fresh base, on a GPU in bf16."""
    given = {"base": "none", "data": "none"} | NEEDED.get(kind, {}) | settings
    inputs = {key: given.pop(key) for key in ("rewards", "parent") if key in given}
    inputs.setdefault("rewards", ((1000,),) if kind == "ppo" else ())
    quantize = given.pop("quantize", None)
    return memory.Setup(footprint(kind), MODULES[kind].Config(**given), shape, quantize, "cuda", True, **inputs)


def parts_of(planned: memory.Plan, phase: str) -> dict[str, int]:
    (found,) = [p for p in planned.phases if p.name == phase]
    return {part.name: part.bytes for part in found.parts}


def llama_8b() -> Shape:
    shape = Shape.from_config(LLAMA_8B)
    assert isinstance(shape, Shape)
    return shape


# ---- bytes -----------------------------------------------------------------------------------------------------------


def test_weights_by_hand():
    """One layer: q and o 8x8, k and v 8x4, gate, up and down 8x16: 576. Beside two of them: embeddings and head 32x8,
    five norms."""
    assert TINY.linear_weights == 2 * 576
    assert TINY.other_weights == 2 * 32 * 8 + 5 * 8
    assert parts.base_weights(TINY, None, 4) == 4 * (2 * 576 + 552)
    # int8: one byte a weight and a 4-byte scale for each output: 8 + 4 + 4 + 8 + 16 + 16 + 8 a layer
    assert parts.base_weights(TINY, "int8", 2) == 2 * 576 + 2 * 64 * 4 + 2 * 552
    # NF4: half a byte, 1/64 byte for the scale of 64 weights, 4 bytes for 64 * 256 weights
    assert parts.base_weights(TINY, "nf4", 2) == round(1152 / 2 + 1152 / 64 + 4 * 1152 / 16384) + 2 * 552


def test_adapters_by_hand():
    """Rank 4 on all linears: 4 * (16 + 12 + 12 + 16 + 24 + 24 + 24) weights a layer; AdamW: weight, gradient, two
    moments."""
    planned = memory.plan(setup(adapter={"rank": 4}))
    assert {part.name: part.bytes for part in planned.peak.parts}[
        "adapter of policy, gradients, optimizer"
    ] == 2 * 4 * 128 * 16
    only = memory.plan(setup(adapter={"rank": 4, "targets": ["q_proj"]}, optimizer="adamw_8bit"))
    assert {part.name: part.bytes for part in only.peak.parts}[
        "adapter of policy, gradients, optimizer"
    ] == 2 * 4 * 16 * 10


def test_the_top_layers_alone():
    """Of two layers the upper one: half the adapter, activations and merged copy; what enters it is kept of 2 x 8
    samples of 100 tokens."""
    c = {"max_length": 100, "max_new_tokens": 20, "batch_size": 8, "rollout_size": 16}
    plans = [memory.plan(setup("grpo", group_size=2, adapter={"rank": 4, **more}, **c)) for more in ({}, {"layers": 1})]
    every, top = (parts_of(plan, "forward") for plan in plans)
    assert top["adapter of policy, gradients, optimizer"] * 2 == every["adapter of policy, gradients, optimizer"]
    sampled = [parts_of(plan, "sampling")["merged copy for sampling"] for plan in plans]
    assert sampled[1] * 2 == sampled[0] and "merged copy for sampling" not in every
    kept = parts.kept_per_token(TINY, 4, size=2, fused=True, by_matmul=False)
    assert every["activations"] - top["activations"] == 4 * (80 + 2 * 20) * kept
    assert (
        top["rows from the frozen layers"] == 8 * (80 + 2 * 20) * 8 * 2 and "rows from the frozen layers" not in every
    )
    off = parts_of(
        memory.plan(setup("grpo", group_size=2, adapter={"rank": 4, "layers": 1}, trunk_cache="off", **c)), "forward"
    )
    assert "rows from the frozen layers" not in off


def test_a_value_head_on_the_trunk_has_no_activations():
    own, trunk = (memory.plan(setup("ppo", value=value)) for value in ("adapter", "trunk"))
    assert parts_of(trunk, "forward")["activations"] == parts_of(own, "forward of policy")["activations"]
    assert parts_of(own, "forward of value")["activations"] > 0 and not [p for p in trunk.phases if "value" in p.name]
    own, trunk = parts_of(own, "forward of policy"), parts_of(trunk, "forward")
    assert "adapter of value, gradients, optimizer" in own and "adapter of value, gradients, optimizer" not in trunk


def test_peak_is_the_largest_phase():
    planned = memory.plan(setup("ppo"))
    assert {phase.name for phase in planned.phases} == {"load", "prompts", "sampling", "measuring"} | {
        f"{way} of {role}" for way in ("forward", "backward") for role in ("policy", "value")
    }
    assert (
        planned.peak.bytes
        == max(phase.bytes for phase in planned.phases)
        < sum(phase.bytes for phase in planned.phases)
    )
    assert [part.bytes for part in planned.largest()] == sorted(
        (part.bytes for part in planned.peak.parts), reverse=True
    )[:3]


@pytest.mark.parametrize(("dtype", "kv_heads"), [("float32", 4), ("float32", 2), ("bfloat16", 4)])
def test_kept_activations_are_what_autograd_keeps(dtype: str, kv_heads: int):
    """The bytes of all storages that one layer more saves for the backward, seen by autograd's own hooks, equal the
    count."""
    seen = [saved_bytes(dtype, kv_heads, layers) for layers in (2, 3)]
    shape = Shape("llama", 64, 1, 4, kv_heads, 16, 176, 500)
    fp32 = dtype == "float32"
    size = 4 if fp32 else 2
    per_token = lambda rank: parts.kept_per_token(shape, rank, size=size, fused=True, by_matmul=not fp32)  # noqa: E731
    counted = lambda rank: 256 * per_token(rank) + parts.factors_copied(shape, rank, size)  # noqa: E731
    assert seen[1] - seen[0] == counted(8)
    assert counted(9) != counted(8)


@pytest.mark.parametrize("bf16", [False, True])
def test_kept_activations_of_full_training_are_what_autograd_keeps(bf16: bool):
    """As above with every weight in training; in bf16 autocast also keeps each layer's matrices in bf16, which the plan
    counts apart."""
    seen = [saved_bytes("float32", 4, layers, full=True, autocast=bf16) for layers in (2, 3)]
    shape = Shape("llama", 64, 1, 4, 4, 16, 176, 500)
    copies = 2 * shape.linear_weights if bf16 else 0
    counted = parts.kept_in_full_training(shape, bf16=bf16, by_matmul=bf16)
    assert (seen[1] - seen[0] - copies) / 256 == counted
    assert counted != parts.kept_per_token(shape, 0, size=2 if bf16 else 4, fused=True, by_matmul=bf16)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_last_layer_keeps_as_much_less_as_is_counted(dtype: str):
    """Of 256 rows 128 are read: in two sequences the 64 that predict what counts. Which ones is kept too, as whole
    numbers."""
    from align.packed import forward

    every, few = (saved_bytes(dtype, 4, 2, few=few) for few in (False, True))
    spared = parts.kept_by_feed_forward(
        Shape("llama", 64, 1, 4, 4, 16, 176, 500), 8, size=4 if dtype == "float32" else 2, fused=True
    )
    assert every - few == parts.unread_rows(256, 128) * spared - 8 * 128
    assert parts.unread_rows(256, 240) == 0 and parts.MOST == forward.MOST


def saved_bytes(
    dtype: str, kv_heads: int, layers: int, full: bool = False, autocast: bool = False, few: bool = False
) -> int:
    """Bytes that a packed row of two sequences of 128 tokens saves, weights not counted; with an adapter, or `full` in
    training; `few` where only rows that count are read."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from align.adapters.targets import lora_config
    from align.data.examples import Example
    from align.models.base import prepare
    from align.models.roles import Roles
    from align.packed.pack import pack

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=176,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=256,
    )
    roles = Roles(prepare(LlamaForCausalLM(config).to(getattr(torch, dtype))))
    if full:
        roles.assign("policy", [])
        roles.train_base()
    else:
        roles.add_adapter("policy", lora_config(8, 16, "all-linear", 0.0, roles.base))
        roles.assign("policy", ["policy"])
        roles.train_only("policy")
    weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    examples = [Example((torch.randint(3, 500, (128,)).tolist(),), ([False] * 64 + [True] * 64,)) for _ in range(2)]
    storages: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = tensor
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        batch = pack(examples)
        roles.hidden_as("policy", batch, batch.rows if few else None)
    return sum(tensor.untyped_storage().nbytes() for tensor in storages.values())


def test_shapes_of_a_real_folder(trained: Pipeline, tmp_path: Path):
    """config.json and the headers of weight files agree on how many weights there are."""
    folder = trained.store.folder(trained.made["pretrain"]) / "model"
    shape = Shape.from_config(json.loads((folder / "config.json").read_text()))
    assert isinstance(shape, Shape) and not shape.is_estimate
    assert weights_in_files(folder) == shape.weights
    assert weights_in_files(tmp_path) is None
    assert Shape.from_config({"model_type": "llama", "hidden_size": 8}) == "num_hidden_layers"
    bloom = Shape.from_config({"model_type": "bloom", "n_embd": 8, "n_layer": 1, "n_head": 2, "vocab_size": 9})
    assert isinstance(bloom, Shape) and bloom.is_estimate


# ---- kinds -----------------------------------------------------------------------------------------------------------


def test_every_kind_of_stage_has_a_plan():
    assert all(catalogue.stage_of(kind).footprint for kind in catalogue.KINDS)


def test_full_training_by_hand():
    """1,704 weights, each with gradient and two moments in fp32; in bf16 matrices and head once more in 2 bytes. An
    adapter: as SFT."""
    found = parts_of(memory.plan(setup("pretrain")), "forward")
    assert found["model in fp32"] == 4 * 1704 and found["gradients, optimizer"] == 12 * 1704
    assert found["weights in bf16"] == 2 * (1152 + 32 * 8) and found["gradient of the head"] == 4 * 32 * 8
    adapter, wanted = (
        memory.plan(setup(kind, **extra)).peak.bytes for kind, extra in (("pretrain", {"method": "lora"}), ("sft", {}))
    )
    assert adapter > wanted  # of a conversation half counts, of a text all
    whole, half = (
        parts_of(memory.plan(setup(kind, **extra)), "forward")
        for kind, extra in (("pretrain", {"method": "lora"}), ("sft", {}))
    )
    assert {k: v for k, v in whole.items() if k != "activations"} == {
        k: v for k, v in half.items() if k != "activations"
    }


def test_groups_share_their_prompt():
    """Two groups of 80 tokens and 4 x 20 of answers make a row of 320, half of which the head takes; each answer alone
    would make 800."""
    c = {"max_length": 100, "max_new_tokens": 20, "batch_size": 8, "rollout_size": 8}
    found = parts_of(memory.plan(setup("grpo", group_size=4, **c)), "forward")
    kept = parts.kept_per_token(TINY, 16, size=2, fused=True, by_matmul=False)
    spared = parts.kept_by_feed_forward(TINY, 16, size=2, fused=True)
    assert found["activations"] == 2 * 320 * kept - 160 * spared
    # logits in fp32, and in bf16 before and after; of each row hidden states and their gradient in bf16, and two sums
    # in fp32
    assert found["logits"] == 2 * 4 * 160 * 32 + 160 * 8 * (2 * 2 + 2 * 4)
    alone = parts_of(memory.plan(setup("ppo", **c)), "forward of policy")
    assert alone["activations"] == 2 * 800 * kept - 640 * spared
    assert "adapter of value, gradients, optimizer" not in found and "adapter of value, gradients, optimizer" in alone


def test_rewards_and_the_value_role():
    """Each reward model lies there; the value role copies the first of them, else the parent, else it is fresh."""
    two = parts_of(memory.plan(setup("ppo", reward=["a", "b"], rewards=((1000,), (500, 10)))), "forward of value")
    assert (two["adapter of reward"], two["adapter of reward 2"]) == (4000, 2040)
    assert two["adapter of value, gradients, optimizer"] == 16 * 1000
    judged = {"reward": None, "judges": {"right": "judge.py:score"}, "rewards": ()}
    after = parts_of(memory.plan(setup("ppo", **judged, parent=(700,))), "forward of value")
    assert after["adapter of value, gradients, optimizer"] == 16 * 700 and not any("reward" in name for name in after)
    at_start = parts_of(memory.plan(setup("ppo", **judged, adapter={"rank": 4})), "forward of value")
    assert at_start["adapter of value, gradients, optimizer"] == 16 * 4 * 128 * 2


def test_sampling_by_hand():
    """Prompts of 1,000 tokens and 4 answers of 24: 59 prompts at a time fill 65,536 tokens, each with keys and values
    of 4 numbers in 2 bytes and 2 layers. A limit of 10 prompts holds 10, and no copy is merged where there is no
    adapter."""
    found = parts_of(memory.plan(setup("pairs", max_new_tokens=24)), "sampling")
    assert found["keys and values"] == 59 * 1096 * 2 * 2 * 4 * 2 and "merged copy for sampling" not in found
    assert parts_of(memory.plan(setup("pairs", max_new_tokens=24)), "prompts")["keys and values"] == 59 * 1000 * 32
    limited = parts_of(memory.plan(setup("pairs", max_new_tokens=24, limit=10, parent=(500,))), "sampling")
    assert limited["keys and values"] == 10 * 1096 * 32 and limited["merged copy for sampling"] == 2 * 1152


def test_evaluation_holds_two_of_those_it_compares():
    config = evaluate.Config(compare=["a", "b", "c"], reward="r", data="none", max_new_tokens=24, limit=10)
    planned = memory.plan(
        memory.Setup(footprint("evaluate"), config, TINY, None, "cuda", True, (7,), ((50,),), ((7,), (100, 20), (9,)))
    )
    assert [phase.name for phase in planned.phases] == ["load", "prompts", "sampling", "measuring", "scoring"]
    assert (
        parts_of(planned, "sampling")["adapter of model"] == parts_of(planned, "scoring")["adapter of against"] == 480
    )
    assert parts_of(planned, "scoring")["adapter of reward"] == 200 and "adapter of reward" not in parts_of(
        planned, "sampling"
    )


# ---- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"), [("24GiB", 24 << 30), ("24GB", 24 * 10**9), ("800 MiB", 800 << 20), ("1.5gib", 3 << 29)]
)
def test_sizes(text: str, size: int):
    assert memory.parse_size(text) == size


@pytest.mark.parametrize("text", ["", "24", "lots", "24 apples", "0GiB", "-1GiB", "GiB"])
def test_sizes_that_are_none(text: str):
    with pytest.raises(InputError, match="--memory takes a size such as 24GiB"):
        memory.parse_size(text)


@pytest.mark.parametrize("kind", ["sft", "dpo", "ppo"])
@pytest.mark.parametrize("budget", [16, 20, 24, 40])
def test_proposals_fit(kind: str, budget: int):
    """Every proposal, put into the settings, fits by the same plan; where there is none, not even the floor fits."""
    asked = setup(kind, llama_8b())
    found = memory.proposals(asked, budget * GIB)
    for choice in found:
        config = asked.config.model_copy(update={k: v for k, v in choice.settings.items() if k != "base.quantize"})
        again = memory.plan(
            memory.Setup(
                asked.footprint,
                config,
                asked.shape,
                choice.settings.get("base.quantize"),
                "cuda",
                True,
                rewards=asked.rewards,
            )
        )
        assert again.peak.bytes == choice.plan.peak.bytes and memory.fits(again, budget * GIB)
    if not found:
        assert memory.fits(memory.plan(asked), budget * GIB) or not memory.fits(memory.floor(asked).plan, budget * GIB)


def test_proposals_are_the_smallest_change():
    """Rows are cut in half as often as needed, and once less does not fit."""
    asked = setup(shape=llama_8b(), tokens_per_microbatch=16384, batch_size=64, max_length=512)
    budget = 40 * GIB
    settings = memory.proposals(asked, budget)[0].settings
    assert list(settings) == ["tokens_per_microbatch"]
    twice = asked.config.model_copy(update={"tokens_per_microbatch": settings["tokens_per_microbatch"] * 2})
    assert not memory.fits(memory.plan(memory.Setup(footprint("sft"), twice, asked.shape, None, "cuda", True)), budget)


def test_smaller_rollouts_are_whole_groups_and_steps():
    """Each of them is a setting that the stage accepts; 96 in steps of 32 has no half that is."""
    for group, rollout, batch in ((8, 128, 32), (16, 128, 32), (16, 96, 32), (3, 96, 48)):
        asked = setup("grpo", group_size=group, rollout_size=rollout, batch_size=batch)
        found = budget._rollouts(asked)
        for n in found:
            setup("grpo", group_size=group, rollout_size=n, batch_size=min(n, batch))
        assert (
            found == {8: [64, 32, 16, 8], 16: [64, 32, 16], 3: [48, 24, 12]}[group]
            if rollout == 128 or group == 3
            else not found
        )


def test_a_budget_that_is_too_small_is_explained():
    asked = memory.Question("cuda", 2 * GIB)
    text = memory.report({"big/sft": memory.plan(setup(shape=llama_8b()))}, asked)
    assert (
        "too large  for 2.0 GiB" in text
        and "the least with" in text
        and "base.quantize=nf4" in text
        and "base in nf4" in text
    )
    assert max(map(len, text.splitlines())) <= 100


def test_merging_needs_the_whole_model_in_fp32():
    """8.03e9 weights in fp32, and while the probe's text is sampled the layers' matrices, 6.98e9, once more."""
    config = merge.Config(parent="none")
    peak = memory.plan(memory.Setup(footprint("merge"), config, llama_8b(), None, "cuda", True, parent=(1,))).peak.bytes
    assert 55 * GIB < peak < 57 * GIB


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text((ROOT / "recipes/qlora-8b-24gb.yaml").read_text())
    own_data(tmp_path)
    fake_hub(tmp_path / "hub", "meta-llama/Llama-3.1-8B", LLAMA_8B)
    return tmp_path


def dry_run(project: Path, *words: str, code: int = 0) -> tuple[str, list[str], float]:
    """(what it printed, tensor libraries that were imported, CPU seconds) in a process of its own."""
    line = ["run", str(project / "recipe.yaml"), "--dry-run", "--store", str(project / "store"), *words]
    program = f"""
import json, resource, sys
from align.ground.terminal import guarded
from align.cli import dispatch
guarded(lambda: dispatch({line!r}))
used = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([sorted({{"peft"}} & set(sys.modules)), used.ru_utime + used.ru_stime]))
"""
    environment = os.environ | {"HF_HUB_CACHE": str(project / "hub"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == code, done.stderr
    if code:
        return done.stderr, [], 0.0
    *lines, found = done.stdout.splitlines()
    return "\n".join(lines), *json.loads(found)


def test_the_qlora_recipe_fits_a_24_gib_card_and_only_quantised(project: Path):
    text, heavy, seconds = dry_run(project, "--memory", "24GiB", "--device", "cuda")
    assert heavy == [] and seconds < 20.0  # of which transformers takes 4 to be imported, for the tokenizer
    below = text.partition("memory on the GPU")[2].splitlines()
    verdicts = {stage: verdict_of(below, stage) for stage in ("sft", "reward", "dpo", "ppo", "merged")}
    # merging is for main memory
    assert verdicts == {"sft": "fits", "reward": "fits", "dpo": "fits", "ppo": "fits", "merged": "too large"}
    # Negative control: the same without quantisation.
    plain, _, _ = dry_run(project, "--memory", "24GiB", "--device", "cuda", "--set", "base.quantize=null")
    below = plain.partition("memory on the GPU")[2].splitlines()
    assert verdict_of(below, "ppo") == verdict_of(below, "reward") == "too large"


def verdict_of(lines: list[str], stage: str) -> str:
    at = next(i for i, line in enumerate(lines) if line.startswith(f"qlora-8b/{stage} "))
    return next(word for line in lines[at:] for word in ("fits", "too large") if line.strip().startswith(f"{word} "))


def test_no_torch_is_seen_where_it_is(project: Path):
    """Negative control of the above: a program that imports numpy is seen."""
    program = "import sys, numpy; print(sorted({'torch', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "['numpy']"


def test_words_that_are_refused(project: Path):
    assert "--memory takes a size such as 24GiB" in dry_run(project, "--memory", "plenty", code=2)[0]
    assert "--device takes cpu or cuda" in dry_run(project, "--device", "tpu", code=2)[0]
