"""Pairs from a model's own answers: judged in TRL's signature, ordered by score, a counted share turned round."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from align import pairs
from align.data.formats import read_preferences
from align.ground import progress
from align.ground.errors import AlignError, InputError
from align.ground.terminal import SCREEN
from align.store import Artifact, News, live_runs
from align.watching.shown import of_live
from align.watching.terminal import headline
from tests.conftest import COLOURS, THINGS, Pipeline, write_rows

JUDGE = """
def vowels(text):
    return sum(text.count(letter) for letter in "aeiou")

def score(prompts, completions, colour, **columns):
    assert set(columns) == {"note", "completion_ids"} and len(prompts) == len(completions) == len(colour)
    for dialogue, answer, c in zip(prompts, completions, colour, strict=True):
        assert dialogue == f"Which thing is {c}?" and isinstance(answer, str)
    return [vowels(answer) for answer in completions]

def same(prompts, completions, **columns):
    return [1.0] * len(completions)

def short(prompts, completions, **columns):
    return [1.0]

def shy(prompts, completions, colour, **columns):
    # No score where the answer has no o, and none for red.
    return [vowels(a) if "o" in a and c != "red" else None for a, c in zip(completions, colour)]

def silent(prompts, completions, **columns):
    return [None] * len(completions)

def asks(completions, solution, **columns):
    raise AssertionError

async def later(prompts, completions, **columns):
    return [vowels(answer) for answer in completions]
"""


def vowels(text: str) -> int:
    return sum(text.count(letter) for letter in "aeiou")


def make(pipeline: Pipeline, folder: Path, function: str = "score", **changes: Any) -> Artifact:
    (folder / "judge.py").write_text(JUDGE)
    rows = [
        {"prompt": f"Which thing is {colour}?", "colour": colour, "note": thing}
        for colour in COLOURS
        for thing in THINGS
    ]
    data = write_rows(folder / "prompts.jsonl", rows)
    settings = {
        "parent": "tiny/sft",
        "data": data,
        "judge": f"{folder}/judge.py:{function}",
        "max_new_tokens": 12,
        "n": 3,
    }
    return pairs.run(pairs.Config(**{**settings, "precision": "fp32", "threads": 1, **changes}), pipeline.store)  # type: ignore[arg-type]


def test_answers_end_at_a_stop_text_which_is_left_out(pipeline: Pipeline, tmp_path: Path) -> None:
    plain, stopped = make(pipeline, tmp_path), make(pipeline, tmp_path, stop=["e", "qu"])
    for made, held in ((plain, True), (stopped, False)):
        rows = [json.loads(line) for line in pipeline.store.read(made, "data.jsonl").splitlines()]
        assert any("e" in row["chosen"] for row in rows) == held
    assert stopped.metrics["eos_rate"] > plain.metrics["eos_rate"]


def test_flips_are_counted_and_the_rest_is_ordered(pipeline: Pipeline, tmp_path: Path) -> None:
    """Chosen scores higher exactly where the label was not turned round; the share of those is what was asked for."""
    made = make(pipeline, tmp_path, flip=0.3)
    rows = [json.loads(line) for line in pipeline.store.read(made, "data.jsonl").splitlines()]
    assert made.kind == "data" and made.metrics["pairs"] == len(rows) > 20 and made.metrics["prompts"] == 40
    for row in rows:
        gap = vowels(row["chosen"]) - vowels(row["rejected"])
        assert gap < 0 if row["flipped"] else gap > 0
    flipped = sum(row["flipped"] for row in rows)
    assert made.metrics["flipped"] == flipped / len(rows)
    assert 0.1 < flipped / len(rows) < 0.5  # 0.3 of about 35, within three standard deviations
    records = read_preferences(pipeline.store.folder(made) / "data.jsonl")  # what reward and dpo read
    assert len(records) == len(rows) and records[0].chosen[0].content == rows[0]["chosen"]


def test_without_flips_and_with_a_wide_gap(pipeline: Pipeline, tmp_path: Path) -> None:
    plain = make(pipeline, tmp_path)
    wide = make(pipeline, tmp_path, min_gap=3.0)
    rows = [json.loads(line) for line in pipeline.store.read(plain, "data.jsonl").splitlines()]
    assert plain.metrics["flipped"] == 0.0 and all(vowels(r["chosen"]) > vowels(r["rejected"]) for r in rows)
    rows = [json.loads(line) for line in pipeline.store.read(wide, "data.jsonl").splitlines()]
    assert 0 < len(rows) < plain.metrics["pairs"] and all(vowels(r["chosen"]) - vowels(r["rejected"]) > 3 for r in rows)
    assert wide.metrics["score/mean"] == plain.metrics["score/mean"]  # the same samples


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            "same",
            "pairs: no prompt gave two answers of different score; sample more per prompt (n), or look at the judge.",
        ),
        (
            "short",
            "judge: {judge}:short gave 1 scores for 12 answers: [1.0]. "
            "Expected a list of 12 numbers, or None for no score: one for each answer.",
        ),
        (
            "absent",
            "judge: {judge} has no function 'absent'; it has vowels, score, same, short, shy, silent, asks, later.",
        ),
    ],
)
def test_judges_that_do_not_judge(function: str, message: str, pipeline: Pipeline, tmp_path: Path) -> None:
    with pytest.raises(AlignError) as error:
        make(pipeline, tmp_path, function, limit=4)
    assert str(error.value) == message.format(judge=tmp_path / "judge.py")


def test_answers_without_a_score_stand_in_no_pair(
    pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are counted, and take no part in the mean; an asynchronous judge gives the pairs that the other gives."""
    whole, made = make(pipeline, tmp_path), make(pipeline, tmp_path, "shy")
    err = capsys.readouterr().err
    rows = [json.loads(line) for line in pipeline.store.read(made, "data.jsonl").splitlines()]
    assert rows and all("o" in row["chosen"] and "o" in row["rejected"] and "red" not in row["prompt"] for row in rows)
    assert 0 < made.metrics["pairs"] < whole.metrics["pairs"] and "unscored" not in whole.metrics
    assert f"pairs: {made.metrics['unscored']} of 120 answers got no score (None) and stand in no pair" in err
    assert pipeline.store.read(make(pipeline, tmp_path, "later"), "data.jsonl") == pipeline.store.read(
        whole, "data.jsonl"
    )
    with pytest.raises(AlignError, match="gave none of 12 answers a score: all are None"):
        make(pipeline, tmp_path, "silent", limit=4)


def test_a_judge_that_asks_for_what_is_not_there(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before a model is loaded, with what there is."""
    monkeypatch.setattr("align.stage.workbench.Workbench.load_base", lambda *args: pytest.fail("the base was loaded"))
    with pytest.raises(InputError, match=r"needs 'solution', which it does not get.* the columns colour, note"):
        make(pipeline, tmp_path, "asks")


def test_who_looks_on_is_told_how_far_it_is(
    pipeline: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While answers are sampled, from another window; the file is gone at the end."""
    for constant, seconds in {"NEWS": 0.0, "AT_ONCE": 0.0, "REDRAW": 0.01}.items():
        monkeypatch.setattr(progress, constant, seconds)
    monkeypatch.setattr(progress, "_TELLER", progress._Teller())
    monkeypatch.setattr(SCREEN, "closed", False)  # as a command that ended in this process leaves it
    heads: list[str] = []
    work = News.work

    def told(self: News, how_far: str) -> None:
        work(self, how_far)
        heads.extend(headline(of_live(run), None) for run in live_runs(pipeline.store, at_work=True))

    monkeypatch.setattr(News, "work", told)
    make(pipeline, tmp_path, name="mine")
    sampled = [head for head in heads if head.startswith("mine sampling")]
    assert sampled and all(re.fullmatch(r"mine sampling \d+/\d+ answers · .* · 0:\d\d so far", h) for h in sampled)
    assert not live_runs(pipeline.store)
