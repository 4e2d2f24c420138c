"""Twenty optimizer steps beside TRL's trainers on the same rows, model and adapter: the same losses, step by step.

TRL pads, repeats the prompt for both completions and goes through its own models and losses; Align packs. Adapters
start with B ≠ 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, set_peft_model_state_dict
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer

from align import dpo, reward, sft
from align.data.examples import Example
from align.models.heads import ScoreHead
from align.models.roles import Roles
from align.training.plan import Plan
from align.training.trainer import fit
from tests.models.models import VOCAB, make_roles, pair, settings, with_reference

# PEFT and TRL use the old name
pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")

STEPS = 20
EOS = 2
ROWS = [pair(3 + 2 * i, 4 + i, 9 - 2 * i, seed=i) for i in range(4)]
LEARNING_RATE = 1e-3
COMMON: dict[str, Any] = dict(
    per_device_train_batch_size=len(ROWS),
    max_steps=STEPS,
    logging_steps=1,
    logging_first_step=True,
    report_to="none",
    bf16=False,
    activation_checkpointing=False,
    use_cpu=True,
    save_strategy="no",
    learning_rate=LEARNING_RATE,
    lr_scheduler_type="constant",
    max_grad_norm=1.0,
    disable_tqdm=True,
    dataloader_pin_memory=False,
)


def words(ids: Sequence[int]) -> str:
    return " ".join(f"<{i}>" for i in ids) + " "


def tokenizer() -> PreTrainedTokenizerFast:
    """One word per token, so that TRL's own tokenisation gives exactly our ids."""
    inner = Tokenizer(models.WordLevel({f"<{i}>": i for i in range(VOCAB)}, unk_token="<0>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<0>", bos_token="<1>", eos_token="<2>")


def ended(example: Example) -> Example:
    """TRL ends every completion with EOS."""
    return Example(
        tuple([*s, EOS] for s in example.sequences), tuple([*m, True] for m in example.supervised), example.shared
    )


def texts() -> list[dict[str, str]]:
    completions = [[words(s[e.shared :]) for s in e.sequences] for e in ROWS]
    return [
        {"prompt": words(e.sequences[0][: e.shared]), "chosen": c, "rejected": r}
        for e, (c, r) in zip(ROWS, completions, strict=True)
    ]


def start() -> tuple[Roles, LlamaForCausalLM]:
    """Our roles, and a plain model with the same weights."""
    roles = make_roles("llama", torch.float32)
    with torch.no_grad():  # smaller than the other tests': twenty Adam steps amplify what rounding leaves
        for tensor in (*roles.base.parameters(), *roles.adapter_parameters("policy")):
            if tensor.dim() > 1:
                tensor.mul_(0.3)
    plain = LlamaForCausalLM(LlamaConfig(**{**roles.base.config.to_dict(), "attn_implementation": "sdpa"}))
    plain.load_state_dict(dict(roles.base_parameters()))
    return roles, plain


def lora(task: str) -> LoraConfig:
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    return LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type=task)


def losses_of(trainer: Any, roles: Roles, **heads: Tensor) -> list[float]:
    """Train a TRL trainer from our adapter; its loss at every step."""
    state = {f"base_model.model.{k}": v for k, v in roles.adapter_state("policy").items()}
    state |= {f"base_model.model.{name}.weight": weight for name, weight in heads.items()}
    result: Any = set_peft_model_state_dict(trainer.model, state)
    assert not result.unexpected_keys
    trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row][:STEPS]


def our_losses(
    roles: Roles, loss: Callable, examples: list[Example], folder: Path, learning_rate: float = LEARNING_RATE
) -> Tensor:
    config = settings(reward.Config, learning_rate=learning_rate, head_learning_rate=learning_rate)
    plan = Plan(examples, batch_size=len(examples), epochs=1, max_steps=STEPS, tokens_per_microbatch=40, seed=0)
    history, _ = fit(roles, loss, plan, config, title="test", checkpoints=folder)
    return torch.tensor([row["loss"] for row in history])


def compare(ours: Tensor, theirs: list[float]) -> None:
    assert len(ours) == len(theirs) == STEPS
    torch.testing.assert_close(ours, torch.tensor(theirs), rtol=1e-4, atol=0)
    assert (ours[0] - ours[-1]).abs() > 1e-2  # they learn


@pytest.mark.parametrize("right", [True, False])
def test_sft(tmp_path: Path, right: bool) -> None:
    roles, plain = start()
    rows = [{"prompt": t["prompt"], "completion": t["chosen"]} for t in texts()]
    config = SFTConfig(**COMMON, output_dir=str(tmp_path / "trl"))
    trainer = SFTTrainer(
        plain,
        config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
        peft_config=lora("CAUSAL_LM"),
    )
    theirs = losses_of(trainer, roles)
    chosen = [Example(e.sequences[:1], e.supervised[:1], e.shared) for e in map(ended, ROWS)]
    roles.train_only("policy")
    if right:
        compare(our_losses(roles, sft.loss, chosen, tmp_path / "ours"), theirs)
    else:  # negative control: another learning rate is seen
        ours = our_losses(roles, sft.loss, chosen, tmp_path / "ours", 1.1 * LEARNING_RATE)
        assert ((ours - torch.tensor(theirs)) / ours).abs().max() > 1e-3


def test_reward(tmp_path: Path) -> None:
    roles, plain = start()
    plain.config.num_labels = 1
    scorer = AutoModelForSequenceClassification.from_config(plain.config, dtype=torch.float32)
    scorer.model.load_state_dict(plain.model.state_dict())
    head = ScoreHead(32)
    head.weight.data = torch.linspace(-0.5, 0.5, 32)
    rows = [{"chosen": t["prompt"] + t["chosen"], "rejected": t["prompt"] + t["rejected"]} for t in texts()]
    config = RewardConfig(**COMMON, output_dir=str(tmp_path / "trl"), center_rewards_coefficient=0.01)
    trainer = RewardTrainer(
        scorer, config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer(), peft_config=lora("SEQ_CLS")
    )
    theirs = losses_of(trainer, roles, score=head.weight.detach()[None].clone())
    roles.assign("policy", ["policy"], head)
    roles.train_only("policy", heads=["policy"])
    compare(
        our_losses(roles, lambda r, b: reward.loss(r, b, 0.01), [ended(e) for e in ROWS], tmp_path / "ours"), theirs
    )


def test_dpo(tmp_path: Path) -> None:
    """Policy with B ≠ 0, reference = the bare base: TRL disables the adapter, we have a role without one."""
    roles, plain = start()
    config = DPOConfig(**COMMON, output_dir=str(tmp_path / "trl"), beta=0.2, precompute_ref_log_probs=False)
    data = Dataset.from_list(texts())
    trainer = DPOTrainer(
        plain, None, config, train_dataset=data, processing_class=tokenizer(), peft_config=lora("CAUSAL_LM")
    )
    theirs = losses_of(trainer, roles)
    roles.assign("reference", [])
    examples = with_reference(roles, [ended(e) for e in ROWS])
    roles.train_only("policy")
    ours = settings(dpo.Config, beta=0.2)
    compare(our_losses(roles, lambda r, b: dpo.loss(r, b, ours), examples, tmp_path / "ours"), theirs)
