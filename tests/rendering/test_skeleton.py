"""Texts by a template's skeleton against transformers' own rendering, whatever the contents and the template."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import trl
from transformers.utils.chat_template_utils import render_jinja_template

from align.rendering.templates.skeleton import Skeleton, Tracer
from align.rendering.templates.template import PLAIN_TEMPLATE, Template, TemplateRefusal
from align.rendering.templates.trace import Opaque

SHIPPED = {path.stem: path for path in sorted((Path(trl.__path__[0]) / "chat_templates").glob("*.jinja"))}
PARTS = {"idefics3", "llava_next", "smolvlm"}
"""Of those TRL ships, they want contents as lists of parts."""
NOT_NOTED = {
    *("gemma4", "gemma4_v2", "gemma4_v3", "gemma4_v4", "gemma4_v5", "diffusion_gemma"),
    *("nemotron_3_5_lightning", "nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra"),
}
"""They measure answers or join them with `~`, so each dialogue is rendered by itself."""
LOOP = "{% for m in messages %}<{{ m.role }}>EACH</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
NOTED = {
    "copied": "{{ m.content }}",
    "added": "{{ '[' + m['content'] + ']' }}",
    "asked for": "{% if m.content and not m.x is defined %}{{ m.content }}{% endif %}",
    "set aside": "{% set c = m.content + '!' %}{{ c }}{{ c if loop.last else '' }}",
    "marked": "{% generation %}{{ m.content }}{% endgeneration %}",
    "marked beside": "{{ m.content }}{% generation %}a{{ m.content }}{% endgeneration %}",
    "trimmed": "{{ m.content | trim }}",
    "trimmed of some": "{{ m.content.strip('\n') }}{{ m.content.lstrip() }}{{ (m.content | trim('y')).rstrip() }}",
    "trimmed and asked for": "{% if m.content.strip() %}{{ m.content }}{% endif %}",
    "compared": "{% if m.content == 'yes' %}!{% endif %}{{ m.content }}{{ '?' if m.content.strip() != 'a' }}",
    "searched": "{% if 'e' in m.content %}!{% endif %}{{ m.content }}",
    "begun and ended": "{% if m.content.startswith(('y', 'n')) or m.content.endswith('>y') %}!{% endif %}",
    "told apart": "{% if m.content is string and m.content is not mapping %}{{ m.content }}{% endif %}",
    "split": "{% set c = m.content.split('</think>') %}{{ c[0] }}+{{ c[-1].lstrip('\n') }}",
    "in a block": "{% set c %}{{ m.content }}{% endset %}{{ c | trim }}",
    "in a macro": "{% macro f(c) %}{{ c }}{% endmacro %}{{ f(m.content) | trim }}",
    "in a macro with more": "{% macro f(c) %}{{ c }}!{% endmacro %}{{ f(m.content) + '!' }}",
    "chosen": "{{ (m.content or 'nothing') if m.content is defined else '' }}",
}
"""What is done with a content in a template's words, so that it can be done with others without the template."""
READS = {
    "escaped": "{% autoescape true %}{{ m.content }}{% endautoescape %}",
    "escaped for some": "{% autoescape m.role == 'user' %}{{ m.content }}{% endautoescape %}",
    "escaped in a block": "{% set c %}{% autoescape true %}{{ m.content }}{% endautoescape %}{% endset %}{{ c }}",
    "sliced": "{{ m.content[:3] }}",
    "joined, then sliced": "{{ (m.content ~ '!')[:3] }}",
    "joined, then compared": "{% if m.content ~ '!' == 'yes!' %}!{% endif %}{{ m.content }}",
    "formatted": "{{ ('%s!' % m.content) | upper }}",
    "searched for": "{% if m.content in 'yes or no' %}!{% endif %}{{ m.content }}",
    "looked up": "{{ {'yes': 'a'}[m.content] }}",
    "one of some": "{% if m.content in {'yes': 1} %}!{% endif %}",
    "the same": "{% if m.content is sameas m.content.strip() %}!{% endif %}",
    "measured": "{{ m.content | length }}",
    "read as a number": "{{ m.content | int }}",
    "tried as a list": "{{ m.content | first }}",
    "split into what may not be there": "{{ m.content.split('e')[1] }}",
    "split at white space": "{{ m.content.split()[0] }}",
    "as JSON": "{{ m | tojson }}",
    "as Python": "{{ m }}",
    "in a block, then sliced": "{% set c %}{{ m.content }}{% endset %}{{ c[:2] }}",
    "in a macro, then sliced": "{% macro f(c) %}{{ c }}{% endmacro %}{{ f(m.content)[:2] }}",
    "added to, then trimmed": "{{ (m.content + ' ') | trim }}",
    "gone through": "{% for c in m.content %}{{ c }},{% endfor %}",
    "filtered as a block": "{% filter upper %}{{ m.content }}{% endfilter %}",
    "repeated": "{{ m.content * 2 }}",
}
"""What no other content can be put through."""
WORDS = [
    *("yes", "no", " a ", "\n", "e", "\n\nz \n", "\u00a0x\u3000", "\x1cx\x85", "{{ m.content }}", "\ufdd00\ufdd1"),
    *("你好", '"q"', " at 0xabcdef0>", "<think>x</think>y", "<think>\nx\n</think>\n\ny\n", "</think>", "<think>x"),
    *("<tool_response>x</tool_response>", "<tool_response>"),
]


def truth(source: str, messages: list[dict[str, Any]], marked: bool, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
    out: Any = render_jinja_template(
        conversations=[messages],
        chat_template=source,
        return_assistant_tokens_mask=marked,
        add_generation_prompt=prompt,
        bos_token="<s>",
        eos_token="</s>",
    )
    texts, marks = out
    return texts[0], [tuple(mark) for mark in marks[0]] if marked else []


def check(source: str, dialogues: int = 24, *, parts: bool = False, words: list[str] = WORDS) -> Template:
    """Dialogues of few shapes, so that most are of one that came before."""
    template = Template(source, {"bos_token": "<s>", "eos_token": "</s>"}, parts)
    draw = random.Random(1)
    for n in range(dialogues):
        roles = [("user", "assistant"), ("system", "user"), ("user", "assistant", "user")][n % 3]
        messages = [{"role": r, "content": draw.choice(words) if n % 8 else ""} for r in roles]
        given = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages] if parts else messages
        for prompt in (True, False):
            try:
                expected = truth(source, given, template.marked and not prompt, prompt)
            except Exception:  # the template refuses it
                with pytest.raises(TemplateRefusal):
                    template.render(messages, None, "", prompt=prompt)
                continue
            text, marks = template.render(messages, None, "", prompt=prompt)
            assert (text, [tuple(mark) for mark in marks]) == expected
    return template


def noted(template: Template) -> bool:
    return any(any(found) for found in template._skeletons.values())


@pytest.mark.parametrize("each", NOTED.values(), ids=NOTED)
def test_what_can_be_noted_has_skeletons(each: str) -> None:
    kept = check(LOOP.replace("EACH", each))._skeletons
    assert len(kept) == 6 and all(map(any, kept.values()))


@pytest.mark.parametrize("each", READS.values(), ids=READS)
def test_what_cannot_be_noted_has_none(each: str) -> None:
    assert not noted(check(LOOP.replace("EACH", each)))


def test_contents_joined() -> None:
    assert noted(check(PLAIN_TEMPLATE))


@pytest.mark.parametrize("name", SHIPPED)
def test_templates_that_trl_ships(name: str) -> None:
    """All are rendered as transformers does, most by skeletons."""
    family = name.removesuffix("_training")
    template = check(SHIPPED[name].read_text(), 24, parts=family in PARTS)
    assert any(template._skeletons.get((False, "user", "assistant"), ())) == (family not in NOT_NOTED)


@pytest.mark.parametrize("name", ["llama3", "qwen3_training"])
def test_other_contents_are_not_rendered_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dialogues of three shapes, as prompts and whole: each is rendered once as it is and once with objects."""
    calls = []
    rendered = Template._rendered
    monkeypatch.setattr(Template, "_rendered", lambda self, *of: calls.append(1) or rendered(self, *of))
    check(SHIPPED[name].read_text(), 48, words=["yes", "a\nb", "你好"])
    assert len(calls) == 2 * 6


def test_marks_in_a_macro_are_counted_from_elsewhere() -> None:
    """As transformers does, from what was written before the macro: no skeleton says where they would be."""
    each = "{% macro f(c) %}a{% generation %}{{ c }}{% endgeneration %}{% endmacro %}{{ f(m.content) }}"
    kept = check(LOOP.replace("EACH", each))._skeletons
    assert {prompt for (prompt, *_), found in kept.items() if any(found)} == {True}


@pytest.mark.parametrize("said", ["{{ m.role }}", "\ufdd00\ufdd1", "{{ '\ufdd00\ufdd1' }}", "{{ m.role + '' }}"])
def test_a_role_or_a_template_like_a_value_is_no_value(said: str) -> None:
    template = Template(f"{{% for m in messages %}}{said}: {{{{ m.content }}}}{{% endfor %}}", {})
    for content in ("\ufdd00\ufdd1", "x"):
        messages = [{"role": "\ufdd00\ufdd1", "content": content}]
        assert template.render(messages, None, "")[0] == f"\ufdd00\ufdd1: {content}"
    assert not noted(template)


def test_an_object_that_turns_into_text_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: what is asked of its text is not what the content answers."""
    monkeypatch.setattr(Opaque, "__str__", lambda self: self._written)
    with pytest.raises(AssertionError):
        check(LOOP.replace("EACH", READS["joined, then compared"]))


@pytest.mark.parametrize("name", ["searched", "compared", "trimmed and asked for"])
def test_an_answer_that_is_not_held_would_be_found_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a skeleton for contents that answer otherwise."""
    found = Tracer.skeleton

    def forgetful(self: Tracer, *of: Any) -> Skeleton | None:
        kept = found(self, *of)
        return kept and kept._replace(steps=[(step, answer) for step, answer in kept.steps if answer is None])

    monkeypatch.setattr(Tracer, "skeleton", forgetful)
    with pytest.raises(AssertionError):
        check(LOOP.replace("EACH", NOTED[name]))
