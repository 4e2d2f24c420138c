"""One measured run of an Align stage on a random model.  `python -m tests.benchmarks.gpu_worker JSON`; started by
`gpu`.

The stage's own settings, losses and advantages by the core that the stage uses (roles, step sources, trainer,
rollouts). Left out is what needs a model folder and a store: reading weights, checking that what was trained reloads
equal, committing it.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from align import dpo, ppo, reward, rl, sft, training
from align.adapters.targets import lora_config
from align.data.examples import Example
from align.data.formats import read_conversations, read_preferences, read_prompts
from align.data.records import Prompt
from align.measures.passes import flat_logprobs, with_column
from align.models.base import prepare
from align.models.heads import ScoreHead
from align.models.process import device
from align.models.roles import Roles
from align.packed.attention import NAME
from align.rendering.render import Renderer, load_renderer
from align.training.plan import Plan
from tests.benchmarks import random_model, rooms
from tests.benchmarks.clock import WARM_UP, Clock, now, resident
from tests.benchmarks.scaling import flops, gemm_rate

rooms.import_all()
CONFIGS: dict[str, Any] = {"sft": sft.Config, "reward": reward.Config, "dpo": dpo.Config, "ppo": ppo.Config}
RANK = 16


def matmul_peak(dtype: torch.dtype) -> float:
    """FLOPs per second of the fastest square matrix product found on this machine."""
    sizes = (4096, 8192, 16384) if device().type == "cuda" else (256,)
    return max(gemm_rate(n, n, dtype, repeats=10) for n in sizes)


def make_roles(job: dict[str, Any]) -> Roles:
    """The base with the stage's roles on it, all fresh; the reference is the bare base."""
    roles = Roles(prepare(random_model.make(job["shape"], job["dtype"], **job["special"])))
    if job["attention"] == "groups":
        roles.base.config._attn_implementation = NAME
    roles.assign("reference", [])
    for role in {"ppo": ("policy", "value", "reward")}.get(job["stage"], ("policy",)):
        roles.add_adapter(role, lora_config(RANK, 2 * RANK, "all-linear", 0.0, roles.base))
        headed = role != "policy" or job["stage"] == "reward"
        roles.assign(role, [role], ScoreHead(job["shape"]["hidden_size"]) if headed else None)
    heads = {"reward": ["policy"], "ppo": ["value"]}.get(job["stage"], [])
    roles.train_only("policy", *(["value"] if job["stage"] == "ppo" else []), heads=heads)
    return roles


def settings(job: dict[str, Any]) -> Any:
    fields: dict[str, Any] = dict(
        base="none",
        data="none",
        precision={torch.float32: "fp32", torch.bfloat16: "bf16"}[random_model.compute_dtype(job["dtype"])],
        batch_size=job["batch"],
        tokens_per_microbatch=job["tokens"],
        max_length=job["max_length"],
        activation_checkpointing=job["checkpointing"],
        learning_rate=1e-4,
        logging_steps=10_000,
        checkpoint_steps=0,
    )
    if job["stage"] == "ppo":
        fields |= {
            "reward": "none",
            "rollout_size": job["rollout"],
            "max_new_tokens": job["new_tokens"],
            "max_steps": job["ppo_steps"],
        }
    return CONFIGS[job["stage"]](**fields)


def supervised(job: dict[str, Any], roles: Roles, renderer: Renderer, data: Path) -> dict[str, Any]:
    """SFT, reward or DPO after `WARM_UP` steps; DPO with its share of the pass over the reference."""
    stage, config = job["stage"], settings(job)
    examples = (
        renderer.conversations(read_conversations(data))
        if stage == "sft"
        else renderer.preferences(read_preferences(data))
    )
    reference, trained_flops = (
        0.0,
        lambda groups: flops(roles, groups, head=stage != "reward", scores=stage == "reward"),
    )
    if stage == "dpo":
        start = now()
        examples = with_column(
            examples, "ref_logprobs", flat_logprobs(roles, "reference", examples, job["tokens"]).tobytes()
        )
        reference = (now()["wall"] - start["wall"]) / len(examples)
    loss = {
        "sft": sft.loss,
        "reward": lambda r, b: reward.loss(r, b, config.centre),
        "dpo": lambda r, b: dpo.loss(r, b, config),
    }[stage]
    plan = Plan(
        examples, batch_size=job["batch"], epochs=1, max_steps=None, tokens_per_microbatch=job["tokens"], seed=0
    )
    clock = Clock().install()
    training.trainer.fit(roles, loss, plan, config, title=stage, checkpoints=Path(tempfile.mkdtemp(dir=job["folder"])))
    timed = [examples[i] for step in range(WARM_UP, plan.steps) for i in plan.chosen(step)]
    work = trained_flops(timed)
    if stage == "dpo":
        work += flops(roles, timed, adapter=None, backward=False)
    seconds = clock.spent["wall"] + reference * len(timed)
    return figures(timed, seconds, work) | {
        "reference_seconds_per_row": reference,
        "sequence_tokens": sum(len(s) for e in examples for s in e.sequences),
    }


def figures(groups: list[Example], seconds: float, work: float) -> dict[str, Any]:
    """Rows, packed tokens (a shared prompt once) and FLOPs per second."""
    return {
        "rows_per_second": len(groups) / seconds,
        "tokens_per_second": sum(e.tokens for e in groups) / seconds,
        "flops_per_second": work / seconds,
        "flops_per_row": work / len(groups),
    }


def reinforced(job: dict[str, Any], roles: Roles, renderer: Renderer, data: Path) -> dict[str, Any]:
    """PPO after its first rollout: the updates' tokens and FLOPs, and beside them how long sampling and measuring
    took."""
    config = settings(job)
    prompts: list[Prompt] = list(read_prompts(data))
    reward_model = rl.rewards.by_model("reward", 1.0, roles, "reward", job["tokens"])
    source = rl.collect.Rollouts(
        roles,
        prompts,
        renderer.prompt_ids(prompts),
        renderer,
        config,
        rewards=[reward_model],
        advantages=lambda r: ppo.advantages(r, config),
        epochs=config.ppo_epochs,
        measure=lambda r, b, h: {"old_values": ppo.values(r, b, h, config)},
    )
    rollouts: list[tuple[float, float, list[Example]]] = []
    collect = source.collect

    def timed(index: int) -> Any:
        start = now()["wall"]
        out = collect(index)
        rollouts.append((start, now()["wall"], out[0]))
        return out

    source.collect = timed  # type: ignore[method-assign]
    loss = lambda r, b: ppo.parts(r, b, config)  # noqa: E731
    training.trainer.fit(
        roles, loss, source, config, title="ppo", checkpoints=Path(tempfile.mkdtemp(dir=job["folder"]))
    )
    ends = [start for start, _, _ in rollouts[1:]] + [now()["wall"]]
    after = list(zip(rollouts, ends, strict=True))[1:]
    updating = sum(end - collected for (_, collected, _), end in after)
    collecting = sum(collected - start for (start, collected, _), _ in after)
    examples = [e for (_, _, groups), _ in after for e in groups] * config.ppo_epochs
    work = flops(roles, examples) + flops(roles, examples, adapter="value", head=False)
    sampled = sum(sum(s) for e in examples for s in e.supervised) / config.ppo_epochs
    return figures(examples, updating, work) | {
        "rollout_seconds": collecting / len(after),
        "update_seconds": updating / len(after),
        "sampled_tokens_per_second": sampled / collecting,
    }


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """The figures of one stage."""
    cuda = device().type == "cuda"
    peak = matmul_peak(random_model.compute_dtype(job["dtype"]))
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    before = 0 if cuda else resident()
    start = time.perf_counter()
    roles = make_roles(job)
    renderer = load_renderer(Path(job["model"]), "plain", job["max_length"])
    found = {"load_seconds": time.perf_counter() - start, "attention": roles.base.config._attn_implementation}
    run = reinforced if job["stage"] == "ppo" else supervised
    found |= run(job, roles, renderer, Path(job["folder"]) / f"{job['stage']}.jsonl")
    return found | {
        "matmul_peak": peak,
        "share_of_peak": found["flops_per_second"] / peak,
        "peak_bytes": (torch.cuda.max_memory_allocated() if cuda else resident(peak=True)) - before,
    }


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))), flush=True)
