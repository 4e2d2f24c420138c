"""Keys that say something are honoured or refused; every other key is named once. The truth is the dialogue written out
by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from align.data.formats import (
    read_conversations,
    read_pairs,
    read_preferences,
    read_prompts,
    read_texts,
)
from align.data.judged import read_labelled, read_steps
from align.data.records import Conversation, Labelled, Message, Preference, Prompt
from align.data.shapes.keys import KEYS, LABELLED, REFUSED, STEPWISE
from align.ground.errors import InputError

SEVEN = Message("assistant", "7")
PAIR = {"chosen": "7", "rejected": "8"}


def user(text: str) -> Message:
    return Message("user", text)


OPENINGS: list[tuple[dict[str, Any], tuple[Message, ...]]] = [
    ({"instruction": "Add.", "input": "3 and 4"}, (user("Add.\n3 and 4"),)),  # Alpaca; LLaMA-Factory joins so
    ({"instruction": "Add 3 and 4.", "input": ""}, (user("Add 3 and 4."),)),
    ({"input": "3 + 4"}, (user("3 + 4"),)),
    ({"question": "Who won?", "context": "Ann was first."}, (user("Who won?\nAnn was first."),)),  # Dolly
    # OpenOrca
    ({"system_prompt": "Be terse.", "question": "3 + 4?"}, (Message("system", "Be terse."), user("3 + 4?"))),
    (
        {"prompt": "And 4?", "history": [["Is 3 odd?", "Yes."]]},
        (user("Is 3 odd?"), Message("assistant", "Yes."), user("And 4?")),
    ),
    (
        {"prompt": "3 + 4?", "history": json.dumps([["Hi", "Hello"]])},
        (user("Hi"), Message("assistant", "Hello"), user("3 + 4?")),
    ),
    ({"prompt": "3 + 4?", "history": [], "system": "", "context": None}, (user("3 + 4?"),)),
]


@pytest.mark.parametrize(("row", "opening"), OPENINGS, ids=str)
def test_all_kinds_begin_alike(write: Callable[..., str], row: dict[str, Any], opening: tuple[Message, ...]) -> None:
    """sft, pairs and prompts of one row begin alike: what is trained on begins with what is sampled from."""
    for completion in ("completion", "output", "response", "answer"):
        (record,) = read_conversations(write({**row, completion: "7"}))
        assert record == Conversation((*opening, SEVEN), len(opening) if len(opening) == 3 else 0)
    assert read_preferences(write({**row, **PAIR})) == [Preference(opening, (SEVEN,), (Message("assistant", "8"),))]
    assert read_prompts(write({**row, "answer": "7"})) == [Prompt(opening, {"answer": "7"})]
    assert read_prompts(write({**row, "answer": "7"})) != [Prompt((*opening[:-1], user("Add.")), {"answer": "7"})]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"prompt": "a", "system": "x", "system_prompt": "y"},
            "has system and system_prompt, which differ. Keep one of them.",
        ),
        ({"prompt": "a", "instruction": "b"}, 'has "prompt" and "instruction", which differ. Keep one of them.'),
        (
            {"prompt": [{"role": "user", "content": "a"}], "input": "b"},
            'has "input" beside "prompt", which holds turns.',
        ),
        ({"prompt": "a", "input": {"messages": []}}, '"input" is a mapping with messages; expected text.'),
        (
            {"prompt": "a", "history": "Hi"},
            '"history" is the text "Hi"; expected a list of [question, answer] pairs, or of messages.',
        ),
        ({"prompt": "a", "history": [["Hi"]]}, '"history" holds something else than pairs.'),
        (
            {"prompt": "a", "tools": [{"name": "f"}], "functions": [{"name": "g"}]},
            "has tools and functions. Keep one of them.",
        ),
    ],
    ids=str,
)
def test_two_that_say_what_one_can_say(write: Callable[..., str], row: dict[str, Any], message: str) -> None:
    for read, more in ((read_conversations, {"completion": "7"}), (read_preferences, PAIR)):
        with pytest.raises(InputError) as error:
            read(write({**row, **more}))
        assert str(error.value).startswith(f"rows.jsonl:1: {message}")


def test_what_is_said_twice(write: Callable[..., str]) -> None:
    """UltraChat's and UltraFeedback's rows hold the prompt beside the dialogue; another one there is an error."""
    chat = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]
    assert read_conversations(write({"prompt": "3 + 4?", "messages": chat})) == [Conversation((user("3 + 4?"), SEVEN))]
    (pair,) = read_preferences(write({"prompt": "3 + 4?", "messages": chat, "chosen": chat, "rejected": "8"}))
    assert pair.prompt == (user("3 + 4?"),)
    for read, row in (
        (read_conversations, {"prompt": "5 + 5?", "messages": chat}),
        (read_conversations, {"completion": "8", "messages": chat}),
        (read_conversations, {"messages": chat, "conversations": [*chat, *chat]}),
        (read_conversations, {"messages": [*chat, *chat], "conversations": chat}),
        (read_preferences, {"prompt": "3 + 4?", "messages": chat, "chosen": "9", "rejected": "8"}),
        (read_preferences, {"prompt": "5 + 5?", "messages": chat, **PAIR}),
    ):
        with pytest.raises(InputError, match=r"which differ|which does not hold it"):
            read(write(row))
    # a judge has it
    assert read_prompts(write({"prompt": "a", "question": "b"})) == [Prompt((user("a"),), {"question": "b"})]


def test_columns_that_other_rows_fill(write: Callable[..., str]) -> None:
    """A table of several shapes has them all, with nulls."""
    chat, nothing = (
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "7"}],
        dict.fromkeys(("prompt", "completion", "messages")),
    )
    rows = [nothing | {"prompt": "a", "completion": "7"}, nothing | {"messages": chat}]
    assert read_conversations(write(*rows)) == [Conversation((user("a"), SEVEN))] * 2
    other = [chat[0], {"role": "assistant", "content": "8"}]
    rows = [
        {"prompt": "a", **PAIR},
        {"prompt": None, "chosen": chat, "rejected": other},
        {"prompt": "", "chosen": chat, "rejected": other},
    ]
    assert read_preferences(write(*rows)) == [Preference((user("a"),), (SEVEN,), (Message("assistant", "8"),))] * 3
    assert [p.messages for p in read_prompts(write(*rows))] == [(user("a"),)] * 3


def test_thoughts_of_a_row(write: Callable[..., str]) -> None:
    (record,) = read_conversations(
        write({"prompt": "3 + 4?", "reasoning_content": "3 and 4 make 7", "completion": "7"})
    )
    assert record.messages[1] == Message("assistant", "7", reasoning="3 and 4 make 7")
    with pytest.raises(InputError, match='has "thinking", but of which answer is not said'):
        read_preferences(write({"prompt": "a", "thinking": "Hm.", **PAIR}))
    with pytest.raises(InputError, match='has "thinking" beside "messages"'):
        read_conversations(
            write(
                {
                    "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
                    "thinking": "Hm.",
                }
            )
        )


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_honoured_is_refused(write: Callable[..., str], kind: str) -> None:
    """Each such key with a value is an error that names it; without one, and with one that changes nothing, it is
    none."""
    read, row = {
        "conversation": (read_conversations, {"prompt": "a", "completion": "b"}),
        "preference": (read_preferences, {"prompt": "a", **PAIR}),
        LABELLED: (read_labelled(), {"prompt": "a", "completion": "b", "label": True}),
        STEPWISE: (read_steps("\n"), {"prompt": "a", "completions": ["b"], "labels": [True]}),
        "prompt": (read_prompts, {"prompt": "a"}),
        "document": (read_texts, {"text": "a"}),
    }[kind]
    for key in REFUSED[kind]:
        for value in (0, False, "0") if key in ("weight", "train", "label", "kto_tag") else (["x"],):
            with pytest.raises(InputError, match=f'^rows.jsonl:1: has "{key}", but '):
                read(write({**row, key: value}))  # type: ignore[operator]
        assert len(read(write({**row, key: None}, {**row, key: ""}))) == 2  # type: ignore[operator]
    assert len(read(write({**row, "weight": 1}, {**row, "train": True}, {"label": "sports", **row}))) == 3  # type: ignore[operator]


def test_keys_in_another_case_mean_the_same(write: Callable[..., str]) -> None:
    """As in the header of a CSV; they are named, and two of one name are refused."""
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "7"}]
    assert read_conversations(write({"Prompt ": "a", "COMPLETION": "7", "Id": 3})) == [Conversation((user("a"), SEVEN))]
    assert read_conversations(write({"Messages": chat})) == [Conversation((user("a"), SEVEN))]
    assert str(read_preferences(write({"Prompt": "a", "Chosen": "7", "rejected": "8", "Id": 3}))) == (
        "1 records from JSON lines (prompt, chosen, rejected); in another case: Prompt, Chosen; not used: Id"
    )
    # a judge asks for it so
    assert read_prompts(write({"prompt": "a", "Answer": "7"})) == [Prompt((user("a"),), {"Answer": "7"})]
    for row, message in (
        ({"messages": chat, "Weight": 0}, 'has "weight", but all rows count alike'),
        ({"prompt": "a", "Prompt": "b", "completion": "c"}, "the key \"prompt\" stands twice, once as 'Prompt'"),
    ):
        with pytest.raises(InputError, match=f"^rows.jsonl:1: {message}"):
            read_conversations(write(row))


@pytest.mark.parametrize("label", [-1, -1.0, "-1", 0.5, "bad", "No", "rejected", "negative", "F"])
def test_labels_that_judge_an_answer(write: Callable[..., str], label: Any) -> None:
    with pytest.raises(InputError, match='has "label", but answers with such a label are good or bad ones'):
        read_conversations(write({"prompt": "a", "completion": "b", "label": label}))
    assert (
        len(read_conversations(write(*({"prompt": "a", "completion": "b", "label": topic} for topic in ("law", 17)))))
        == 2
    )


@pytest.mark.parametrize(
    ("key", "agrees", "differs"), [("label", True, False), ("label", 1, 0), ("winner", "chosen", "rejected")], ids=str
)
def test_verdicts_on_a_pair(write: Callable[..., str], key: str, agrees: Any, differs: Any) -> None:
    """What says the same as chosen and rejected changes nothing, what says another thing is refused, by dpo's reader
    too, and a tie is left out."""
    row = {"prompt": "a", **PAIR}
    assert read_pairs(write({**row, key: agrees})) == read_pairs(write(row))
    for read in (read_pairs, read_preferences):
        with pytest.raises(
            InputError,
            match=f'^rows.jsonl:1: has "{key}", but which answer is the better is said by chosen and rejected',
        ):
            read(write({**row, key: differs}))
        records = read(write(row, {**row, key: "tie"}))
        assert len(records) == 1 and records.dropped == {"pairs whose answers are called equally good": 1}


@pytest.mark.parametrize(
    ("names", "better", "worse"),
    [
        (("score_chosen", "score_rejected"), 7, "3.5"),
        (("chosen-rating", "rejected-rating"), 5, 1),
        (("Chosen_Score", "rejected_score"), 0.2, -0.2),
        (("rank_chosen", "rank_rejected"), 1, 2),
    ],
    ids=str,
)
def test_scores_of_a_pair(write: Callable[..., str], names: tuple[str, str], better: Any, worse: Any) -> None:
    """UltraFeedback and Argilla keep them beside the answers. Of one answer alone a score says nothing, and is named as
    not used."""
    row = {"prompt": "a", **PAIR}

    def scored(one: Any, two: Any) -> str:
        return write(row, {**row, names[0]: one, names[1]: two})

    assert len(read_preferences(scored(better, worse))) == len(read_preferences(scored(None, ""))) == 2
    assert read_preferences(scored(worse, worse)).dropped == {"pairs whose answers are called equally good": 1}
    for one, two, message in (
        (worse, better, "the rejected answer is the better one"),
        ("x", better, "are not two numbers"),
    ):
        with pytest.raises(InputError, match=f"^rows.jsonl:2: .*{message}"):
            read_preferences(scored(one, two))
    assert read_preferences(write({**row, names[0]: better})).beside.lower() == names[0].lower()


def test_a_margin_below_zero(write: Callable[..., str]) -> None:
    for read in (read_pairs, read_preferences):
        with pytest.raises(InputError, match='"margin" is -1, which calls the rejected answer the better one'):
            read(write({"prompt": "a", **PAIR, "margin": -1}))
    assert read_preferences(write({"prompt": "a", **PAIR, "margin": 0}))[0].margin == 0


def test_margins_are_told_where_they_are_not_used(write: Callable[..., str]) -> None:
    """dpo's loss has none; reward's has."""
    path = write({"prompt": "a", **PAIR, "margin": 2})
    assert str(read_pairs(path)) == "1 records from JSON lines (prompt, chosen, rejected); not used: margin"
    assert str(read_preferences(path)) == "1 records from JSON lines (prompt, chosen, rejected, margin)"


def test_other_keys_are_named_once(write: Callable[..., str]) -> None:
    rows = [{"prompt": "a", "completion": "b", "id": i, "source": "x", "answer": "c"} for i in range(3)]
    assert (
        str(read_conversations(write(*rows)))
        == "3 records from JSON lines (prompt, completion); not used: id, source, answer"
    )
    assert (
        str(read_prompts(write(*rows)))
        == "3 records from JSON lines (prompt); kept beside the prompt: completion, id, source, answer"
    )
    assert str(read_texts(write({"text": "a", "url": "u"}))) == "1 records from JSON lines (text); not used: url"
    mixed = read_conversations(
        write(*rows[:2], {"messages": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]})
    )
    assert mixed.shape == "JSON lines (2 with prompt, completion; 1 with messages)"
    assert not read_conversations(write({"prompt": "a", "completion": "b"})).unused


@pytest.mark.parametrize(
    ("row", "advice"),
    [
        (
            {"prompt": "a", "response_0": "b", "response_1": "c"},
            "Write the better of response_0 and response_1",
        ),
        ({"prompt": "a", "response_a": "b", "response_b": "c", "winner": "tie"}, "leave out ties"),
        (
            {"instruction": "a", "completions": [{"response": "b"}]},
            "Write the completions as `responses`, with a list of their `scores`.",
        ),
        ({"prompt": "a", "answers": ["b", "c"]}, "set `shape: ranked`"),
        ({"input": "a", "preferred_output": "b", "non_preferred_output": "c"}, "Rename preferred_output to chosen and"),
        (
            {"prompt": "a", "response": "b", "helpfulness": 4},
            "These rows hold one answer each (response); write two of a prompt",
        ),
    ],
    ids=str,
)
def test_other_shapes_of_pairs_are_refused_with_the_mapping(
    write: Callable[..., str], row: dict[str, Any], advice: str
) -> None:
    """What is no dialect, since it does not say which answer is the better."""
    with pytest.raises(InputError) as error:
        read_preferences(write(row))
    assert advice in str(error.value) and str(error.value).startswith("rows.jsonl:1: ")


def test_tokenised_rows_and_texts_are_told_where_they_belong(write: Callable[..., str]) -> None:
    with pytest.raises(InputError, match="token ids already"):
        read_conversations(write({"input_ids": [1, 2], "labels": [-100, 2]}))
    with pytest.raises(InputError, match="for pretrain"):
        read_conversations(write({"text": "Once upon a time"}))
    with pytest.raises(InputError, match="Rename conversation to messages"):
        read_conversations(write({"conversation": [{"said": "a"}]}))
    with pytest.raises(InputError, match="These rows hold pairs, for reward and dpo"):
        read_conversations(write({"prompt": "a", "chosen": "b", "rejected": "c"}))


def test_no_key_is_both_read_and_refused() -> None:
    assert not any(set(KEYS[kind]) & REFUSED[kind].keys() for kind in KEYS)


@pytest.mark.parametrize(
    ("key", "agrees", "ties", "opposes"),
    [
        ("is_tie", (False, "no", 0), (True, "Yes", 1), ("perhaps", 3)),
        ("Tied", (False,), (True,), ([1],)),
        ("chosen_first", (True,), (), (False,)),
        ("label_prob", (1, "1.0"), (0.5, "0.5"), (0.3, 0.9, "high")),
    ],
)
def test_what_says_which_answer_is_better(
    write: Callable[..., str], key: str, agrees: tuple[Any, ...], ties: tuple[Any, ...], opposes: tuple[Any, ...]
) -> None:
    """It agrees, is a tie and left out, or is refused by its name. The controls: null, and a key that says nothing of
    the answers."""
    rows = [{"prompt": "a", **PAIR, key: value} for value in (*agrees, None)]
    assert len(read_preferences(write(*rows, {"prompt": "a", **PAIR, "position": 1}))) == len(rows) + 1
    for value in ties:
        kept = read_preferences(write({"prompt": "a", **PAIR, key: value}, {"prompt": "a", **PAIR}))
        assert kept.dropped == {"pairs whose answers are called equally good": 1} and len(kept) == 1
    for value in opposes:
        with pytest.raises(InputError, match=f'^rows.jsonl:1: (has )?"{key.lower()}"'):
            read_preferences(write({"prompt": "a", **PAIR, key: value}))


@pytest.mark.parametrize("key", ["ignore", "Skip", "excluded"])
@pytest.mark.parametrize("kind", KEYS)
def test_rows_marked_to_be_left_out(write: Callable[..., str], kind: str, key: str) -> None:
    """They are left out and counted, even where nothing else of them can be read. The controls: false, null; a prompt's
    other values go to judges, and of other kinds are refused."""
    read, row = {
        "conversation": (read_conversations, {"prompt": "a", "completion": "b"}),
        "preference": (read_preferences, {"prompt": "a", **PAIR}),
        LABELLED: (read_labelled(), {"prompt": "a", "completion": "b", "label": True}),
        STEPWISE: (read_steps("\n"), {"prompt": "a", "completions": ["b"], "labels": [True]}),
        "prompt": (read_prompts, {"prompt": "a"}),
        "document": (read_texts, {"text": "a"}),
    }[kind]
    kept: Any = read(write({**row, key: False}, {**row, key: None}, row, {**row, key: True}, {key: "yes"}))  # type: ignore[operator]
    assert len(kept) == 3 and kept.dropped == {f"rows marked {key.lower()}": 2}
    other = write({**row, key: ["x"]})
    if kind == "prompt":
        assert read_prompts(other)[0].columns == {key.lower(): ["x"]}
    else:
        with pytest.raises(InputError, match=f'^rows.jsonl:1: "{key.lower()}" is '):
            read(other)  # type: ignore[operator]


def test_answers_called_good_or_bad(write: Callable[..., str]) -> None:
    """A prompt and a completion, or a dialogue that ends with the answer; labels in words."""
    turns = [{"role": "user", "content": "3 + 4?"}, {"role": "assistant", "content": "7"}]
    rows = (
        {"prompt": "3 + 4?", "completion": "7", "label": True},
        {"instruction": "3 + 4?", "output": "7", "kto_tag": "false"},
        {"messages": turns, "Label": 1},
        {"prompt": turns[:1], "completion": turns[1:], "label": "undesirable"},
    )
    found = read_labelled()(write(*rows))
    asked = (Message("user", "3 + 4?"),)
    assert list(found) == [Labelled(asked, (SEVEN,), good) for good in (True, False, True, False)]
    for value in ("maybe", 2, 0.5, ["true"]):
        with pytest.raises(InputError, match=r'^rows\.jsonl:1: "label" is '):
            read_labelled()(write({**rows[0], "label": value}))
    with pytest.raises(InputError, match='"label" is missing'):
        read_labelled()(write({"prompt": "3 + 4?", "completion": "7"}))
