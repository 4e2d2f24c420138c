"""Process rewards: what is read, where a step's score is read, the loss beside transformers' token classification, and
what becomes of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel
from pydantic import ValidationError
from transformers import AutoModelForTokenClassification

from align import reward
from align.data.counts import Counts
from align.data.examples import Example
from align.data.formats import read_preferences
from align.data.judged import read_steps
from align.data.records import Message, Stepwise
from align.data.tools.canonical import as_row
from align.data.tools.kinds import ReadAs, kind_of
from align.ground.errors import InputError, NothingLeft
from align.measures.statistics import step_statistics
from align.models.base import load_base
from align.models.heads import ScoreHead
from align.models.roles import Roles
from align.packed.pack import microbatches, pack
from align.recipe import idle
from align.rendering.mask import at_steps
from align.rendering.render import Renderer, load_renderer
from align.rendering.tokens import Tokens
from align.rendering.turns import Rendered
from align.rl.reward_gate import check_rewards
from align.store import Artifact
from tests.conftest import COLOURS, Pipeline, write_rows
from tests.stages.helpers import history, run, settings

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
ROWS: list[dict[str, Any]] = [
    {"prompt": "3 + 4 + 5?", "completions": ["3 + 4 is 7.", "7 + 5 is 13."], "labels": [True, False]},
    {"prompt": "2 + 2 + 2?", "completions": ["2 + 2 is 5.", "5 + 2 is 7.", "It is 7."], "labels": [0, 1, 1]},
    {"prompt": "3 + 4 + 5?", "completions": ["It is 12."], "labels": [True]},
]


def test_rows_are_read(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "steps.jsonl", ROWS)
    first, second, _ = read_steps("\n")(path)
    assert first.steps == ("3 + 4 is 7.", "7 + 5 is 13.") and first.labels == (True, False)
    assert second.labels == (False, True, True) and first.ends == [12, 24]
    assert first.completion == (Message("assistant", "3 + 4 is 7.\n7 + 5 is 13."),)
    assert [kind_of(record) for record in ReadAs(None)(path)] == ["steps"] * 3
    again = write_rows(tmp_path / "again.jsonl", [as_row(first), as_row(second)])
    assert [*read_steps("\n")(again)] == [first, second]
    with pytest.raises(InputError, match="These rows hold steps that are called right or wrong, for reward"):
        read_preferences(path)
    for row, why in (
        ({"completions": ["a", "b"], "labels": [True]}, "holds 2 steps and .labels. 1 labels; expected one label"),
        ({"completions": ["a", " "], "labels": [True, True]}, "step 2 of .completions. is empty"),
        ({"completions": "a", "labels": [True]}, "expected a list, an entry for each step"),
        ({"completions": ["a"], "labels": ["maybe"]}, "expected true .desirable. or false"),
        ({"completions": ["a"]}, '"labels" is missing. A stepwise answer needs prompt, completions and labels'),
    ):
        with pytest.raises(InputError, match=why):
            read_steps("\n")(write_rows(tmp_path / "bad.jsonl", [{"prompt": "?", **row}]))


def test_three_kinds_of_labels_in_a_file_are_refused(tmp_path: Path) -> None:
    """Whatever their order and whatever becomes of bad rows: where -1 is wrong, 0 is neutral (PRM800K)."""

    def written(labels: list[list[Any]]) -> Path:
        rows = [{"prompt": "?", "completions": ["a"] * len(each), "labels": each} for each in labels]
        return write_rows(tmp_path / "steps.jsonl", rows)

    told = r'steps.jsonl:{0} has 0 in "labels", and .*steps.jsonl:{1} has -1 in "labels": beside -1, 0 means neutral'
    for labels, zero, minus in (([[1, 0], [1], [-1]], 1, 3), ([["-1"], [1.0, 0.0]], 2, 1), ([[0, -1]], 1, 1)):
        path = written(labels)
        for read in (read_steps("\n"), lambda path: read_steps("\n")(path, "drop"), ReadAs(None)):
            with pytest.raises(InputError, match=told.format(zero, minus)):
                read(path)
    for wrong in (0, -1, False):  # negative control: two kinds
        assert [r.labels for r in read_steps("\n")(written([[1, wrong], [True]]))] == [(True, False), (True,)]


@pytest.fixture
def renderer(trained: Pipeline) -> Renderer:
    return load_renderer(trained.store.folder(trained.made["sft"]) / "tokenizer", None, 128)


def records(separator: str = "\n") -> list[Stepwise]:
    return [
        Stepwise(
            (Message("user", row["prompt"]),), tuple(row["completions"]), tuple(map(bool, row["labels"])), separator
        )
        for row in ROWS
    ]


@pytest.mark.parametrize("separator", ["\n", " ki\n"])
def test_a_step_ends_where_its_separator_does(separator: str, renderer: Renderer) -> None:
    """Truth: the text up to and with the token that counts, decoded, ends with the step and its separator; the last
    one's with the end of turn."""
    for record, example in zip(records(separator), renderer.labelled(records(separator)), strict=True):
        (ids,), (counted,) = example.sequences, example.supervised
        ends = [i for i, counts in enumerate(counted) if counts]
        assert len(ends) == len(record.steps) == len(example.labels) and example.labels == record.labels
        for end, step in zip(ends[:-1], record.steps[:-1], strict=True):
            assert renderer.tokenizer.decode(ids[: end + 1]).endswith(step + separator)
            assert not renderer.tokenizer.decode(ids[:end]).endswith(step + separator)
        assert ends[-1] == len(ids) - 1 and ids[-1] in renderer.stop_ids


def test_two_steps_in_one_token_are_refused() -> None:
    tokens = Tokens([1, 2, 3], offsets=[(0, 1), (1, 5), (5, 6)])
    row = Rendered("abcdef", [(0, 6)], [], "rows:1", steps=[3, 5, 6])
    with pytest.raises(InputError, match=r"^rows:1: steps 1 and 2 end in one token"):
        at_steps(row, tokens, 3, "rows:1")
    assert at_steps(replace(row, steps=[1, 5, 6]), tokens, 3, "rows:1") == [True, True, True]
    assert at_steps(replace(row, steps=[4, 6]), tokens, 3, "rows:1") == [False, True, True]


class Direct:
    """transformers' token classification with two labels and PEFT's adapter: TRL's `PRMTrainer` on the same tokens."""

    def __init__(self, pipeline: Pipeline, folder: Path):
        self.base = pipeline.store.materialise(pipeline.made["pretrain"], folder / "base", "model")
        self.adapter = pipeline.store.folder(pipeline.made["sft"]) / "adapters/0"
        model = AutoModelForTokenClassification.from_pretrained(self.base, num_labels=2, dtype=torch.float32)
        self.weight = torch.linspace(-0.3, 0.4, model.config.hidden_size)
        with torch.no_grad():
            model.score.weight.copy_(torch.stack([torch.zeros_like(self.weight), self.weight]))
            model.score.bias.zero_()
        config = PeftConfig.from_pretrained(self.adapter)
        config.task_type = None
        self.model = PeftModel.from_pretrained(model, self.adapter, config=config, is_trainable=True).eval()

    def loss(self, examples: list[Example]) -> torch.Tensor:
        """As its collator pads them: -100 wherever no step ends."""
        longest = max(len(e.sequences[0]) for e in examples)
        ids = torch.zeros(len(examples), longest, dtype=torch.long)
        mask, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
        for i, e in enumerate(examples):
            n = len(e.sequences[0])
            ids[i, :n], mask[i, :n] = torch.tensor(e.sequences[0]), 1
            labels[i, :n][torch.tensor(e.supervised[0])] = torch.tensor(e.labels).long()
        found: torch.Tensor = self.model(input_ids=ids, attention_mask=mask, labels=labels).loss
        return found

    def roles(self) -> Roles:
        roles = Roles(load_base(self.base, quantize=None, dtype=torch.float32))
        roles.load_adapter("policy", self.adapter)
        head = ScoreHead(len(self.weight))
        head.weight.data.copy_(self.weight)
        roles.assign("policy", ["policy"], head)
        roles.train_only("policy", heads=["policy"])
        return roles


def test_the_loss_is_that_of_token_classification(
    trained: Pipeline, tmp_path: Path, renderer: Renderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Value and gradient of the adapter, packed with a shared prompt, against rows one beside the other."""
    direct, roles, examples = (made := Direct(trained, tmp_path)), made.roles(), [*renderer.labelled(records())]
    ready = reward.told(examples)
    (together,) = microbatches(ready, 4096)
    batch = pack([ready[i] for i in together])
    steps = sum(len(e.labels) for e in examples)
    assert batch.counts["tokens"] == steps == 6 and len(batch.layout.groups) < len(examples)
    mine = reward.loss_of_steps(roles, batch).scalar({"tokens": steps})
    truth = direct.loss(examples)
    assert mine.item() == pytest.approx(truth.item(), abs=1e-6)
    mine.backward()
    truth.backward()
    theirs = {n.removeprefix("base_model.model."): p.grad for n, p in direct.model.named_parameters() if "lora_" in n}
    ours = {name: p.grad for name, p in roles.trainable().items() if "lora_" in name}
    assert len(ours) == len(theirs) > 0
    for name, gradient in ours.items():
        found = theirs[name.removeprefix("base.").replace(".policy.", ".default.")]
        torch.testing.assert_close(gradient, found, atol=1e-6, rtol=0)
    flipped = [Example(e.sequences, e.supervised, e.shared, labels=tuple(not x for x in e.labels)) for e in examples]
    assert abs(direct.loss(flipped).item() - mine.item()) > 1e-3  # negative control
    with monkeypatch.context() as patch:  # negative control: one token earlier
        patch.setattr(Roles, "scores_at", lambda self, role, b: self.heads[role](self.hidden_as(role, b, b.rows)))
        assert abs(reward.loss_of_steps(roles, batch).scalar({"tokens": steps}).item() - truth.item()) > 1e-4


def test_the_last_step_alone(renderer: Renderer) -> None:
    for record, example in zip(records(), map(reward.last_alone, renderer.labelled(records())), strict=True):
        assert sum(example.supervised[0]) == 1 and example.supervised[0][-1]
        assert example.labels == record.labels[-1:]


def test_an_answer_without_its_last_step_has_no_outcome(renderer: Renderer, capsys: pytest.CaptureFixture[str]) -> None:
    """Rows cut one token before the longest one's end: that is left out and counted, though a step of it counts."""
    whole = [*renderer.labelled(records())]
    longest = max(len(e.sequences[0]) for e in whole)
    short = replace(renderer, truncate="cut", max_length=longest - 1, counts=Counts())
    cut = [*short.labelled(records())]
    assert len(cut) == len(whole) and any(e.labels and not e.supervised[0][-1] for e in cut)
    bench: Any = SimpleNamespace(title="my-reward", left_out={})
    found = reward.last_steps(bench, short, cut)
    assert [e.sequences for e in found] == [e.sequences for e in whole if len(e.sequences[0]) < longest]
    assert all(e.supervised[0][-1] for e in found) and bench.left_out["left_out/data/last_step_cut_off"] == 1
    assert "my-reward: 1 answers are left out, as max_length cuts their last step off" in capsys.readouterr().err
    assert len(reward.last_steps(bench, renderer, whole)) == len(whole)  # negative control
    with pytest.raises(NothingLeft, match="max_length cuts the last step of every answer off"):
        reward.last_steps(bench, short, [e for e in cut if not e.supervised[0][-1]])


def test_statistics_by_hand() -> None:
    """Five steps, three right: scores of 2, -1, 0 for right ones and -3, 4 for wrong ones tell 1, 0, half, 1 and 0."""
    found = step_statistics(np.array([2.0, -3.0, -1.0, 0.0, 4.0]), [(True, False), (True, True, False)], ["a", "b"])
    losses = [math.log1p(math.exp(-2)), math.log1p(math.exp(-3)), math.log1p(math.exp(1)), math.log(2)]
    losses += [math.log1p(math.exp(4))]
    assert found["eval/loss"] == pytest.approx(sum(losses) / 5) and found["eval/step_accuracy"] == 0.5
    assert found["eval/commoner_label"] == 0.6 and (found["eval/steps"], found["eval/prompts"]) == (5, 2)
    low, high = found["eval/step_accuracy_ci95"]
    assert low < 0.5 < high and step_statistics(np.zeros(0), [], []) == {}


def made_of(pipeline: Pipeline, folder: Path, **changes: Any) -> Artifact:
    """Steps are right where they name the colour that was asked for."""
    names = list(COLOURS)
    rows = [
        {
            "prompt": f"Count {i}: name {names[i % 8]} twice.",
            "completions": [names[i % 8], names[(i + i % 3) % 8]],
            "labels": [True, i % 3 == 0],
        }
        for i in range(24)
    ]
    given = {"data": write_rows(folder / "steps.jsonl", rows), "steps": True, "max_steps": 6, "batch_size": 8}
    return run(pipeline, "reward", **{**given, "eval_fraction": 0.25, "learning_rate": 1e-2, **changes})


def test_it_trains_and_rewards(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From ln 2, as a head of zeros has no opinion; what it makes is a reward of `best_of_n`, by the last step, and its
    bias is not moved."""
    made = made_of(pipeline, tmp_path)
    losses = [row["loss"] for row in history(made, pipeline.store)]
    assert losses[0] == pytest.approx(math.log(2), abs=1e-6) and losses[-1] < losses[0] - 0.02
    assert made.kind == "reward" and made.metrics["eval/steps"] == 2 * made.metrics["eval/prompts"]
    assert 0 <= made.metrics["eval/step_accuracy"] <= 1 and "eval/accuracy" not in made.metrics
    head = ScoreHead.load(pipeline.store.folder(made) / "head.safetensors")
    assert head.bias == 0 and head.weight.abs().sum() > 0
    assert {"step_separator", "train_on_last_step_only"} <= made.config.keys() and "centre" not in made.config
    alone = made_of(pipeline, tmp_path, train_on_last_step_only=True)
    assert alone.digest != made.digest and alone.metrics["eval/steps"] == made.metrics["eval/steps"]
    assert "so nothing is told apart" not in capsys.readouterr().err
    rows = [{**row, "labels": [False] * len(row["labels"])} for row in ROWS]
    made_of(pipeline, tmp_path, data=write_rows(tmp_path / "wrong.jsonl", rows), max_steps=1, eval_fraction=0)
    assert "warning: all steps are called wrong, so nothing is told apart" in capsys.readouterr().err
    (note,) = check_rewards({"reward": made}, {}, trust=True)
    assert "held-out steps rightly" in note and "An answer's score is that of its last step" in note
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": "Name red."}])
    chosen = run(pipeline, "grpo", reward=made.digest, data=prompts, max_steps=1, trust_reward=True)
    assert chosen.parents["reward"] == made.digest


def test_the_gate(pipeline: Pipeline, tmp_path: Path) -> None:
    """Surely worse than the commoner label is refused, unless it is trusted."""
    found = {"eval/step_accuracy": 0.4, "eval/step_accuracy_ci95": [0.35, 0.45], "eval/commoner_label": 0.6}
    made: Any = type("Made", (), {"metrics": {**found, "eval/steps": 900}, "config": {"steps": True}, "short": "x"})()
    with pytest.raises(InputError, match=r"reward \(x\) tells 40.0% of its 900 held-out steps rightly .* label alone"):
        check_rewards({"reward": made}, {}, trust=False)
    assert len(check_rewards({"reward": made}, {}, trust=True)) == 1
    made.metrics = {}
    assert "was never measured: it had no held-out steps" in check_rewards({"reward": made}, {}, trust=False)[0]


def test_what_goes_together(pipeline: Pipeline) -> None:
    given = settings(pipeline, "reward", steps=True, centre=0.1, centre_samples=4)
    assert {".".join(path) for path, _ in idle(given, "adapter")} == {"centre", "centre_samples"}
    stopped = settings(pipeline, "reward", steps=True, guard={"stop": ["overfitting"]})
    assert [text for _, text in idle(stopped, "adapter")] == [
        "guard.stop has no effect: it names overfitting, and steps is on, where that is not seen. Leave that out."
    ]
    assert [".".join(path) for path, _ in idle(settings(pipeline, "reward", step_separator=" "), "adapter")] == [
        "step_separator"
    ]
    with pytest.raises(ValidationError, match="both lists and steps are set"):
        settings(pipeline, "reward", steps=True, lists=True)
    assert json.loads(json.dumps(as_row(records()[0])))["labels"] == [True, False]
