"""A template that writes a content more than once is refused. The truth is how often it stands in transformers'
rendering of the same dialogue. No template of TRL's is refused so: tests/rendering/test_trl_templates.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from align.data.records import Conversation, Message, Prompt
from align.ground.errors import InputError
from align.rendering.render import Renderer, load_renderer
from tests.rendering.templates import answer, template_folder, user
from tests.rendering.test_render import CHATML

TALK = (Message("system", "Be brief."), user("1 and 1?"), answer("It is 2."), user("And 3?"), answer("It is 5."))
TWICE = {
    "every content": ("{{ m.content }}", "{{ m.content }} {{ m.content }}", "Be brief.", "message 1 (system) 2 times"),
    "the user's": (
        "{{ m.content }}",
        "{{ m.content }}{% if m.role == 'user' %}\n{{ m.content }}{% endif %}",
        "And 3?",
        "message 2 (user) 2 times",
    ),
}


def renderer(template: str, folder: Path) -> Renderer:
    return load_renderer(template_folder(template, folder, eos="<|im_end|>"), None, 2048)


@pytest.mark.parametrize("case", TWICE)
def test_a_content_that_stands_twice(tmp_path: Path, case: str) -> None:
    old, new, said, what = TWICE[case]
    found = renderer(CHATML.replace(old, new), tmp_path)
    whole = found.tokenizer.apply_chat_template([m.plain() for m in TALK], tokenize=False)
    assert str(whole).count(said) == 2 and CHATML.replace(old, new) != CHATML
    with pytest.raises(InputError, match=r"rows:1: the chat template writes the content of message") as error:
        found.conversations([Conversation(TALK, where="rows:1")])
    assert what in str(error.value)
    with pytest.raises(InputError, match=r"writes the content of message"):
        found.prompts([Prompt(TALK[:4], where="rows:1")], 8, 2048)


def test_contents_that_quote_each_other(tmp_path: Path) -> None:
    """Negative control: the template writes each once, and the row says the same again and again."""
    again = (user("It is 2."), answer("It is 2. It is 2."), user("It is 2."), answer("It is 2."))
    assert renderer(CHATML, tmp_path).conversations([Conversation(again), Conversation(TALK)])
