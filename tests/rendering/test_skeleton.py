"""Texts by a template's skeleton against transformers' own rendering, whatever the contents and the template."""

from __future__ import annotations

import random
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from align.data.files.sources import shipped_templates
from align.rendering.templates.template import PLAIN_TEMPLATE, Template, TemplateRefusal

LOOP = "{% for m in messages %}<{{ m.role }}>EACH</>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
COPIES = {
    "plain": PLAIN_TEMPLATE,
    "added": LOOP.replace("EACH", "{{ '[' + m['content'] + ']' }}"),
    "asked for": LOOP.replace("EACH", "{% if m.content and not m.x is defined %}{{ m.content }}{% endif %}"),
    "set aside": LOOP.replace("EACH", "{% set c = m.content + '!' %}{{ c }}{{ c if loop.last else '' }}"),
    "marked": LOOP.replace("EACH", "{% generation %}{{ m.content }}{% endgeneration %}"),
    "marked beside": LOOP.replace("EACH", "{{ m.content }}{% generation %}a{{ m.content }}{% endgeneration %}"),
}
READS = {
    "trimmed": "{{ m.content | trim }}",
    "sliced": "{{ m.content[:3] }}",
    "joined, then sliced": "{{ (m.content ~ '!')[:3] }}",
    "formatted": "{{ ('%s!' % m.content) | upper }}",
    "compared": "{% if m.content == 'yes' %}!{% endif %}{{ m.content }}",
    "searched": "{% if 'e' in m.content %}!{% endif %}{{ m.content }}",
    "searched for": "{% if m.content in 'yes or no' %}!{% endif %}{{ m.content }}",
    "told apart": "{% if m.content is string %}{{ m.content }}{% endif %}",
    "measured": "{{ m.content | length }}",
    "split": "{{ m.content.split('e')[0] }}",
    "as JSON": "{{ m | tojson }}",
    "as Python": "{{ m }}",
    "in a block": "{% set c %}{{ m.content }}{% endset %}{{ c[:2] }}",
    "in a macro": "{% macro f(c) %}{{ c }}{% endmacro %}{{ f(m.content)[:2] }}",
    "gone through": "{% for c in m.content %}{{ c }},{% endfor %}",
    "filtered as a block": "{% filter upper %}{{ m.content }}{% endfilter %}",
    "repeated": "{{ m.content * 2 }}",
}
"""What is no copy, in a template's words."""
WORDS = [
    "yes",
    " a ",
    "\n",
    "e",
    "{{ m.content }}",
    "\ufdd00\ufdd1",
    "你好",
    '"q"',
    " at 0xabcdef0>",
    "<think>x</think>y",
]


def truth(source: str, messages: list[dict[str, str]], marked: bool, prompt: bool) -> tuple[str, list[tuple[int, int]]]:
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


def check(source: str, dialogues: int = 24) -> Template:
    """Dialogues of few shapes, so that most are of one that came before."""
    template = Template(source, {"bos_token": "<s>", "eos_token": "</s>"})
    draw = random.Random(1)
    for n in range(dialogues):
        roles = [("user", "assistant"), ("system", "user"), ("user", "assistant", "user")][n % 3]
        messages = [{"role": r, "content": draw.choice(WORDS) if n % 8 else ""} for r in roles]
        for prompt in (True, False):
            try:
                expected = truth(source, messages, template.marked and not prompt, prompt)
            except Exception:  # the template refuses it
                with pytest.raises(TemplateRefusal):
                    template.render(messages, None, "", prompt=prompt)
                continue
            text, marks = template.render(messages, None, "", prompt=prompt)
            assert (text, [tuple(mark) for mark in marks]) == expected
    return template


@pytest.mark.parametrize("name", COPIES)
def test_a_template_that_copies_has_a_skeleton(name: str) -> None:
    kept = check(COPIES[name])._skeletons
    assert len(kept) == 6 and all(kept.values())


@pytest.mark.parametrize("name", READS)
def test_a_template_that_reads_a_content_has_none(name: str) -> None:
    assert not any(check(LOOP.replace("EACH", READS[name]))._skeletons.values())


def test_templates_that_trl_ships() -> None:
    """Some copy, some do not; all are rendered as transformers does."""
    kept = [any(check(path.read_text(), 9)._skeletons.values()) for path in shipped_templates().values()]
    assert 0 < sum(kept) < len(kept)


def test_a_clause_too_many_would_be_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: without the list of syntax, a text made of a content is cut as if it were the content."""
    monkeypatch.setattr("align.rendering.templates.template.only_copies", lambda tree: True)
    with pytest.raises(AssertionError):
        check(LOOP.replace("EACH", READS["trimmed"]))
