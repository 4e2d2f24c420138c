"""A T5 as a stranger brings it: fine-tuned from the command line, measured, sampled, merged and preferred; other stages
refuse it."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

import align
from align import chat, dpo, evaluate, generate, grpo, merge, pairs, ppo, pretrain, reward, sft, simpo
from align.data.formats import read_conversations
from align.exchange import transfer
from align.ground.errors import InputError
from align.memory import Inquiry
from align.recipe import Base
from align.report.code import load_lines
from align.stage.ahead.dry_run import memory_plan
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store
from tests.conftest import run_align, write_rows
from tests.models.two_parts import write
from tests.stages.helpers import history

SUMS = [(f"What is {a} plus {b}?", f"It is {a + b}.") for a in range(4) for b in range(4)]
ON_CPU: dict[str, Any] = dict(precision="fp32", threads=1)
# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Store, str]:
    """A folder with rows, a store, and what `python -m align.sft` made of a tiny T5 there."""
    folder = tmp_path_factory.mktemp("t5")
    write("T5", folder / "t5")
    write_rows(folder / "rows.jsonl", [{"prompt": asked, "completion": said} for asked, said in SUMS])
    write_rows(folder / "prompts.jsonl", [{"prompt": asked} for asked, _ in SUMS[:3]])
    write_rows(
        folder / "pairs.jsonl", [{"prompt": asked, "chosen": said, "rejected": "Who knows?"} for asked, said in SUMS]
    )
    flags = (
        "--base t5 --data rows.jsonl --name mine --batch_size 8 --max_steps 6 --learning_rate 0.02 --precision "
        "fp32 --threads 1"
    )
    ran = run_align("sft", *flags.split(), cwd=folder)
    assert "takes the padded path (its encoder reads whole prompts)" in ran.stderr
    return folder, Store(folder / ".align"), ran.stdout.split()[-1]


def by_transformers(model: Any, tokenizer: Any, rows: list[tuple[str, str]]) -> float:
    """Loss per token of answers, from nothing but the tokenizer and transformers' labels."""
    total, tokens = 0.0, 0
    for asked, said in rows:
        labels = tokenizer(text_target=said, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            total += float(model(**tokenizer(asked, return_tensors="pt"), labels=labels).loss) * labels.shape[1]
        tokens += labels.shape[1]
    return total / tokens


def test_what_is_trained_is_measured_sampled_and_merged(made: tuple[Path, Store, str]):
    folder, store, digest = made
    assert len(read_conversations(folder / "rows.jsonl")) == len(SUMS)
    trained = store.resolve(digest)
    losses = [row["loss"] for row in history(trained, store)]
    assert losses[-1] < 0.7 * losses[0]

    data = {"data": str(folder / "prompts.jsonl"), "texts": str(folder / "rows.jsonl")}
    report = evaluate.run(evaluate.Config(compare=[digest], max_new_tokens=8, **data, **ON_CPU), store)
    model, tokenizer = align.load(digest, store)
    measured = report.metrics[f"{trained.stage}-{digest[:8]}/loss"]
    assert abs(by_transformers(model, tokenizer, SUMS) - measured) < 1e-5
    base: Any = AutoModelForSeq2SeqLM.from_pretrained(folder / "t5", dtype=torch.float32)
    assert abs(by_transformers(base, tokenizer, SUMS) - report.metrics["base/loss"]) < 1e-5
    assert abs(measured - report.metrics["base/loss"]) > 0.1  # negative control

    out = folder / "merged"
    merged = merge.run(merge.Config(parent=digest, out=str(out), precision="fp32", threads=1), store)
    assert merged.metrics["verdict"] == "equal"
    again: Any = AutoModelForSeq2SeqLM.from_pretrained(out, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert abs(by_transformers(again, tokenizer, SUMS) - measured) < 1e-5
    asked: dict[str, Any] = dict(data=data["data"], max_new_tokens=8, temperature=0.0, **ON_CPU)
    rows = generate.run(generate.Config(parent=digest, **asked), store)
    for row, (question, _) in zip(rows, SUMS, strict=False):
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        assert prompt["input_ids"].tolist() == tokenizer(question, return_tensors="pt")["input_ids"].tolist()
        answer = again.generate(**prompt, max_new_tokens=8, do_sample=False)[0]
        assert tokenizer.decode(answer, skip_special_tokens=True) == row["completion"]
    assert rows == generate.run(generate.Config(base={"model": str(out)}, **asked), store)  # type: ignore[arg-type]


def test_the_printed_code_loads_it(made: tuple[Path, Store, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    _, store, digest = made
    place = store.materialise(store.resolve(digest), tmp_path / "mine")
    lines = [
        line.strip()
        for line in load_lines(store, store.resolve(digest), "mine", str(place))
        if not line.startswith("  align ")
    ]
    scope: dict[str, Any] = {}
    exec("\n".join(lines[next(i for i, line in enumerate(lines) if line.startswith("from peft")) :]), scope)
    assert type(scope["model"]).__name__ == "PeftModelForSeq2SeqLM" and capsys.readouterr().out
    ours, tokenizer = align.load(digest, store)
    assert abs(by_transformers(scope["model"], tokenizer, SUMS) - by_transformers(ours, tokenizer, SUMS)) < 1e-5


def test_preferences_and_dialogues(
    made: tuple[Path, Store, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    folder, store, digest = made
    settings: dict[str, Any] = dict(batch_size=4, eval_fraction=0, max_steps=3, learning_rate=0.01, **ON_CPU)
    preferred = dpo.run(dpo.Config(parent=digest, data=str(folder / "pairs.jsonl"), **settings), store)
    losses = [row["loss"] for row in history(preferred, store)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5) and losses[-1] < losses[0]
    without_reference = simpo.run(simpo.Config(parent=digest, data=str(folder / "pairs.jsonl"), **settings), store)
    losses = [row["loss"] for row in history(without_reference, store)]
    assert losses[-1] < losses[0]
    (folder / "judge.py").write_text(
        "def brief(prompts, completions, **kwargs):\n    return [-float(len(c)) for c in completions]\n"
    )
    found = pairs.run(
        pairs.Config(parent=digest, data=str(folder / "prompts.jsonl"), judge=f"{folder / 'judge.py'}:brief", **ON_CPU),
        store,
    )
    assert found.kind == "data"
    reinforced = grpo.run(
        grpo.Config(
            **dict(
                parent=digest,
                data=str(folder / "prompts.jsonl"),
                judges={"brief": f"{folder / 'judge.py'}:brief"},
                **ON_CPU,
            ),
            **dict(rollout_size=24, batch_size=24, group_size=4, max_new_tokens=8, max_steps=1, watch_prompts=0),
        ),
        store,
    )
    assert (
        reinforced.metrics["sampler_gap/max"] < 1e-4
        and reinforced.metrics["kl"] == 0.0
        and reinforced.metrics["clip_fraction"] == 0.0
    )
    monkeypatch.setattr("sys.stdin", io.StringIO("What is 3 plus 4?\nWhich colour is the cup?\n"))
    capsys.readouterr()
    config = chat.Config(parent=digest, temperature=0.0, max_new_tokens=6, **ON_CPU)
    chat.talk(Workbench(prepare(chat.STAGE, config, store)))
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_adapter_of_peft_comes_in(made: tuple[Path, Store, str], tmp_path: Path):
    """In the layout and with the task that PEFT writes for an encoder-decoder."""
    folder, store, digest = made
    plain = get_peft_model(
        AutoModelForSeq2SeqLM.from_pretrained(folder / "t5"),
        LoraConfig(r=4, target_modules=["q", "v", "wi"], task_type="SEQ_2_SEQ_LM"),
    )
    with torch.no_grad():
        for key, parameter in plain.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.1)
    plain.eval().save_pretrained(tmp_path / "adapter")
    brought = transfer.import_adapter(tmp_path / "adapter", Base(model=str(folder / "t5")), store)
    again = PeftModel.from_pretrained(
        AutoModelForSeq2SeqLM.from_pretrained(folder / "t5"), str(store.folder(brought) / "adapters/0")
    ).eval()
    other, tokenizer = align.load(digest, store)  # negative control
    assert abs(by_transformers(again, tokenizer, SUMS) - by_transformers(plain, tokenizer, SUMS)) < 1e-5
    assert abs(by_transformers(other, tokenizer, SUMS) - by_transformers(plain, tokenizer, SUMS)) > 1e-3


def test_other_stages_refuse_it_before_torch_is_asked(made: tuple[Path, Store, str], tmp_path: Path):
    folder, store, _ = made
    base: Any = {"model": str(folder / "t5")}
    some = str(folder / "pairs.jsonl")
    (tmp_path / "judge.py").write_text(
        "def brief(prompts, completions, **kwargs):\n    return [0.0 for _ in completions]\n"
    )
    judges = {"brief": f"{tmp_path / 'judge.py'}:brief"}
    for module, config in (
        (reward, reward.Config(base=base, data=some)),
        (ppo, ppo.Config(base=base, data=some, judges=judges)),
        (pretrain, pretrain.Config(base=base, data=some)),
    ):
        name = module.STAGE.name
        with pytest.raises(
            InputError,
            match=rf"{name}: the base t5 is an encoder-decoder \(t5\), which {name} does not take: sft, dpo, ",
        ):
            prepare(module.STAGE, config, store)
    assert prepare(sft.STAGE, sft.Config(base=base, data=str(folder / "rows.jsonl")), store)  # negative control
    found = memory_plan(sft.STAGE, sft.Config(base=base, data=str(folder / "rows.jsonl")), store, Inquiry("cpu"))
    assert found == {"sft": "the base is an encoder-decoder, whose memory Align does not plan"}
    with pytest.raises(
        InputError, match=r"adapter\.layers is 1, but the base t5 is an encoder-decoder, which has two lists of layers"
    ):
        prepare(sft.STAGE, sft.Config(base=base, data=str(folder / "rows.jsonl"), adapter={"layers": 1}), store)  # type: ignore[arg-type]
