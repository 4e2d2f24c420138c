"""What is advised of columns by other names is taken when it is copied, and makes of the row what it holds. The truth
is the shell's reading of the flags, a YAML reader's of the recipe, and the record written out by hand."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
from ruamel.yaml import YAML

from align import sft
from align.data.shapes.advice import advice, in_recipe
from align.data.shapes.columns import called
from align.data.shapes.keys import LABELLED
from align.data.shapes.needed import need
from align.ground.errors import InputError
from align.recipe import parse_flags

ASK, SAY = "What is red?", "A ball is."
BOTH = ["prompt", "completion"]


def flags(said: str) -> dict[str, str]:
    """What the command line makes of the flags in an advice."""
    found = re.search(r"(--columns\..*?)\.(?: No column .*)?$", said)
    assert found
    words = ["--base", "b", "--data", "d", *shlex.split(found[1])]
    return dict(parse_flags(sft.Config, words, prog="align sft").config.columns or {})


def recipe(said: str) -> Any:
    """What YAML makes of the setting in an advice."""
    found = re.search(r"`(.*)` in the recipe", said)
    assert found
    return YAML(typ="safe", pure=True).load(found[1])["columns"]


@pytest.mark.parametrize(
    ("ask", "say"),
    [
        ("My Frage", "Die Antwort"),
        ("user", "reply"),
        ("question text", "answer_text"),
        ("pregunta", "respuesta"),
        ("userPrompt", "modelAnswer"),
        ("problem", "--a"),
        ("q", "a: b, {#}"),
        ("it's a question", 'the "answer"'),
        ("q", "true"),
        ("q", "$HOME"),
    ],
)
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_advised_can_be_copied(ask: str, say: str, turned: bool) -> None:
    """Whatever the order of the columns. The control: with the advice the other way round the answer would be asked."""
    row: dict[str, object] = {say: SAY, ask: ASK} if turned else {ask: ASK, say: SAY}
    with in_recipe():
        written = advice(row, BOTH)
    for columns in (flags(advice(row, BOTH)), recipe(written)):
        assert columns == {"prompt": ask, "completion": say}
        assert called("f:1", row, columns) == {"prompt": ASK, "completion": SAY}
        assert called("f:1", row, {"prompt": say, "completion": ask}) != {"prompt": ASK, "completion": SAY}
    assert "--columns" not in written and "--columns" in advice(row, BOTH)  # outside of it flags again


def test_two_columns_for_one_key() -> None:
    said = advice({"user": ASK, "problem": ASK, "reply": SAY}, BOTH)
    assert said.startswith(" Rename user (or problem) to prompt and reply to completion, or say so: ")
    assert flags(said) == {"prompt": "user", "completion": "reply"}
    assert "(or " not in advice({"user": ASK, "reply": SAY}, BOTH)


@pytest.mark.parametrize("row", [{"id": "a7"}, {"_id": "a7"}, {"rowUuid": "a7"}, {"index": "a7"}, {"n": 7}, {"n": "7"}])
def test_ids_and_numbers_are_no_prompts(row: dict[str, object]) -> None:
    said = advice({**row, "completion": SAY}, ["prompt"])
    assert said == " No column looks like prompt: add it."
    assert flags(advice({"text_to_ask": ASK, "completion": SAY}, ["prompt"])) == {"prompt": "text_to_ask"}  # control


def test_names_that_do_not_tell() -> None:
    """Nothing is taken from the order of columns; one that is left over of one missing key is."""
    said = " Names do not tell which columns are prompt and completion: look at the rows, and say so: "
    places = "--columns.prompt NAME --columns.completion NAME."
    for row in ({"Überschrift": ASK, "Größe": SAY}, {"Größe": ASK, "Überschrift": SAY}):
        assert advice(dict(row), BOTH) == said + places
    assert flags(advice({"user": ASK, "Größe": SAY}, BOTH)) == {"prompt": "user", "completion": "Größe"}


def test_what_is_still_missing_is_named_at_once() -> None:
    said = advice({"id": "1", "user": ASK, "answer_text": SAY}, BOTH)
    assert flags(said) == {"prompt": "user", "completion": "answer_text"}
    said = advice({"id": "1", "frage": ASK, "gut": SAY, "schlecht": "No."}, ["prompt", "chosen", "rejected"])
    assert said.endswith(": --columns.prompt frage --columns.chosen NAME --columns.rejected NAME.")
    assert advice({"user": ASK}, BOTH).endswith("--columns.prompt user. No column looks like completion: add it.")
    worse = advice({"human": ASK, "preferred": SAY, "dispreferred": "No."}, BOTH)  # a pair is no answer to imitate
    assert worse.endswith("--columns.prompt human. No column looks like completion: add it.")


@pytest.mark.parametrize("name", ["q\u202er", "x\ny", "t\tab", "n\u00a0bsp", "c\u200b"])
def test_a_name_that_cannot_be_copied(name: str) -> None:
    said = advice({name: ASK, "completion": SAY}, ["prompt"])
    assert said.startswith(f" Rename {name!r} in the file first") and "--columns" not in said and name not in said
    assert flags(advice({"ümlaut": ASK, "completion": SAY}, ["prompt"])) == {"prompt": "ümlaut"}


def refusal(row: dict[str, object]) -> str:
    with pytest.raises(InputError) as error:
        need("f:1", row, LABELLED)
    return str(error.value)


def test_a_labelled_answer_needs_its_answer() -> None:
    said = refusal({"My Frage": ASK, "Die Antwort": SAY})
    assert said.startswith(
        'f:1: "prompt" and "completion" and "label" are missing. A labelled answer needs prompt, com'
    )
    assert said.endswith("No column looks like label: add it.") and "columns.label" not in said
    assert flags(said) == {"prompt": "My Frage", "completion": "Die Antwort"}
    thumbs = flags(refusal({"thumb": "1", "My Frage": ASK, "Die Antwort": SAY}))
    assert thumbs == {"prompt": "My Frage", "completion": "Die Antwort", "label": "thumb"}
    need("f:1", {"messages": [], "label": True}, LABELLED)  # a dialogue holds both


@pytest.mark.parametrize(
    ("row", "missing", "said"),
    [
        ({"Frage": "q", "Wrong_Answer": "no", "Correct_Answer": "yes"}, ["prompt", "completion"], "Correct_Answer"),
        ({"user_message": "q", "bot_reply": "a", "source": "web"}, ["prompt", "completion"], "bot_reply"),
        ({"prompt": "q", "reply": "a", "is_bad": "1"}, ["completion", "label"], "reply"),
    ],
)
def test_what_says_the_contrary_is_not_advised(row: dict[str, object], missing: list[str], said: str) -> None:
    """Control: where the rejected answer is what is missing, a column of bad ones is."""
    told = advice(row, missing)
    assert said in told and not {"Wrong_Answer", "is_bad", "source"} & {*re.findall(r"\w+", told)}
    assert "--columns.rejected bad_answer" in advice({"prompt": "q", "chosen": "a", "bad_answer": "b"}, ["rejected"])


def test_a_key_of_ours_that_is_misspelt() -> None:
    """It is told to be renamed. Negative controls: a text alone is no whole dialogue, nor is a short word misspelt."""
    talk = [{"role": "user", "content": ASK}, {"role": "assistant", "content": SAY}]
    assert advice({"mesages": talk}, BOTH) == " Rename mesages to messages, or say so: --columns.messages mesages."
    said = advice({"promt": ASK, "complettion": SAY}, BOTH)
    assert said.startswith(" Rename promt to prompt and complettion to completion, or say so: ")
    assert "messages" not in advice({"message": ASK, "reply": SAY}, BOTH)
    assert "Rename" not in advice({"prot": ASK, "comp": SAY}, BOTH)
