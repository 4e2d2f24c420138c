"""A model as judge: its scores beside plain transformers and PEFT on the same texts, and stages that take them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from align import best_of_n, pairs
from align.data.records import Message, Prompt
from align.ground.errors import InputError
from align.measures import judgement
from align.models.base import load_base
from align.models.roles import Roles
from align.rendering.render import load_renderer
from align.store import Artifact
from tests.conftest import COLOURS, Pipeline, write_rows

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ALONE = "Message: {prompt}\nAnswer: {answer}\nIs it good? Yes or No."
PAIRWISE = "Message: {prompt}\nA: {answer_a}\nB: {answer_b}\nWhich is better?"
PROMPTS = [Prompt((Message("user", f"Which {{answer_b}} is {colour}?"),), as_text=True) for colour in list(COLOURS)[:2]]
ANSWERS = [["The sky.", "A {prompt}.", "Grass"], ["It is 7.", "A rose"]]


class Direct:
    """transformers and PEFT, one text after the other."""

    def __init__(self, pipeline: Pipeline, folder: Path):
        base = pipeline.store.materialise(pipeline.made["pretrain"], folder / "base", "model")
        self.base, self.adapter = base, pipeline.store.folder(pipeline.made["sft"])
        self.renderer = load_renderer(self.adapter / "tokenizer", None, 512)
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(model, self.adapter / "adapters/0").eval()

    def favour(self, text: str, first: str, second: str) -> float:
        """log p(first) - log p(second), of the token in which the template's two renderings differ."""
        tokenizer = self.renderer.tokenizer
        rows = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}, {"role": "assistant", "content": said}], return_dict=True
            )["input_ids"]
            for said in (first, second)
        ]
        place = next(i for i, (a, b) in enumerate(zip(*rows, strict=False)) if a != b)
        with torch.no_grad():
            logprobs = self.model(torch.tensor([rows[0][:place]])).logits[0, -1].log_softmax(-1)
        return float(logprobs[rows[0][place]] - logprobs[rows[1][place]])

    def roles(self) -> Roles:
        roles = Roles(load_base(self.base, quantize=None, dtype=torch.float32))
        roles.load_adapter("judge_0", self.adapter / "adapters/0")
        roles.assign("judge", ["judge_0"])
        return roles


@pytest.fixture
def direct(pipeline: Pipeline, tmp_path: Path) -> Direct:
    return Direct(pipeline, tmp_path)


def test_scores_are_those_of_plain_transformers(direct: Direct) -> None:
    roles = direct.roles()

    def ours(template: str, role: str = "judge") -> list[list[float]]:
        return judgement.scores(roles, role, direct.renderer, PROMPTS, ANSWERS, template, 4096)

    def asked(template: str, i: int, **answers: str) -> str:
        for name, value in (("prompt", "\0"), *((name, f"\1{name}") for name in answers)):
            template = template.replace(f"{{{name}}}", value)
        for name, value in answers.items():
            template = template.replace(f"\1{name}", value)
        return template.replace("\0", PROMPTS[i].messages[0].content)

    alone = ours(ALONE)
    for i, each in enumerate(ANSWERS):
        truth = [direct.favour(asked(ALONE, i, answer=text), "Yes", "No") for text in each]
        assert alone[i] == pytest.approx(truth, abs=1e-4)
    both = ours(PAIRWISE)
    for i, each in enumerate(ANSWERS):
        for j, text in enumerate(each):
            wins = []
            for k, other in enumerate(each):
                if k != j:
                    first = direct.favour(asked(PAIRWISE, i, answer_a=text, answer_b=other), "A", "B")
                    second = direct.favour(asked(PAIRWISE, i, answer_a=other, answer_b=text), "A", "B")
                    wins += [1 / (1 + math.exp(-first)), 1 - 1 / (1 + math.exp(-second))]
            assert both[i][j] == pytest.approx(sum(wins) / len(wins), abs=1e-5)
        assert sum(both[i]) == pytest.approx(len(each) / 2)
    # negative control: the base alone judges otherwise
    assert (
        max(abs(a - b) for x, y in zip(alone, ours(ALONE, "base"), strict=True) for a, b in zip(x, y, strict=True))
        > 0.01
    )


def test_one_order_would_favour_a_place(direct: Direct) -> None:
    """Equal answers draw in both orders together, whatever place the judge favours, which it does."""
    (found,) = judgement.scores(direct.roles(), "judge", direct.renderer, PROMPTS[:1], [["Grass"] * 2], PAIRWISE, 4096)
    assert found == pytest.approx([0.5, 0.5], abs=1e-6)
    text = judgement.filled(PAIRWISE, PROMPTS[0], answer_a="Grass", answer_b="Grass")
    assert abs(direct.favour(text, "A", "B")) > 1e-3


def make(pipeline: Pipeline, folder: Path, stage: Any = pairs, **changes: Any) -> Artifact:
    data = write_rows(folder / "prompts.jsonl", [{"prompt": f"Which thing is {colour}?"} for colour in COLOURS])
    given = {"parent": "tiny/sft", "data": data, "max_new_tokens": 12, "n": 3, "judge_prompt": PAIRWISE}
    made: Artifact = stage.run(stage.Config(**{**given, "precision": "fp32", "threads": 1, **changes}), pipeline.store)
    return made


@pytest.mark.parametrize("judge", [pytest.param(None, marks=pytest.mark.slow), "tiny/sft"])
def test_pairs_are_ordered_by_it(judge: str | None, pipeline: Pipeline, tmp_path: Path) -> None:
    """By an artifact, which is then an input of what is made, or by the base; asked again it is found done."""
    made = make(pipeline, tmp_path, judge_model=judge)
    assert made.parents.get("judge_model") == (pipeline.made["sft"].digest if judge else None)
    rows = [json.loads(line) for line in pipeline.store.read(made, "data.jsonl").splitlines()]
    assert rows and all(row["chosen"] != row["rejected"] for row in rows)
    assert made.metrics["score/mean"] == pytest.approx(0.5, abs=1e-6)  # whoever wins, another loses
    assert make(pipeline, tmp_path, judge_model=judge).digest == made.digest
    if judge:
        other = make(pipeline, tmp_path, judge_model=judge, judge_prompt=ALONE)
        assert other.digest != made.digest and other.metrics["score/mean"] != pytest.approx(0.5, abs=1e-3)


@pytest.mark.slow
def test_the_best_of_n_is_what_it_likes(pipeline: Pipeline, tmp_path: Path) -> None:
    made = make(pipeline, tmp_path, best_of_n, judge_model="tiny/sft", judge_prompt=ALONE, stop=list("aeiou"))
    assert made.metrics["prompts"] == len(COLOURS)


def test_what_cannot_be_asked_is_refused(pipeline: Pipeline, tmp_path: Path) -> None:
    plain = {"base": "none", "data": "none"}
    for text, has in (("Is it good?", "it has none"), ("{prompt} {answer_a}", r"it has \{answer_a\}, \{prompt\}")):
        with pytest.raises(ValidationError, match=rf"expected \{{prompt\}}, and \{{answer\}} or both of .*{has}"):
            pairs.Config(**plain, judge_prompt=text)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="both judge and judge_prompt are set, and answers have one score each"):
        pairs.Config(**plain, judge="j.py:f", judge_prompt=ALONE)  # type: ignore[arg-type]
    with pytest.raises(ValidationError, match="judge_prompt compares two answers, and n is 1"):
        pairs.Config(**plain, n=1, judge_prompt=PAIRWISE)  # type: ignore[arg-type]
    assert "judge_model" in pairs.Config(**plain, judge="j.py:f").without_effect(None)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"judge_model: tiny/pretrain is .*, but pairs needs adapter there"):
        make(pipeline, tmp_path, judge_model="tiny/pretrain")
