"""The GPU benchmark, on a CPU with a tiny Llama: every stage runs, and its FLOPs are those of the products it
computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from torch.utils._python_dispatch import TorchDispatchMode

from align.packed.flex import visible
from align.packed.pack import pack
from tests.benchmarks import gpu, gpu_worker, trl_worker
from tests.benchmarks.scaling import flops, seen
from tests.models.models import pairs

TINY = (
    "--layers 2 --hidden 64 --intermediate 96 --heads 4 --kv-heads 2 --vocabulary 4200 --records 12 --batch 4 "
    "--at-a-time 2"
)
WORDS = f"{TINY} --rollout 8 --new-tokens 6 --tokens 512 --max-length 400 --threads 1 --rows hh".split()


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `gpu` hands to a worker, but stage and dtype."""
    args = gpu.parsed(WORDS)
    folder = tmp_path_factory.mktemp("gpu") / "hh"
    return gpu.job_of("hh", args, folder) | {"folder": str(folder)}


@pytest.fixture
def workers_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers can run in this process: their clocks leave with the test, and the machine's rate is not measured."""
    monkeypatch.setattr(transformers.trainer, "DEFAULT_CALLBACKS", [*transformers.trainer.DEFAULT_CALLBACKS])
    monkeypatch.setattr(gpu_worker, "matmul_peak", lambda dtype: 1e12)


@pytest.mark.usefixtures("workers_here")
@pytest.mark.parametrize("dtype", ["fp32", "nf4"])
@pytest.mark.parametrize("stage", gpu.STAGES)
def test_every_stage_runs(stage: str, dtype: str, job: dict[str, Any]) -> None:
    found = gpu_worker.measure(job | {"stage": stage, "dtype": dtype})
    assert found["share_of_peak"] == found["flops_per_second"] / 1e12
    assert found["flops_per_second"] == pytest.approx(found["rows_per_second"] * found["flops_per_row"])
    assert 0 < found["tokens_per_second"] > found["rows_per_second"]
    assert set(gpu.line(found | {"stage": stage, "dtype": dtype, "rows": "hh"}).split()) >= {stage, dtype}


@pytest.mark.usefixtures("workers_here")
@pytest.mark.filterwarnings("ignore")  # of TRL
@pytest.mark.parametrize(("stage", "dtype"), [("sft", "nf4"), ("reward", "fp32"), ("dpo", "nf4")])
def test_the_peer_takes_the_same_job(
    stage: str, dtype: str, job: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Its trainer runs, and reads the same number of tokens as ours, which the command insists on."""
    job = job | {"stage": stage, "dtype": dtype}
    ours = gpu_worker.measure(job)
    trl_worker.main(job | {"variant": "plain", "rows": f"{job['folder']}/rows.jsonl"})
    theirs = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (
        theirs["sequence_tokens"] == ours["sequence_tokens"] and theirs["rows"] == 4 and theirs["wall_ms_per_row"] > 0
    )


class Products(TorchDispatchMode):
    """Adds up the FLOPs of every matrix product that is computed, attention's left out. (FlopCounterMode fails where a
    gradient is taken within a forward, as the frozen head's is.)"""

    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_):
            a, b = args[-2:]
            self.flops += 2 * a.shape[0] * a.shape[1] * b.shape[1]
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_flops_are_those_of_the_products(job: dict[str, Any], checkpointing: bool) -> None:
    """A counter at the products of one forward and backward. The first layer's q, k and v need no gradient of their
    input, unless with checkpointing; the definition counts it in any case. It does not count what checkpointing
    computes again."""
    roles = gpu_worker.make_roles(job | {"stage": "sft", "dtype": "fp32"})
    if checkpointing:
        roles.enable_activation_checkpointing()
    groups = pairs(4)
    batch = pack(groups)
    with Products() as products:
        roles.logprobs("policy", batch).sum().backward()
    tokens, d, q, kv, rank = batch.input_ids.numel(), 64, 64, 32, gpu_worker.RANK
    first = 2 * tokens * (d * (q + 2 * kv) + 3 * rank * d)
    attention = 12 * seen(groups) * q * 2
    counted = flops(roles, groups)
    forward = 2 * tokens * 2 * (d * (q + 2 * kv) + q * d + 3 * d * 96) + 2 * tokens * sum(
        p.numel() for p in roles.adapter_parameters("policy")
    )
    unread = tokens - len(batch.rows)
    forward -= 2 * unread * (3 * d * 96 + 3 * rank * (d + 96))  # the last feed-forward
    assert products.flops == counted - attention + (forward if checkpointing else -first)
    assert (
        flops(roles, groups, head=False) == counted - 4 * sum(sum(s) for e in groups for s in e.supervised) * 64 * 4200
    )
    assert (
        flops(roles, groups, adapter=None, backward=False) * 2
        == flops(roles, groups, adapter=None) - 4 * seen(groups) * q * 2
    )


def test_seen_pairs_are_those_of_the_mask() -> None:
    groups = pairs(6)
    layout = pack(groups).layout
    at = torch.arange(sum(e.tokens for e in groups))
    mask = visible(layout, None, torch.device("cpu"))(None, None, at[:, None], at[None])
    assert seen(groups) == int(mask.sum()) < int((at[:, None] >= at).sum())


def test_verdicts() -> None:
    points = [
        {"stage": "sft", "dtype": "bf16", "share_of_peak": 0.56},
        {"stage": "ppo", "dtype": "nf4", "peak_bytes": 25 << 30},
        {"stage": "dpo", "dtype": "nf4", "over_trl": 9.0},
    ]
    assert [line.split()[-1] for line in gpu.verdicts(points)] == ["reached", "run", "missed"]


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both sides in processes of their own, in both dtypes that a CPU computes well.

    On a 4-bit base TRL casts a reward model's head to bf16, which fails beside a CPU's fp32; the command says so and
    goes on."""
    gpu.main([*WORDS, "--dtypes", "fp32", "nf4", "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    ran = {(p["stage"], p["dtype"]): p for p in found["points"]}
    assert len(ran) == 8 and all("error" not in p for p in ran.values())
    failed = {point: p["trl"]["error"] for point, p in ran.items() if "error" in p.get("trl", {})}
    assert list(failed) == [("reward", "nf4")] and "c10::BFloat16" in failed["reward", "nf4"]
    assert all(p["over_trl"] > 0 for point, p in ran.items() if point[0] != "ppo" and point not in failed)
    out = capsys.readouterr().out
    assert "DPO, bf16" in out and "TRL failed: RuntimeError" in out and found["shape"]["hidden_size"] == 64
