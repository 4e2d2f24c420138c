"""Every stage on bases in 4 and 8 bits: really quantised, never changed, with the gradients of the weights that they
stand for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from align import dpo, measures, merge, models, packed, ppo, reward, sft
from align.adapters.targets import lora_config
from align.data.examples import Example
from align.models.roles import Roles
from align.stage.workbench import Workbench
from align.store import Artifact, Store
from tests.conftest import Pipeline

COMMON = {
    "precision": "fp32",
    "threads": 1,
    "max_steps": 2,
    "batch_size": 8,
    "logging_steps": 1,
    "max_length": 96,
    "warmup_ratio": 0.0,
}
LAYERS = {"nf4": ("Linear4bit", torch.uint8), "int8": ("Linear8bitLt", torch.int8)}


def fingerprint(roles: Roles) -> str:
    """Of every byte of the base, the scales of its quantised weights included."""
    found = hashlib.sha256()
    for name, parameter in roles.base_parameters():
        found.update(name.encode())
        scales = [
            getattr(parameter, "SCB", None),
            *(vars(parameter.quant_state).values() if hasattr(parameter, "quant_state") else ()),
        ]
        for tensor in [parameter.data, *scales]:
            if isinstance(tensor, Tensor):
                found.update(
                    tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else repr(tensor).encode()
                )
    return found.hexdigest()


@dataclass
class Quantised:
    """Stages run on one quantised base, the roles that each loaded, and the base's fingerprint before and after
    each."""

    kind: str
    made: dict[str, Artifact]
    roles: dict[str, Roles]
    before: dict[str, str]
    after: dict[str, str]
    store: Store
    base: Path


@pytest.fixture(scope="module", params=["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def quantised(
    request: pytest.FixtureRequest, trained: Pipeline, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Quantised]:
    folder = tmp_path_factory.mktemp(request.param)
    base = trained.store.materialise(trained.made["pretrain"], folder / "base", "model")
    store = Store(folder / "store")
    found = Quantised(request.param, {}, {}, {}, {}, store, base)
    original = Workbench.load_base

    def load_base(bench: Workbench, in_fp32: bool = False) -> Roles:
        roles = original(bench, in_fp32)
        if bench.question.stage.name not in found.roles:  # merge loads it a second time, to compare with
            name = bench.question.stage.name
            found.roles[name], found.before[name] = roles, fingerprint(roles)
        return roles

    data = {name: trained.recipe.parent / f"{name}.jsonl" for name in ("sft", "pairs", "prompts")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Workbench, "load_base", load_base)
        stages = {
            "sft": (
                sft,
                {"base": {"model": str(base), "quantize": request.param}, "data": data["sft"], "learning_rate": 0.01},
            ),
            "reward": (
                reward,
                {"parent": "sft", "data": data["pairs"], "centre_samples": 4, "centre_max_new_tokens": 4},
            ),
            "dpo": (dpo, {"parent": "sft", "data": data["pairs"], "parent_adapter": "stack", "learning_rate": 0.01}),
            "ppo": (
                ppo,
                {
                    "parent": "sft",
                    "reward": "reward",
                    "trust_reward": True,
                    "data": data["prompts"],
                    "rollout_size": 8,
                    "max_new_tokens": 4,
                    "ppo_epochs": 2,
                },
            ),
            "merge": (merge, {"parent": "dpo"}),
        }
        for name, (module, values) in stages.items():
            common = {"precision": "fp32", "threads": 1} if name == "merge" else COMMON
            found.made[name] = module.run(module.Config(**common, **values), store)  # type: ignore[attr-defined]
            found.after[name] = fingerprint(found.roles[name])
    yield found


def test_every_stage_runs_and_leaves_the_base_alone(quantised: Quantised) -> None:
    assert list(quantised.made) == ["sft", "reward", "dpo", "ppo", "merge"]
    assert {a.base["quantize"] for a in quantised.made.values() if a.base} == {quantised.kind}
    stages = ["sft", "reward", "dpo", "ppo"]
    assert [quantised.after[s] for s in stages] == [quantised.before[s] for s in stages]
    assert len({quantised.before[s] for s in stages}) == 1 and quantised.before["merge"] != quantised.before["sft"]
    # Negative control: one byte of one layer shows.
    roles = quantised.roles["sft"]
    weight = next(p for n, p in roles.base_parameters() if p.dtype == LAYERS[quantised.kind][1])
    weight.data[0, 0] ^= 1
    assert fingerprint(roles) != quantised.before["sft"]
    weight.data[0, 0] ^= 1
    assert fingerprint(roles) == quantised.before["sft"]


def test_weights_are_quantised(quantised: Quantised) -> None:
    """All 14 linear layers of the blocks, the head not; after merging they are plain matrices again."""
    name, dtype = LAYERS[quantised.kind]
    layers = [
        m
        for m in quantised.roles["ppo"].base.modules()
        if type(m).__name__ == name and "lora" not in type(m).__module__
    ]
    assert len(layers) == 14 and {m.weight.dtype for m in layers} == {dtype}
    assert not [m for m in quantised.roles["merge"].base.modules() if type(m).__name__ == name]


def test_training_starts_where_it_should(quantised: Quantised) -> None:
    """The invariants of step 0 hold on quantised bases too."""
    from tests.stages.helpers import history

    first = {name: history(quantised.made[name], quantised.store)[0] for name in ("reward", "dpo", "ppo")}
    assert first["reward"]["loss"] == pytest.approx(0.693147, abs=1e-6)
    assert first["dpo"]["loss"] == pytest.approx(0.693147, abs=1e-5) and first["dpo"][
        "rewards/margins"
    ] == pytest.approx(0, abs=1e-5)
    assert first["ppo"]["ratio"] == pytest.approx(1, abs=1e-5) and first["ppo"]["kl"] == pytest.approx(0, abs=1e-5)


def test_merged_equals_adapters(quantised: Quantised) -> None:
    """Merged into the dequantised base nothing drifts, and the exported model's logits are those of what was
    trained."""
    metrics = quantised.made["merge"].metrics
    assert metrics["verdict"] == "equal" and metrics["logit_max_abs_diff"] < 1e-4 and metrics["greedy_agreement"] == 1.0
    first, second = merge.verdict_lines(quantised.made["merge"])
    assert first.startswith(f"verdict: equal to the adapters on the dequantised {quantised.kind} base (KL ")
    assert second.startswith(f"against the {quantised.kind} model as it was trained: KL ")
    # int8 rounds activations while it computes: the model as it was trained is further away than the dequantised one,
    # and that is told
    assert (metrics["quantised/kl"] > 100 * max(metrics["kl"], 1e-12)) == (quantised.kind == "int8")
    merged = Roles(
        models.base.load_base(
            quantised.store.folder(quantised.made["merge"]) / "model", quantize=None, dtype=torch.float32
        )
    )
    plain = Roles(models.base.load_base(quantised.base, quantize=None, dtype=torch.float32))
    live = quantised.roles["dpo"]
    example = [Example((list(range(5, 29)),), ([False] + [True] * 23,))]
    logits = [
        measures.logits.probe_logits(*of, example) for of in ((live, "policy"), (merged, "base"), (plain, "base"))
    ]
    # int8 also rounds activations while it computes, which no merged model does
    bound = {"nf4": 1e-4, "int8": 2e-2}[quantised.kind]
    scale = logits[0].abs().max()
    assert (logits[1] - logits[0]).abs().max() / scale < bound
    assert (logits[2] - logits[0]).abs().max() / scale > 2 * bound  # negative control: the base without its adapters


def test_a_model_of_the_store_as_a_quantised_base(quantised: Quantised, pipeline: Pipeline) -> None:
    """By name or digest it trains to the bytes that the same files in a folder give, and adapters on it find it
    again."""
    model = pipeline.made["pretrain"]
    data = {name: pipeline.recipe.parent / f"{name}.jsonl" for name in ("sft", "pairs")}
    for name in ("tiny/pretrain", model.short):
        base = {"model": name, "quantize": quantised.kind}
        made = sft.run(sft.Config(**COMMON, base=base, data=data["sft"], learning_rate=0.01), pipeline.store)  # type: ignore[arg-type]
        wanted = {
            "model": f"artifact:{model.digest}",
            "revision": None,
            "digest": model.digest,
            "quantize": quantised.kind,
        }
        assert made.base == wanted and not made.parents
    weights = "adapters/0/adapter_model.safetensors"
    assert made.files[weights] == quantised.made["sft"].files[weights] != pipeline.made["sft"].files[weights]
    rewarded = reward.run(
        reward.Config(**COMMON, parent=made.digest, data=data["pairs"], centre_samples=4, centre_max_new_tokens=4),  # type: ignore[arg-type]
        pipeline.store,
    )
    assert rewarded.base == made.base


def with_adapter(base: Path, quantize: str | None, dequantise: bool = False) -> Roles:
    roles = Roles(models.base.load_base(base, quantize=quantize, dtype=torch.float32, dequantise=dequantise))
    roles.add_adapter("policy", lora_config(4, 8, "all-linear", 0.0, roles.base))
    generator = torch.Generator().manual_seed(0)
    for parameter in roles.adapter_parameters("policy"):
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    return roles


def gradient(roles: Roles) -> Tensor:
    """Of two losses with two passes without gradient around them, as between a rollout and its steps."""
    examples = [Example((list(range(5 + i, 40 + i)),), ([False] * 5 + [True] * 30,), shared=5) for i in range(3)]
    batch = packed.pack.pack(examples)
    for _ in range(2):
        with torch.no_grad():
            roles.logprobs("policy", batch)
        roles.base.eval()
        (-roles.logprobs("policy", batch).sum() / 90).backward()
    return torch.cat([p.grad.flatten() for p in roles.trainable().values() if p.grad is not None])


def test_nf4_gradients_are_those_of_the_dequantised_base(trained: Pipeline) -> None:
    base = trained.store.folder(trained.made["pretrain"]) / "model"
    truth = gradient(with_adapter(base, "nf4", dequantise=True))
    ours = gradient(with_adapter(base, "nf4"))
    assert ((ours - truth).norm() / truth.norm()).item() < 1e-5
    unquantised = gradient(with_adapter(base, None))
    # negative control: the original weights give others
    assert ((unquantised - truth).norm() / truth.norm()).item() > 1e-3


def test_4_bit_weights_are_never_repacked(trained: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the CPU has bf16 units bitsandbytes repacks weights in place for inference; it must not even where it says
    it could."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = trained.store.folder(trained.made["pretrain"]) / "model"
    roles = with_adapter(base, "nf4")
    layers = [m for m in roles.base.modules() if hasattr(m, "support_avx512bf16_for_cpu")]
    assert len(layers) == 14 and not any(m.support_avx512bf16_for_cpu for m in layers)
    from bitsandbytes.nn import Linear4bit

    assert Linear4bit(64, 64).support_avx512bf16_for_cpu  # negative control: left alone, they would be


def test_repacking_would_break_training(trained: Pipeline) -> None:
    """Negative control on CPUs that can: with repacking switched on again, a pass without adapters changes the base or
    its gradients."""
    from bitsandbytes.functional import has_avx512bf16

    if not has_avx512bf16():
        pytest.skip("this CPU has no bf16 units, so bitsandbytes has nothing to repack for")
    base = trained.store.folder(trained.made["pretrain"]) / "model"
    roles = with_adapter(base, "nf4")
    before = fingerprint(roles)
    for module in roles.base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = True
    try:
        with torch.no_grad():
            roles.hidden_as("base", packed.pack.pack([Example(([5, 6, 7],), ([False, True, True],))]))
        found: Tensor | None = gradient(roles)
    except Exception:  # whatever bitsandbytes raises where it has no backward
        found = None
    truth = gradient(with_adapter(base, "nf4", dequantise=True))
    wrong = found is None or ((found - truth).norm() / truth.norm()).item() > 1e-3
    assert wrong or fingerprint(roles) != before
