"""Records of one prompt are on one side, whatever the data set."""

from __future__ import annotations

from align.data.records import Conversation, Message, Preference, Text
from align.data.split import leave_out, opening, split_by_prompt

HELLO, WHAT = Message("assistant", "Hello!"), Message("assistant", "What?")


def pairs(*prompts: str) -> list[Preference]:
    return [Preference((Message("user", p),), (Message("assistant", str(i)),), (WHAT,)) for i, p in enumerate(prompts)]


def test_split_keeps_a_prompt_on_one_side() -> None:
    records = pairs(*[f"p{i % 500}" for i in range(2000)])
    train, held_out = split_by_prompt(records, 0.1)
    sides = [{r.prompt for r in side} for side in (train, held_out)]
    assert not sides[0] & sides[1] and len(train) + len(held_out) == 2000
    assert 25 <= len(sides[1]) <= 75  # 50 expected, standard deviation 6.7
    by_row = ({r.prompt for r in records[:1800]}, {r.prompt for r in records[1800:]})
    assert by_row[0] & by_row[1]  # negative control: rows share prompts


def test_split_depends_on_nothing_but_the_prompt() -> None:
    prompts = [f"p{i}" for i in range(200)]
    held_out = {r.prompt for r in split_by_prompt(pairs(*prompts), 0.2)[1]}
    assert {r.prompt for r in split_by_prompt(pairs(*reversed(prompts)), 0.2)[1]} == held_out
    conversations = [Conversation((Message("user", p), HELLO, Message("user", "More"), WHAT)) for p in prompts]
    # other records, later turns: the same openings
    assert {r.messages[:1] for r in split_by_prompt(conversations, 0.2)[1]} == held_out
    half = {r.prompt for r in split_by_prompt(pairs(*prompts[:100]), 0.2)[1]}
    assert half == {p for p in held_out if int(p[0].content[1:]) < 100}


def test_what_is_left_out_of_one_set_is_left_out_of_all() -> None:
    """However small they are, and by whatever record. Negative control: `split_by_prompt`, whose small sets hold out
    one all the same."""
    sets = [pairs(*[f"p{1000 * k + i}" for i in range(5)]) for k in range(100)]
    everything = [record for several in sets for record in several]
    out = {r.prompt for r in leave_out(everything, 0.1)[1]}
    assert {r.prompt for several in sets for r in leave_out(several, 0.1)[1]} == out and 25 <= len(out) <= 75
    assert not {r.prompt for r in leave_out(everything, 0.1)[0]} & out
    dialogues = [Conversation((*r.prompt, HELLO, Message("user", "More"), WHAT)) for r in everything]
    assert {d.messages[:1] for d in leave_out(dialogues, 0.1)[1]} == out
    assert leave_out(dialogues, {opening(sets[0][0])})[1] == [dialogues[0]]
    assert not {r.prompt for several in sets for r in split_by_prompt(several, 0.1)[1]} <= out


def test_split_limits() -> None:
    records = pairs(*[f"p{i}" for i in range(300)])
    assert len(split_by_prompt(records, 0.5, limit=7)[1]) == 7
    assert split_by_prompt(records, 0.0) == (records, [])
    assert [len(side) for side in split_by_prompt(pairs("a", "b"), 0.001)] == [1, 1]
    assert [len(side) for side in split_by_prompt(pairs("a", "b"), 0.999)] == [1, 1]
    assert [len(side) for side in split_by_prompt(pairs("a", "a"), 0.5)] == [2, 0]
    assert split_by_prompt([Text("a")], 0.5) == ([Text("a")], [])
