"""Distillation on the tiny world: the student comes nearer to its teacher, as an adapter on the same base and as a
model of its own; what the teacher gave is computed once; on the student's own answers; after a stop as if there had
been none."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import align
from align import distill, distillation, memory, pretrain
from align.ground.errors import InputError, Stopped
from align.stage.ahead.dry_run import memory_plan, plan
from align.store import Artifact
from tests.conftest import Pipeline
from tests.stages.helpers import committed, forget, history
from tests.stages.test_resume import interrupt

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
SETTINGS: dict[str, Any] = {
    "teacher": "tiny/dpo",
    "seed": 3,
    "precision": "fp32",
    "threads": 1,
    "max_length": 96,
    "batch_size": 8,
    "max_steps": 4,
    "warmup_ratio": 0.0,
    "logging_steps": 1,
    "learning_rate": 0.01,
}


def small(pipeline: Pipeline) -> Path:
    """A model of other sizes with the tokenizer of the recipe's base."""
    folder = pipeline.recipe.with_name("small")
    if not folder.exists():
        pipeline.store.materialise(pipeline.made["pretrain"], pipeline.recipe.with_name("own"), "model")
        own = pipeline.recipe.with_name("own")
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
        theirs = LlamaConfig.from_pretrained(own)
        config = LlamaConfig(**{**theirs.to_dict(), **shape, "num_key_value_heads": 2, "head_dim": 8})
        LlamaForCausalLM(config).save_pretrained(folder)
        for path in own.iterdir():
            if path.name.startswith(("tokenizer", "chat_template", "special", "generation")):
                (folder / path.name).write_bytes(path.read_bytes())
    return folder


def config(pipeline: Pipeline, **changes: Any) -> distill.Config:
    given = {"data": pipeline.recipe.with_name("sft.jsonl"), **SETTINGS, **changes}
    if "base" not in given:
        given |= {"parent": "tiny/sft"}
    return distill.Config(name="tiny/distilled", **given)


def run(pipeline: Pipeline, **changes: Any) -> Artifact:
    return distill.run(config(pipeline, **changes), pipeline.store)


def test_an_adapter_on_the_same_base(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before the first step KL is that of transformers' own logits of teacher and student; then it falls. Stopped and
    gone on with it is the same, and the teacher is not asked again."""
    before = committed(pipeline.store)
    with monkeypatch.context() as patch:
        interrupt(patch, 2, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(Stopped, match="stopped at step 2 of 4"):
            run(pipeline, top_k=300)
    assert committed(pipeline.store) == before
    monkeypatch.setattr(distillation.teacher.Teacher, "computed", lambda *_: pytest.fail("the teacher was asked again"))
    made = run(pipeline, top_k=300)
    forget(pipeline.store, made)
    assert run(pipeline, top_k=300).digest == made.digest
    assert made.kind == "adapter" and made.parents["teacher"] == pipeline.made["dpo"].digest
    assert made.metrics["eval/kl"] < 0.7 * made.metrics["start/kl"]
    teacher, tokenizer = align.load("tiny/dpo", pipeline.store)
    student, _ = align.load("tiny/sft", pipeline.store)
    kl, tokens = 0.0, 0
    for prompt, completion in held_out(pipeline):
        start = tokenizer.apply_chat_template([{"role": "user", "content": prompt}], add_generation_prompt=True)
        ids = [*start["input_ids"], *tokenizer(completion, add_special_tokens=False)["input_ids"]]
        with torch.no_grad():
            p, q = (
                m(torch.tensor([ids])).logits[0, len(start["input_ids"]) - 1 :].log_softmax(-1)
                for m in (teacher, student)
            )
        kl += float((p.exp() * (p - q)).sum())
        tokens += len(p)
    assert made.metrics["start/kl"] == pytest.approx(kl / tokens, rel=1e-4)


def held_out(pipeline: Pipeline) -> list[tuple[str, str]]:
    """What the recipe's `sft` holds out."""
    from align.data.formats import read_conversations
    from align.data.split import split_by_prompt

    _, left = split_by_prompt(read_conversations(pipeline.recipe.with_name("sft.jsonl")), 0.1)
    return [(r.messages[0].content, r.messages[1].content) for r in left]


def test_a_model_of_its_own(pipeline: Pipeline) -> None:
    """All weights of a smaller model learn from an adapter on another base, here in part on their own answers; the
    result loads with plain transformers. With `lmbda: 1` no row of the teacher is kept."""
    given: dict[str, Any] = {"base": str(small(pipeline)), "method": "full", "top_k": 300, "max_steps": 12}
    made = run(pipeline, **given, beta=0.0)
    assert made.kind == "model" and made.metrics["eval/kl"] < 0.9 * made.metrics["start/kl"]
    model = AutoModelForCausalLM.from_pretrained(pipeline.store.folder(made) / "model")
    assert model.config.hidden_size == 16
    mixed = run(pipeline, **{**given, "max_steps": 4}, lmbda=0.5, max_new_tokens=8)
    again = history(mixed, pipeline.store)
    assert len(again) == 4 and mixed.metrics["eval/kl"] != made.metrics["eval/kl"]
    forget(pipeline.store, mixed)
    assert run(pipeline, **{**given, "max_steps": 4}, lmbda=0.5, max_new_tokens=8).digest == mixed.digest


@pytest.mark.slow
def test_its_own_answers_are_what_is_learnt(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `lmbda: 1` each step has answers that were drawn, to the prompts of its rows; with 0.5 some steps do."""
    seen: list[bool] = []
    whole = distill.loss

    def noted(roles: Any, batch: Any, *more: Any) -> Any:
        if torch.is_grad_enabled():
            seen.append("teacher" not in batch.columns)
        return whole(roles, batch, *more)

    monkeypatch.setattr(distill, "loss", noted)
    run(pipeline, lmbda=1.0, max_new_tokens=8)
    assert seen and all(seen)
    seen.clear()
    run(pipeline, lmbda=0.5, max_new_tokens=8, max_steps=6)
    assert any(seen) and not all(seen)


def test_all_weights_train_at_a_tenth_of_the_rate():
    """TRL's configs have 2e-5 for full training; what is given stays, the default's value too."""
    from trl import SFTConfig

    full = distill.Config(base="b", data="d", teacher="t", method="full")
    assert full.learning_rate == SFTConfig.learning_rate == 2e-5
    assert distill.Config(base="b", data="d", teacher="t").learning_rate == 2e-4
    assert distill.Config(base="b", data="d", teacher="t", method="full", learning_rate=2e-4).learning_rate == 2e-4


def test_planned(pipeline: Pipeline) -> None:
    """A dry run names rows and steps; the teacher lies in memory by itself before the student does, and beside it where
    the student answers."""
    given: dict[str, Any] = {"base": str(small(pipeline)), "method": "full"}
    for more, beside in (({}, False), ({"lmbda": 0.5, "max_new_tokens": 8}, True)):
        settings = config(pipeline, **given, **more)
        planned = plan(distill.STAGE, settings, pipeline.store)
        assert "run, nothing has its name yet" in str(planned) and "4 optimizer steps" in str(planned)
        inquiry = memory.Inquiry.asked(None, "cuda", True)
        (found,) = memory_plan(distill.STAGE, settings, pipeline.store, inquiry, planned.looked).values()
        assert isinstance(found, memory.MemoryPlan)
        parts = {phase.name: {part.name for part in phase.parts} for phase in found.phases}
        assert "teacher's base in fp32" in parts["teacher"]
        assert ("teacher's base in fp32" in parts["forward"]) is beside


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"teacher": None}, "teacher is missing; name the artifact"),
        ({"temperature": 0.5}, "temperature has no effect: lmbda is 0"),
        ({"save_dtype": "bf16"}, "save_dtype has no effect: method is lora"),
        ({"method": "full"}, "method: full cannot go on from an adapter"),
        ({"teacher": "tiny/reward"}, "teacher: tiny/reward is .*but distill needs adapter or model there"),
        ({"teacher": "tiny/sft"}, "teacher .* is what the student starts as, so there is nothing to learn from it"),
        ({"lmbda": 1.0, "max_new_tokens": 90}, "a prompt has .* tokens and 90 more are to be sampled"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], message: str, pipeline: Pipeline) -> None:
    with pytest.raises((InputError, ValueError), match=message):
        run(pipeline, **given)


def test_a_model_is_no_teacher_of_itself(pipeline: Pipeline) -> None:
    """A base that is the teacher; as a base of fewer bits, or beside an adapter on it, it may learn."""
    own = "tiny/pretrain"
    for more in ({}, {"method": "full"}):
        with pytest.raises(InputError, match="is what the student starts as"):
            plan(distill.STAGE, config(pipeline, teacher="tiny/pretrain", base=own, **more), pipeline.store)
    for other in ({"base": {"model": own, "quantize": "nf4"}}, {"parent": "tiny/sft"}):  # negative controls
        plan(distill.STAGE, config(pipeline, teacher="tiny/pretrain", **other), pipeline.store)


def test_another_tokenizer(pipeline: Pipeline) -> None:
    """Refused before a base is loaded, in a dry run as well."""
    rows = [json.loads(line) for line in pipeline.recipe.with_name("texts.jsonl").read_text().splitlines()]
    data = pipeline.recipe.with_name("other.jsonl")
    data.write_text("".join(json.dumps({"text": row["text"].upper()}) + "\n" for row in rows))
    shape = {"hidden_size": 16, "layers": 1, "heads": 2, "kv_heads": 2, "intermediate_size": 24, "vocab_size": 280}
    other = pretrain.Config(
        name="other", data=data, architecture=shape, max_steps=1, threads=1, max_length=64, precision="fp32"
    )
    pretrain.run(other, pipeline.store)
    for ask in (lambda c: distill.run(c, pipeline.store), lambda c: plan(distill.STAGE, c, pipeline.store)):
        with pytest.raises(InputError, match="has another tokenizer than the student's base"):
            ask(config(pipeline, teacher="other"))
