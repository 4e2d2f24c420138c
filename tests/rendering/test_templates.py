"""Templates that leave out a part of what tools and their calls say, that change from process to process, or cannot be
read.

Truth: what stands in transformers' rendering of the same dialogue.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from align.data.records import Conversation, Message
from align.ground.errors import InputError
from align.rendering.render import load_renderer
from tests.rendering.templates import answer, template_folder, user
from tests.rendering.test_render import CHATML

ALL_TOOLS = "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}"
ALL_CALLS = "{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}"
ARGUMENT = {"type": "string", "enum": ["left", "right"], "description": "Where to."}


def tool(name: str) -> dict[str, object]:
    parameters = {"type": "object", "properties": {"side": ARGUMENT, "speed": {"type": "number"}}, "required": ["side"]}
    return {"type": "function", "function": {"name": name, "description": f"Can {name}.", "parameters": parameters}}


def template(tools: str = ALL_TOOLS, calls: str = ALL_CALLS) -> str:
    return tools + CHATML.replace("{{ m.content }}", "{{ m.content }}" + calls)


LEAVE_OUT = {
    "the second tool": (template(tools="{% if tools %}{{ tools[0] | tojson }}{% endif %}"), "walk", "tools"),
    "choices": (
        template(
            "{% for t in tools or [] %}{{ t.function.name }} {{ t.function.description }}{% for k, v in "
            "t.function.parameters.properties.items() %}{{ k }} {{ v.description }}{% endfor %}{% endfor %}"
        ),
        "right",
        "tools",
    ),
    "what arguments mean": (
        template(
            "{% for t in tools or [] %}{{ t.function.name }} {{ t.function.description }}{% for k, v in "
            "t.function.parameters.properties.items() %}{{ k }} {{ v.enum }}{% endfor %}{% endfor %}"
        ),
        "Where to.",
        "tools",
    ),
    "the second argument": (
        template(
            calls="{% for c in m.tool_calls or [] %}{{ c.function.name }}{% for k, v in c.function.arguments.items() %}"
            "{% if loop.first %}{{ k }}={{ v }}{% endif %}{% endfor %}{% endfor %}"
        ),
        "0.25",
        "tool_calls",
    ),
    "values": (
        template(
            calls="{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | list }}{% endfor %}"
        ),
        "0.25",
        "tool_calls",
    ),
}


@pytest.mark.parametrize("what", LEAVE_OUT)
def test_a_part_of_tools_or_calls_that_is_left_out(what: str, tmp_path: Path) -> None:
    source, lost, named = LEAVE_OUT[what]
    calls = json.dumps(
        [{"type": "function", "function": {"name": "run", "arguments": {"side": "left", "speed": 0.25}}}]
    )
    talk = (user("Go."), answer("", tool_calls=calls), Message("tool", "5"), answer("Done."))
    record = Conversation(talk, tools=json.dumps([tool("run"), tool("walk")]), where="d:1")
    # negative control: the same record rendered whole
    for name, text, kept in (("lossy", source, False), ("whole", template(), True)):
        folder = template_folder(text, tmp_path / name)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        truth = tokenizer.apply_chat_template([m.plain() for m in talk], tools=json.loads(record.tools), tokenize=False)
        assert (lost in truth) == kept
        renderer = load_renderer(folder, None, 4096)
        if kept:
            assert renderer.conversations([record])
        else:
            with pytest.raises(InputError, match=rf"^d:1: the chat template leaves out (the )?{named}"):
                renderer.conversations([record])


def test_what_the_data_do_not_hold_may_be_left_out(tmp_path: Path) -> None:
    """One tool of one argument, without choices: a template that writes the first alone writes all."""
    first = "{% for k, v in c.function.arguments.items() %}{% if loop.first %}{{ k }}={{ v }}{% endif %}{% endfor %}"
    source = template(
        "{% if tools %}{{ tools[0].function.name }} {{ tools[0].function.description }} {{ "
        "tools[0].function.parameters.properties | list }}{% endif %}",
        "{% for c in m.tool_calls or [] %}{{ c.function.name }}" + first + "{% endfor %}",
    )
    renderer = load_renderer(template_folder(source, tmp_path), None, 4096)
    calls = json.dumps([{"type": "function", "function": {"name": "run", "arguments": {"side": "left"}}}])
    schema = {
        "function": {"name": "run", "description": "Runs.", "parameters": {"properties": {"side": {"type": "string"}}}}
    }
    assert renderer.conversations(
        [Conversation((user("Go."), answer("", tool_calls=calls)), tools=json.dumps([schema]))]
    )


def test_an_object_that_is_written_itself(tmp_path: Path) -> None:
    for i, wrong in enumerate(("{{ raise_exception }}", "{{ messages[0].items }}")):
        folder = template_folder(wrong + CHATML, tmp_path / str(i))
        text = AutoTokenizer.from_pretrained(folder).apply_chat_template(
            [{"role": "user", "content": "a"}], tokenize=False
        )
        assert " at 0x" in text
        with pytest.raises(InputError, match=r"writes an object itself \(… at 0x"):
            load_renderer(folder, None, 512)
    renderer = load_renderer(template_folder(CHATML, tmp_path / "whole"), None, 512)
    # negative control
    assert renderer.conversations([Conversation((user("What is <f at 0x7f00c0ffee00>?"), answer("A function.")))])
    with pytest.raises(InputError, match="draws at random"):
        load_renderer(template_folder("{{ [[1, 2]] | map('random') | first }}" + CHATML, tmp_path / "drawn"), None, 512)


def test_a_file_that_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "chat.jinja"
    path.write_bytes(b"\xff\xfe{{")
    folder = template_folder(CHATML, tmp_path / "base")
    with pytest.raises(InputError, match=r"^chat_template .*chat.jinja: byte 0xff is not UTF-8"):
        load_renderer(folder, str(path), 512)
    path.write_text("{# é #}" + CHATML, encoding="utf-8")
    assert load_renderer(folder, str(path), 512)  # negative control
