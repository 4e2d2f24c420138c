"""One measured run of a TRL trainer: the peer. `python -m tests.benchmarks.trl_worker JSON`; started by `peers`,
imports nothing of Align.

No logging, no saving; LoRA on all linear layers. `variant`: plain, grouped (SFT rows of equal length together), cached
(DPO's reference log-probs computed before training). In `precision` (bf16: the base's weights too) without activation
checkpointing, unless the job says otherwise: `shape` and `dtype` make a random model in place of the folder's,
`at_a_time` rows are computed at once, `checkpointing` is switched on.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainingArguments,
)
from trl import (
    DPOConfig,
    DPOTrainer,
    KTOConfig,
    KTOTrainer,
    RewardConfig,
    RewardTrainer,
    RLOOConfig,
    RLOOTrainer,
    SFTConfig,
    SFTTrainer,
)

from tests.benchmarks import random_model
from tests.benchmarks.clock import WARM_UP, Clock, now

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
LIBRARIES = ("trl", "torch", "transformers", "peft", "accelerate")


def lora(task: str) -> LoraConfig:
    return LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type=task)


def main(job: dict[str, Any]) -> None:
    rows = [json.loads(line) for line in Path(job["rows"]).read_text(encoding="utf-8").splitlines()]
    stage, variant = job["stage"], job["variant"]
    dtype = random_model.compute_dtype(job["dtype"]) if "shape" in job else DTYPES[job["precision"]]
    common: dict[str, Any] = dict(
        output_dir=tempfile.mkdtemp(dir=job["folder"]),
        per_device_train_batch_size=job.get("at_a_time", job["batch"]),
        gradient_accumulation_steps=job["batch"] // job.get("at_a_time", job["batch"]),
        num_train_epochs=job["epochs"],
        logging_steps=10_000,
        report_to="none",
        bf16=dtype == torch.bfloat16,
        fp16=False,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        learning_rate=1e-4,
        disable_tqdm=True,
    )
    # the old name of the setting still counts before transformers 5.23
    common[
        "activation_checkpointing"
        if hasattr(TrainingArguments, "activation_checkpointing")
        else "gradient_checkpointing"
    ] = job.get("checkpointing", False)
    if stage in ("ppo", "rloo"):
        return (ppo if stage == "ppo" else rloo)(job, rows, common)
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    clock = Clock().install()
    before: dict[str, dict[str, float]] = {}
    timed_precompute(before, len(rows) * job["epochs"])
    trainer, lengths = TRAINERS[stage](job, rows, {**common, "max_length": job["max_length"]}, tokenizer, variant)
    trainer.train()
    clock.report(len(rows) * job["epochs"] - WARM_UP * job["batch"], sum(lengths), before, LIBRARIES)


Rows = list[dict[str, Any]]
PAIR = ("prompt", "chosen", "rejected")


def sft(job: dict[str, Any], rows: Rows, common: dict[str, Any], tokenizer: Any, variant: str) -> tuple[Any, list[int]]:
    grouped: dict[str, Any] = {"train_sampling_strategy": "group_by_length"} if variant == "grouped" else {}
    each = [{"prompt": r["prompt"], "completion": r["chosen"]} for r in rows]
    trainer = made(SFTTrainer, SFTConfig(**common, **grouped), model(job), each, tokenizer)
    return trainer, [len(r["input_ids"]) for r in trainer.train_dataset]


def reward(
    job: dict[str, Any], rows: Rows, common: dict[str, Any], tokenizer: Any, variant: str
) -> tuple[Any, list[int]]:
    each = [{k: r["prompt"] + r[k] for k in ("chosen", "rejected")} for r in rows]
    trainer = made(RewardTrainer, RewardConfig(**common), model(job, scores=True), each, tokenizer, "SEQ_CLS")
    return trainer, [len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in trainer.train_dataset]


def dpo(job: dict[str, Any], rows: Rows, common: dict[str, Any], tokenizer: Any, variant: str) -> tuple[Any, list[int]]:
    config = DPOConfig(**common, precompute_ref_log_probs=variant == "cached")
    trainer = made(DPOTrainer, config, model(job), [{k: r[k] for k in PAIR} for r in rows], tokenizer)
    kept = trainer.train_dataset
    return trainer, [2 * len(r["prompt_ids"]) + len(r["chosen_ids"]) + len(r["rejected_ids"]) for r in kept]


def kto(job: dict[str, Any], rows: Rows, common: dict[str, Any], tokenizer: Any, variant: str) -> tuple[Any, list[int]]:
    """The reference in every step, and the KL of answers to other prompts, as its defaults are."""
    each = [json.loads(line) for line in Path(job["folder"], "kto.jsonl").read_text().splitlines()]
    trainer = made(KTOTrainer, KTOConfig(**common), model(job), each, tokenizer)
    return trainer, [len(r["prompt_ids"]) + len(r["completion_ids"]) for r in trainer.train_dataset]


def orpo(
    job: dict[str, Any], rows: Rows, common: dict[str, Any], tokenizer: Any, variant: str
) -> tuple[Any, list[int]]:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    each = [{k: r[k] for k in PAIR} for r in rows]
    trainer = made(ORPOTrainer, ORPOConfig(**common), model(job), each, tokenizer)
    return trainer, [len(r["chosen_input_ids"]) + len(r["rejected_input_ids"]) for r in trainer.train_dataset]


def made(kind: Any, config: Any, model: PreTrainedModel, rows: Rows, tokenizer: Any, task: str = "CAUSAL_LM") -> Any:
    """A trainer with LoRA on these rows."""
    data = Dataset.from_list(rows)
    return kind(model=model, args=config, train_dataset=data, processing_class=tokenizer, peft_config=lora(task))


TRAINERS = {"sft": sft, "reward": reward, "dpo": dpo, "kto": kto, "orpo": orpo}


def model(job: dict[str, Any], scores: bool = False) -> PreTrainedModel:
    """A causal model, or one with a score head: from the folder in the job's precision, or random in its shape."""
    if "shape" in job:
        return random_model.make(job["shape"], job["dtype"], scores=scores, **job["special"])
    if scores:
        return AutoModelForSequenceClassification.from_pretrained(
            job["model"], num_labels=1, dtype=DTYPES[job["precision"]]
        )
    return AutoModelForCausalLM.from_pretrained(job["model"], dtype=DTYPES[job["precision"]])


def timed_precompute(spent: dict[str, dict[str, float]], rows: int) -> None:
    """Time TRL's own reference pass, which it runs when the trainer is made."""
    inner = DPOTrainer._precompute_ref_logps

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = now()
        out = inner(*args, **kwargs)
        spent["reference"] = {k: (v - start[k]) / rows for k, v in now().items()}
        return out

    DPOTrainer._precompute_ref_logps = timed  # type: ignore[method-assign]


def ppo(job: dict[str, Any], rows: list[dict[str, str]], common: dict[str, Any]) -> None:
    """PPO of TRL 1.12, the last release that has it: policy and reference on one base, reward and value models beside
    it."""
    from trl.experimental.ppo import PPOConfig, PPOTrainer  # type: ignore[import-not-found]

    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    tokenizer.padding_side = "left"
    ids = [tokenizer(r["prompt"])["input_ids"] for r in rows]
    clock = Clock(whole=True)
    data = Dataset.from_list([{"input_ids": i} for i in ids])
    config = PPOConfig(
        **{**common, "num_train_epochs": 1},
        num_ppo_epochs=4,
        num_mini_batches=1,
        response_length=job["new_tokens"],
        local_rollout_forward_batch_size=job["batch"],
        num_sample_generations=0,
        total_episodes=len(rows),
        missing_eos_penalty=1.0,
        stop_token="eos",
    )

    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=model(job),
        ref_model=None,
        reward_model=model(job, scores=True),
        value_model=model(job, scores=True),
        train_dataset=data,
        eval_dataset=data.select(range(min(4, len(data)))),
        peft_config=lora("CAUSAL_LM"),
    )
    clock.start = now()
    trainer.train()
    clock.stop(len(rows) // job["batch"])
    clock.report(len(rows), sum(map(len, ids)), {}, LIBRARIES)


def rloo(job: dict[str, Any], rows: Rows, common: dict[str, Any]) -> None:
    """A rollout is a step, of `batch` prompts with as many answers each as Align has by default; the reward is a
    function."""
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    scope: dict[str, Any] = {}
    exec(Path(job["folder"], "judge.py").read_text(), scope)
    clock = Clock(whole=True).install()
    config = RLOOConfig(
        **{**common, "num_train_epochs": 1, "per_device_train_batch_size": 4 * job["batch"]},
        num_generations=4,
        beta=0.05,
        max_completion_length=job["new_tokens"],
    )
    trainer = RLOOTrainer(
        model=model(job),
        reward_funcs=scope["score"],
        args=config,
        train_dataset=Dataset.from_list([{"prompt": r["prompt"]} for r in rows]),
        processing_class=tokenizer,
        peft_config=lora("CAUSAL_LM"),
    )
    trainer.train()
    clock.report(len(rows), sum(len(tokenizer(r["prompt"])["input_ids"]) for r in rows), {}, LIBRARIES)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
