"""A model as judge: its scores beside plain transformers and PEFT on the same texts, and stages that take them:
`pairs`, `best_of_n`, `evaluate` and reinforcement learning."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from pydantic import ValidationError
from transformers import AutoModelForCausalLM

from align import best_of_n, evaluate, evaluation, grpo, pairs, ppo, reinforce_pp, rl
from align.data.records import Message, Prompt
from align.ground.errors import InputError
from align.measures import judgement
from align.models.base import load_base
from align.models.roles import Roles
from align.packed.pack import Batch
from align.rendering.render import load_renderer
from align.store import Artifact
from tests.conftest import COLOURS, Pipeline, write_rows
from tests.models.models import settings
from tests.stages.helpers import GROUPS, history, run

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

    def wins(self, prompt: Prompt, one: str, other: str) -> float:
        """How likely `one` wins, by both orders."""
        first = self.favour(asked(PAIRWISE, prompt, answer_a=one, answer_b=other), "A", "B")
        second = self.favour(asked(PAIRWISE, prompt, answer_a=other, answer_b=one), "A", "B")
        return (1 / (1 + math.exp(-first)) + 1 - 1 / (1 + math.exp(-second))) / 2

    def roles(self) -> Roles:
        roles = Roles(load_base(self.base, quantize=None, dtype=torch.float32))
        roles.load_adapter("judge_0", self.adapter / "adapters/0")
        roles.assign("judge", ["judge_0"])
        return roles


def asked(template: str, prompt: Prompt, **answers: str) -> str:
    """The question, put together in another way than `filled` does it."""
    put = {"{prompt}": prompt.messages[0].content, **{f"{{{name}}}": text for name, text in answers.items()}}
    return "".join(put.get(part, part) for part in re.split(r"(\{\w+\})", template))


@pytest.fixture
def direct(pipeline: Pipeline, tmp_path: Path) -> Direct:
    return Direct(pipeline, tmp_path)


def test_scores_are_those_of_plain_transformers(direct: Direct) -> None:
    roles = direct.roles()

    def ours(template: str, role: str = "judge") -> list[list[float]]:
        return judgement.scores(roles, role, direct.renderer, PROMPTS, ANSWERS, template, 4096)

    alone = ours(ALONE)
    for prompt, each, found in zip(PROMPTS, ANSWERS, alone, strict=True):
        truth = [direct.favour(asked(ALONE, prompt, answer=text), "Yes", "No") for text in each]
        assert found == pytest.approx(truth, abs=1e-4)
    for prompt, each, found in zip(PROMPTS, ANSWERS, ours(PAIRWISE), strict=True):
        for j, text in enumerate(each):
            wins = [direct.wins(prompt, text, other) for k, other in enumerate(each) if k != j]
            assert found[j] == pytest.approx(sum(wins) / len(wins), abs=1e-5)
        assert sum(found) == pytest.approx(len(each) / 2)
    # negative control: the base alone judges otherwise
    assert (
        max(abs(a - b) for x, y in zip(alone, ours(ALONE, "base"), strict=True) for a, b in zip(x, y, strict=True))
        > 0.01
    )


def test_answers_differ_by_less_than_a_step_of_bf16(direct: Direct, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand: hidden (16, 1/64), rows (1, 1) and (1, 0) give logits 16 + 1/64 and 16. Steps of bf16 are 1/8 there."""
    roles = Roles(load_base(direct.base, quantize=None, dtype=torch.bfloat16))
    head, asks = roles.head, [("1", "Is it good?"), ("2", "Is that good, too?")]
    state = torch.zeros(head.matrix.shape[1], dtype=torch.bfloat16)
    state[:2] = torch.tensor([16, 1 / 64])
    ids: list[int] = []

    def hidden(self: Roles, batch: Batch, rows: torch.Tensor) -> torch.Tensor:
        ids[:] = batch.targets[rows][:2].tolist()
        head.matrix[ids] = 0
        head.matrix[ids, 0] = 1
        head.matrix[ids[0], 1] = 1
        return state.repeat(len(rows), 1)

    with monkeypatch.context() as patch:
        patch.setattr(Roles, "hidden", hidden)
        assert judgement.favour(roles, "base", direct.renderer, asks, judgement.ALONE, 4096) == [1 / 64] * 2
    one, other = head(state[None])[0, ids].tolist()
    assert one == other == 16  # negative control: what the model rounds to


def test_what_prompt_would_not_show_is_refused(direct: Direct) -> None:
    """By the row's place, before anything is sampled; a dialogue of texts is not."""
    asking, tools = Message("user", "Which?"), '[{"type": "function", "function": {"name": "f"}}]'
    calling = Message("assistant", "", tool_calls='[{"type": "function", "function": {"name": "f", "arguments": {}}}]')
    thinking = Message("assistant", "Red.", reasoning="It was asked for.")
    plain = Prompt((asking, Message("assistant", "Red."), asking), where="p.jsonl:1")
    for lost, prompt in (
        ("tools", Prompt((asking,), where="p.jsonl:2", tools=tools)),
        ("tool_calls", Prompt((asking, calling, Message("tool", "1")), where="p.jsonl:2")),
        ("tools and reasoning_content", Prompt((asking, thinking, asking), where="p.jsonl:2", tools=tools)),
    ):
        with pytest.raises(InputError, match=rf"^p.jsonl:2: has {lost}, but {{prompt}} in judge_prompt holds"):
            judgement.check_room(direct.renderer, [plain, prompt], ALONE, 4, 512)
    judgement.check_room(direct.renderer, [plain], ALONE, 4, 512)


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


def test_verdicts_of_an_evaluation(direct: Direct, pipeline: Pipeline, tmp_path: Path) -> None:
    """Two answers of each model against two of the other: a score is how likely an answer wins on average, a win rate
    how often it does; one by one it is how likely Yes is. Truth: the texts that were written down, by `Direct`."""
    rows = [{"prompt": f"Which thing is {colour}?", "best": f"The {colour} one."} for colour in list(COLOURS)[:2]]
    given = {
        "compare": ["tiny/sft", "tiny/dpo"],
        "data": write_rows(tmp_path / "heldout.jsonl", rows),
        "baselines": ["best"],
        "include_base": False,
        "n": 2,
        "max_new_tokens": 8,
        "judge_model": "tiny/sft",
        "precision": "fp32",
        "threads": 1,
    }
    made = evaluate.run(evaluate.Config(**given, judge_prompt=PAIRWISE), pipeline.store)  # type: ignore[arg-type]
    assert made.parents["judge_model"] == pipeline.made["sft"].digest
    samples = [json.loads(line) for line in pipeline.store.read(made, "samples.jsonl").splitlines()]
    for name in ("sft", "dpo", "best"):
        means, shares = [], []
        for prompt in (Prompt((Message("user", row["prompt"]),)) for row in rows):
            mine = [s for s in samples if s["prompt"] == prompt.messages[0].content]
            against = [s["sft"]["text"] for s in mine]
            for one in (s[name] for s in mine if name in s):
                wins = [direct.wins(prompt, one["text"], other) for other in against]
                assert one["judge_prompt"] == pytest.approx(sum(wins) / len(wins), abs=1e-5)
                means.append(one["judge_prompt"])
                shares += [0.5 if one["text"] == o else float(w > 0.5) for o, w in zip(against, wins, strict=True)]
        assert made.metrics[f"{name}/judge_prompt"] == pytest.approx(sum(means) / len(means))
        rate = made.metrics.get(f"{name}/win_rate_vs_sft")
        assert rate is None if name == "sft" else rate == pytest.approx(sum(shares) / len(shares))
    assert made.metrics["sft/judge_prompt"] == pytest.approx(0.5) != made.metrics["dpo/judge_prompt"]
    assert b"Best by judge prompt, not told apart as their intervals overlap: dpo 50.0%" in pipeline.store.read(
        made, "table.txt"
    )
    alone = evaluate.run(evaluate.Config(**given, judge_prompt=ALONE), pipeline.store)  # type: ignore[arg-type]
    samples = [json.loads(line) for line in pipeline.store.read(alone, "samples.jsonl").splitlines()]
    prompt, text = Prompt((Message("user", samples[-1]["prompt"]),)), samples[-1]["dpo"]["text"]
    truth = 1 / (1 + math.exp(-direct.favour(asked(ALONE, prompt, answer=text), "Yes", "No")))
    assert samples[-1]["dpo"]["judge_prompt"] == pytest.approx(truth, abs=1e-5)


@pytest.mark.parametrize(
    ("stage", "template"),
    [
        ("grpo", PAIRWISE),
        ("ppo", ALONE),
        *(pytest.param(stage, PAIRWISE, marks=pytest.mark.slow) for stage in GROUPS if stage != "grpo"),
    ],
)
def test_rewards_by_it(
    stage: str, template: str, direct: Direct, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every score of a rollout is that of `Direct`, of answers in their group; with a weight it is added to another
    reward's, and it is no copy for the value role to start from."""
    seen: list[tuple[Any, Any]] = []
    scored = rl.rewards.scored

    def noting(rewards: Any, samples: Any) -> Any:
        found = scored(rewards, samples)
        seen.append((samples, found[[r.name for r in rewards].index("judge_prompt")]))
        return found

    monkeypatch.setattr("align.rl.collect.scored", noting)
    reward = "tiny/reward" if stage == "ppo" else None
    more: dict[str, Any] = {"reward": reward, "weights": {"judge_prompt": 0.5} if reward else None}
    made = run(pipeline, stage, judge_prompt=template, judge_model="tiny/sft", max_steps=1, **more)
    assert made.parents["judge_model"] == pipeline.made["sft"].digest
    samples, found = seen[0]
    n = len(samples.texts) // len(samples.groups)
    for i in range(0, len(samples.texts), n):
        prompt, each = samples.prompts[i], samples.texts[i : i + n]
        if template == ALONE:
            truth = [direct.favour(asked(ALONE, prompt, answer=text), "Yes", "No") for text in each]
        else:
            wins = [[direct.wins(prompt, one, each[k]) for k in range(n) if k != j] for j, one in enumerate(each)]
            truth = [sum(row) / len(row) for row in wins]
        assert found[i : i + n] == pytest.approx(truth, abs=1e-4)
        if i >= 2 * n:
            break
    first = history(made, pipeline.store)[0]
    if stage == "ppo":
        assert first["reward/judge_prompt"] == pytest.approx(found.mean(), rel=1e-6)
        by_hand = first["reward/reward"] + 0.5 * first["reward/judge_prompt"]
        assert first["reward/mean"] == pytest.approx(by_hand, rel=1e-6)
    else:
        assert first["reward/mean"] == pytest.approx(0.5, abs=1e-6)


@pytest.mark.slow
def test_the_best_of_n_is_what_it_likes(pipeline: Pipeline, tmp_path: Path) -> None:
    made = make(pipeline, tmp_path, best_of_n, judge_model="tiny/sft", judge_prompt=ALONE, stop=list("aeiou"))
    assert made.metrics["prompts"] == len(COLOURS)


def test_what_a_question_may_come_to_is_counted(direct: Direct) -> None:
    """An answer in two places takes room twice, one that is known already what it has, in either order of two. Truth:
    the tokenizer's own chat template; the control is a context that is one token longer."""
    renderer, new, text = direct.renderer, 30, "The sky is blue, and so is the sea. " * 3
    best = {"best": [[text] for _ in PROMPTS]}
    swapped = "Message: {prompt}\nA: {answer_a}\nAgain: {answer_b} {answer_b}"

    def room(template: str, says: tuple[str, str], places: int, prompt: Prompt, **known: str) -> int:
        put = dict.fromkeys(("answer", "answer_a", "answer_b"), "") | known
        chats = [
            [{"role": "user", "content": asked(template, prompt, **put)}, {"role": "assistant", "content": verdict}]
            for verdict in says
        ]
        rows = [renderer.tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"] for chat in chats]
        return max(map(len, rows)) + places * new

    twice = ALONE + " It was: {answer}"
    cases = [
        (twice, None, "and 2 x 30 more", [room(twice, ("Yes", "No"), 2, p) for p in PROMPTS]),
        (twice, best, "best has", [room(twice, ("Yes", "No"), 0, p, answer=text) for p in PROMPTS]),
        (swapped, best, "best has", [room(swapped, ("A", "B"), 1, p, answer_b=text) for p in PROMPTS]),
    ]
    for template, written, said, needs in cases:
        judgement.check_room(renderer, PROMPTS, template, new, max(needs), written)
        with pytest.raises(InputError, match=f"judge_prompt.* {said}"):
            judgement.check_room(renderer, PROMPTS, template, new, max(needs) - 1, written)


def test_baselines_are_refused_before_anything_is_sampled(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "sample", lambda *_: pytest.fail("sampled"))
    row = {"prompt": "Which thing is red?", "best": "The red one. " * 100}
    given = {"compare": ["tiny/sft"], "data": write_rows(tmp_path / "heldout.jsonl", [row]), "max_new_tokens": 8}
    said = r"heldout.jsonl:1: what judge_prompt asks of this prompt with the answer in best has [\d,]+ tokens, but"
    with pytest.raises(InputError, match=said):
        evaluate.run(evaluate.Config(**given, baselines=["best"], judge_prompt=ALONE), pipeline.store)  # type: ignore[arg-type]


def test_an_answer_that_becomes_too_long_has_no_score(direct: Direct, capsys: pytest.CaptureFixture[str]) -> None:
    """It is left out and said, and the others have the scores that they have without it."""
    roles, long = direct.roles(), "The sky is blue. " * 60
    answers = [[*ANSWERS[0], long], ANSWERS[1]]
    asks = judgement.of_questions(direct.renderer, 200)

    def ours(template: str, each: list[list[str]]) -> list[list[Any]]:
        return judgement.scores(roles, "judge", asks, PROMPTS, each, template, 4096)

    for template in (ALONE, PAIRWISE):
        without = ours(template, ANSWERS)
        assert "not asked" not in capsys.readouterr().err
        found = ours(template, answers)
        assert found[0][-1] is None and None not in [score for each in without for score in each]
        assert [*found[0][:-1], *found[1]] == pytest.approx([*without[0], *without[1]], abs=1e-5)
        assert re.search(r"judge_prompt: \d+ questions? of \d+ not asked.* has \d+ tokens", capsys.readouterr().err)
    assert ours(ALONE, [[long], [long]]) == [[None], [None]]
    reward = rl.rewards.by_asking(1.0, roles, asks, ALONE, 4096)
    prompts = [PROMPTS[0]] * 4
    (scores,) = rl.rewards.scored([reward], rl.rewards.Samples([None] * 4, prompts, answers[0]))  # type: ignore[list-item]
    assert [bool(math.isnan(score)) for score in scores] == [False, False, False, True]
    assert math.isnan(rl.rewards.total([reward], {"judge_prompt": scores})[-1])
    texts = {"a": answers, "b": [ANSWERS[0], [long]]}
    for template in (ALONE, PAIRWISE):
        verdicts = evaluation.asked.verdicts(roles, asks, PROMPTS, texts, "b", template, 4096)
        assert [score is None for score in verdicts.scores["a"][0]] == [False, False, False, True]
        if template == PAIRWISE:  # against an answer that is too long there is no comparison, nor a win
            assert verdicts.scores["a"][1] == [None, None] and len(verdicts.wins["a"]) == 1
            assert not np.isnan(verdicts.wins["a"]).any()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{prompt} {answer} {Answer}", r"nothing fills \{Answer\}; did you mean \{answer\}\?"),
        ("{prompt} {answer_a} {answer b}", r"nothing fills \{answer b\}; did you mean \{answer_b\}\?"),
        ("{prompt} {answer} { answer }", r"nothing fills \{ answer \}; did you mean \{answer\}\?"),
        ("{prompt} {answer} {topic}", r"nothing fills \{topic\}; it is filled with \{prompt\}"),
        ("{prompt} {{answer}}", r"it has \{prompt\}"),
    ],
)
def test_what_nothing_fills_is_refused(text: str, said: str) -> None:
    """The controls are what is no word, and a word in doubled braces, which is text."""
    with pytest.raises(ValidationError, match=said):
        pairs.Config(base="none", data="none", judge_prompt=text)
    fine = '{prompt} {answer} {{topic}} {"score": 1} {} {1}'
    assert pairs.Config(base="none", data="none", judge_prompt=fine).judge_prompt == fine
    found = judgement.filled(fine, PROMPTS[0], answer="{{a}} {prompt}")
    assert found == 'Which {answer_b} is red? {{a}} {prompt} {topic} {"score": 1} {} {1}'


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
    with pytest.raises(
        InputError, match=r"prompts.jsonl:1: what judge_prompt asks of this prompt has [\d,]+ tokens, and 1 x"
    ):
        make(pipeline, tmp_path, judge_prompt=ALONE + " Think of it." * 200)
    for stage, why in ((ppo, "here a prompt has one. Ask of one"), (reinforce_pp, "group_size is 1")):
        with pytest.raises(ValidationError, match=f"judge_prompt compares two answers, and {why}"):
            settings(stage.Config, judge_prompt=PAIRWISE, **({"group_size": 1} if stage is reinforce_pp else {}))
    judged = settings(grpo.Config, judge_prompt=ALONE, judges={"judge_prompt": "j.py:f"})
    with pytest.raises(InputError, match="judges: judge_prompt is what a model that is asked is called"):
        judged.check_parents({})
    with pytest.raises(ValidationError, match="judge_prompt asks of answers to prompts: set data"):
        evaluate.Config(compare=["a"], texts="t.jsonl", judge_prompt=ALONE)


def test_special_tokens_in_an_answer_are_text(direct: Direct) -> None:
    """An answer that spells an end of turn does not end what the judge is asked, and stops no run."""
    plain = direct.renderer
    token = plain.tokenizer.convert_ids_to_tokens(plain.stop_ids[0])
    (example,) = judgement.of_questions(plain, 512).preferences([judgement._asked(f"a {token} b", ("A", "B"), "x")])
    assert plain.stop_ids[0] not in example.sequences[0][: example.shared - 1]
    with pytest.raises(InputError, match="holds the special token"):  # negative control
        plain.preferences([judgement._asked(f"a {token} b", ("A", "B"), "x")])
