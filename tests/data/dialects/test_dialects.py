"""Rows that others publish mean what their makers say: every dialect's example row beside the record by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from align.data.dialects.table import DIALECTS
from align.data.formats import read_conversations, read_preferences, read_prompts
from align.data.judged import read_labelled
from align.data.records import Conversation, Message, Preference, Prompt
from align.ground.errors import InputError

HI, HELLO, WHAT, HM = (
    Message("user", "Hi"),
    Message("assistant", "Hello!"),
    Message("assistant", "What?"),
    Message("assistant", "Hm."),
)
PAIR = [Preference((HI,), (HELLO,), (WHAT,))]
THREE = [Preference((HI,), (a,), (b,)) for a, b in ((HELLO, HM), (HELLO, WHAT), (HM, WHAT))]


def chat(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


# ---- pairs: the row, and what in it turns the verdict round, and makes it a tie --------------------------------------

TWO: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any] | None]] = {
    "pku_saferlhf": (
        {
            "prompt": "Hi",
            "response_0": "Hello!",
            "response_1": "What?",
            "better_response_id": 0,
            "safer_response_id": 1,
        },
        {"better_response_id": 1},
        None,
    ),
    "helpsteer": (
        {"prompt": "Hi", "response_1": "Hello!", "response_2": "What?", "preference_strength": -3},
        {"preference_strength": 1},
        {"preference_strength": 0},
    ),
    "helpsteer 3": (
        {"context": chat("Hi"), "response1": "Hello!", "response2": "What?", "overall_preference": -1, "domain": "x"},
        {"overall_preference": 2},
        {"overall_preference": 0},
    ),
    "lmsys": (
        {
            "prompt": '["Hi"]',
            "response_a": '["Hello!"]',
            "response_b": '["What?"]',
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
        {"winner_model_a": 0, "winner_model_b": 1},
        {"winner_model_a": 0, "winner_tie": 1},
    ),
    "arena": (
        {"conversation_a": chat("Hi", "Hello!"), "conversation_b": chat("Hi", "What?"), "winner": "model_a"},
        {"winner": "model_b"},
        {"winner": "tie (bothbad)"},
    ),
    "alpaca_eval": (
        {"instruction": "Hi", "output_1": "Hello!", "output_2": "What?", "preference": 1.1, "annotator": "x"},
        {"preference": 2},
        {"preference": 1.5},
    ),
    "shp": (
        {"history": "Hi", "human_ref_A": "Hello!", "human_ref_B": "What?", "labels": 1, "score_A": 3, "score_B": 9},
        {"labels": 0},
        None,
    ),
    "stack_exchange_paired": (
        {"question": "Hi", "response_j": "Hello!", "response_k": "What?", "qid": 1},
        {"response_j": "What?", "response_k": "Hello!"},
        None,
    ),
    "openai": (
        {
            "input": {"messages": chat("Hi"), "tools": []},
            "preferred_output": chat("", "Hello!")[1:],
            "non_preferred_output": chat("", "What?")[1:],
        },
        {"preferred_output": chat("", "What?")[1:], "non_preferred_output": chat("", "Hello!")[1:]},
        None,
    ),
}


@pytest.mark.parametrize("name", TWO)
def test_two_answers_and_a_verdict(write: Callable[..., str], name: str) -> None:
    row, turned, tie = TWO[name]
    records = read_preferences(write(row))
    assert records == PAIR and f"rows of {name.split()[0]}" in str(records)
    assert read_preferences(write({**row, **turned})) == [Preference((HI,), (WHAT,), (HELLO,))]
    if tie:
        found = read_preferences(write(row, {**row, **tie}))
        assert found == PAIR and found.dropped == {"pairs whose answers are called equally good": 1}
    assert [r.messages for r in read_prompts(write(row))] == [(HI,)]
    assert [(r.completion, r.label) for r in read_labelled()(write(row))] == [((HELLO,), True), ((WHAT,), False)]


def test_turns_of_lmsys_are_dialogues(write: Callable[..., str]) -> None:
    row = TWO["lmsys"][0] | {
        "prompt": '["Hi", "Joke?"]',
        "response_a": '["Hello!", "No."]',
        "response_b": '["What?", "Yes."]',
    }
    (pair,) = read_preferences(write(row))
    joke = Message("user", "Joke?")
    assert pair == Preference(
        (HI,), (HELLO, joke, Message("assistant", "No.")), (WHAT, joke, Message("assistant", "Yes."))
    )


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("pku_saferlhf", {"better_response_id": 2}, '"better_response_id" is 2; expected one of 0, 1'),
        ("helpsteer", {"preference_strength": 9}, '"preference_strength" is 9'),
        ("lmsys", {"winner_model_b": 1}, "of winner_model_a, winner_model_b, winner_tie exactly one must be 1"),
        ("lmsys", {"response_a": '["a", "b"]'}, '"prompt" has 1 turns and "response_a" 2'),
        ("arena", {"winner": ["model_a"]}, '"winner" is a list'),
        ("alpaca_eval", {"preference": 3}, '"preference" is 3'),
        ("shp", {"labels": None}, '"labels" is null'),
    ],
)
def test_verdicts_that_are_none(write: Callable[..., str], name: str, change: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"^rows.jsonl:1: {message}"):
        read_preferences(write({**TWO[name][0], **change}))


# ---- lists of answers ------------------------------------------------------------------------------------------------

LISTS: dict[str, dict[str, Any]] = {
    "ours": {"prompt": "Hi", "responses": ["Hm.", "Hello!", "What?"], "scores": [5, 9.5, "1"]},
    "ours, ranked": {"prompt": "Hi", "responses": ["Hm.", "Hello!", "What?"], "ranks": [2, 1, 3]},
    "nectar": {
        "prompt": "\n\nHuman: Hi\n\nAssistant: ",
        "answers": [{"answer": "Hello!", "rank": 1.0}, {"answer": "What?", "rank": 3}, {"answer": "Hm.", "rank": 2}],
    },
    "ultrafeedback": {
        "instruction": "Hi",
        "completions": [
            {"response": "Hello!", "overall_score": 9, "fine-grained_score": 1},
            {"response": "Hm.", "overall_score": 5, "fine-grained_score": 2},
            {"response": "What?", "overall_score": 1, "fine-grained_score": 3},
        ],
    },
    "stack_exchange": {
        "question": "Hi",
        "answers": [
            {"text": "Hello!", "pm_score": 5},
            {"text": "What?", "pm_score": 0},
            {"text": "Hm.", "pm_score": 1},
        ],
    },
    "distilabel": {"instruction": "Hi", "generations": ["Hm.", "Hello!", "What?"], "ratings": [3, 5, 1]},
    "argilla": {
        "fields": {"prompt": "Hi", "one": "Hello!", "two": "Hm.", "three": "What?"},
        "responses": [
            {
                "status": "submitted",
                "values": {
                    "order": {"value": [{"value": v, "rank": r} for r, v in enumerate(("one", "two", "three"))]}
                },
            }
        ],
    },
    "oasst": {
        "prompt": {
            "role": "prompter",
            "text": "Hi",
            "replies": [
                {"role": "assistant", "text": said, "rank": rank, "replies": []}
                for said, rank in (("Hello!", 0), ("Hm.", 1), ("What?", 2))
            ],
        }
    },
}


def as_set(records: Any) -> set[str]:
    return {str(record) for record in records}


@pytest.mark.parametrize("name", LISTS)
def test_every_two_of_several_answers(write: Callable[..., str], name: str) -> None:
    """K choose 2 (Ouyang et al. 2022, section 3.5)."""
    records = read_preferences(write(LISTS[name]))
    plain = [Preference(p.prompt, p.chosen, p.rejected, p.margin) for p in records]
    assert as_set(plain) == as_set(THREE) and len(plain) == 3
    assert name.startswith("ours") or f"rows of {name}" in str(records)


def test_answers_worth_the_same_are_ties(write: Callable[..., str]) -> None:
    records = read_preferences(write({**LISTS["ours"], "scores": [1, 9, 1]}))
    assert len(records) == 2 and records.dropped == {"pairs whose answers are called equally good": 1}
    for change, message in (
        ({"scores": [1, 2]}, '"responses" holds 3 answers and "scores" 2 numbers'),
        ({"scores": [1, 2, "x"]}, '"responses" holds 3 answers and "scores" 2 numbers'),
        ({"responses": ["a"], "scores": [1]}, "expected at least two answers"),
    ):
        with pytest.raises(InputError, match=f"^rows.jsonl:1: .*{message}"):
            read_preferences(write({**LISTS["ours"], **change}))
    with pytest.raises(InputError, match="which of them are desirable is not said"):
        read_labelled()(write(LISTS["ours"]))


def test_answers_in_order_where_the_shape_says_so(write: Callable[..., str]) -> None:
    """Keys alone cannot tell it."""
    for row in (
        {"prompt": "Hi", "answers": ["Hello!", "Hm.", "What?"]},
        {"instruction": "Hi", "input": "", "output": ["Hello!", "Hm.", "What?"]},  # LLaMA-Factory's older pairs
    ):
        assert read_preferences(write(row), shape="ranked") == THREE
        with pytest.raises(InputError, match='"chosen" and "rejected" are missing'):
            read_preferences(write(row))


def test_deeper_messages_of_a_tree(write: Callable[..., str]) -> None:
    deeper = {"role": "prompter", "text": "Joke?", "replies": LISTS["oasst"]["prompt"]["replies"][:2]}
    tree = {"prompt": {"role": "prompter", "text": "Hi", "replies": [
        {"role": "assistant", "text": "Yo", "rank": None, "replies": [deeper]}]}}  # fmt: skip
    (pair,) = read_preferences(write(tree))
    assert pair == Preference((HI, Message("assistant", "Yo"), Message("user", "Joke?")), (HELLO,), (HM,))
    tree["prompt"]["replies"] = []
    with pytest.raises(InputError, match="every row was left out"):
        read_preferences(write(tree))


# ---- dialogues -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("capybara", {"conversation": [{"input": "Hi", "output": "Hello!"}], "source": "x"}),
        ("capybara", {"conversations": ["Hi", "Hello!"]}),  # LIMA
        ("capybara", {"id": "0", "data": ["Hi", "Hello!"]}),  # UltraChat
        (
            "wildchat",
            {"conversation": [{**m, "language": "English", "toxic": False} for m in chat("Hi", "Hello!")], "turn": 1},
        ),
        ("openrlhf", {"context_messages": chat("Hi", "Hello!")}),
    ],
)
def test_dialogues(write: Callable[..., str], name: str, row: dict[str, Any]) -> None:
    records = read_conversations(write(row))
    assert records == [Conversation((HI, HELLO))] and f"rows of {name}" in str(records)
    assert [r.messages for r in read_prompts(write(row))] == [(HI,)]


def test_roles_of_other_assistants(write: Callable[..., str]) -> None:
    for role in ("gpt", "bing", "bard", "chatgpt", "assistant"):
        row = {"conversations": [{"from": "human", "value": "Hi"}, {"from": role, "value": "Hello!"}]}
        assert read_conversations(write(row)) == [Conversation((HI, HELLO))]
    with pytest.raises(InputError, match='has the from "moderator"'):
        read_conversations(write({"conversations": [{"from": "moderator", "value": "Hi"}]}))


def test_questions_of_mt_bench(write: Callable[..., str]) -> None:
    records = read_prompts(write({"question_id": 81, "category": "writing", "turns": ["Hi", "Again"]}))
    assert records == [Prompt((HI,), {"question_id": 81, "category": "writing", "turns": ["Hi", "Again"]})]
    assert "the first turn alone" in str(records)


def test_prompts_of_our_own_keep_their_columns(write: Callable[..., str]) -> None:
    """Judges get a row's keys as they are, whatever dialect it could be in."""
    row = TWO["pku_saferlhf"][0]
    assert read_prompts(write(row))[0].columns == {key: value for key, value in row.items() if key != "prompt"}


# ---- settings --------------------------------------------------------------------------------------------------------


def test_columns_are_called_as_the_settings_say(write: Callable[..., str]) -> None:
    columns = {"prompt": "query", "chosen": "good", "rejected": "answers.bad"}
    row = {"query": "Hi", "good": "Hello!", "answers": {"bad": "What?"}}
    assert read_preferences(write(row), columns=columns) == PAIR
    with pytest.raises(InputError, match="are missing"):
        read_preferences(write(row))  # negative control
    assert read_preferences(write({"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}), columns=columns) == PAIR
    records = read_preferences(write({**row, "prompt": "kept"}), columns=columns)
    assert records == PAIR and "not used: answers, prompt of the file" in str(records)
    for wrong, message in (
        ({"promt": "query"}, "columns.promt: no row of ours has the key 'promt'; did you mean prompt?"),
        ({"prompt": "q"}, 'rows.jsonl:1: columns.prompt names "q", which the row lacks; found query, good, answers.'),
        ({"prompt": "good", "chosen": "good"}, "columns: 'good' stands for two keys"),
    ):
        with pytest.raises(InputError, match=message.replace("?", r"\?")):
            read_preferences(write(row), columns=wrong)


def test_columns_that_no_row_has_are_said(write: Callable[..., str], tmp_path: Path) -> None:
    """Rows may have our own keys beside a setting that serves other files; one row that has the column is enough. A
    column of CSV is called as it stands there, though it is read as ours."""
    ours = {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}
    columns = {"prompt": "query", "chosen": "answers.good"}
    records = read_preferences(write(ours, {"query": "Hi", **ours}), columns=columns)
    assert str(records).endswith('; no row has "answers.good" (columns.chosen)')
    assert "no row" not in str(read_preferences(write(ours), columns={"prompt": "prompt"}))
    table = tmp_path / "rows.csv"
    table.write_text("Question,Best\nHi,Hello!\n")
    found = read_conversations(str(table), columns={"prompt": "Question", "completion": "Best"})
    assert found == [Conversation((HI, HELLO))] and "no row" not in str(found)


def test_shapes_by_name(write: Callable[..., str]) -> None:
    row = TWO["pku_saferlhf"][0]
    assert read_preferences(write(row), shape="pku_saferlhf") == PAIR
    for shape, message in (
        ("ours", '"chosen" and "rejected" are missing'),
        ("arena", '"chosen" and "rejected" are missing'),
        ("pku", "shape: pku is not known. Expected ours or one of openai, pku_saferlhf"),
        ("mt_bench", "shape: mt_bench holds no preferences"),
    ):
        with pytest.raises(InputError, match=message):
            read_preferences(write(row), shape=shape)


def test_every_dialect_has_an_example() -> None:
    tested = {*(name.split()[0] for name in TWO), *LISTS, "ranked", "capybara", "wildchat", "openrlhf", "mt_bench"}
    assert DIALECTS.keys() <= tested
