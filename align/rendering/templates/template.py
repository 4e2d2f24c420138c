"""Chat templates, and what one makes of a dialogue.

A template is Jinja that anyone may have written. It runs in transformers' sandbox; what it raises becomes an InputError
in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jinja2
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import (
    _alias_reasoning_fields,
    _compile_jinja_template,
    _plain_template_data,
    _render_with_assistant_indices,
)

from align.ground.bounds import Unbounded, bounded
from align.ground.errors import InputError
from align.ground.json import Json
from align.rendering.templates.skeleton import Skeleton, Span, Tracer

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""`chat_template: plain`: contents joined, nothing in between; for base models that continue text."""


MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
STOPPED = re.compile(r"\{# the clock stands at (\d{4}-\d{2}-\d{2}) #\}\n")
CONTENT_TAG = re.compile(r"</?(think|tool_\w+)>")
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}>")

SHAPES, TRIES = 1000, 8
"""Of dialogues whose skeletons are held, and how many of each shape are traced."""
ANSWER = "zq1x"
PROBE = [{"role": "user", "content": "zq0x"}, {"role": "assistant", "content": ANSWER}]

Turns = Sequence[Mapping[str, object]]
"""A dialogue as a template gets it."""


class TemplateRefusal(InputError):
    """The template raised on one dialogue, such as Gemma's on a system message."""


@dataclass(frozen=True)
class Template:
    """A chat template and what it is given beside the messages."""

    source: str
    variables: Mapping[str, Any]
    """The tokenizer's special tokens by name, as transformers passes them."""
    parts: bool = False
    """Whether it wants a content as a list of parts, as templates of models that also see images do."""
    note: str = ""
    """What was done to the template that the model or the user gave, in words."""

    @cached_property
    def marked(self) -> bool:
        """Whether {% generation %} stands around what the assistant says."""
        return bool(MARK.search(self.source))

    @property
    def date(self) -> str | None:
        """The day on which its clock was stopped; None for a template that reads no clock."""
        found = STOPPED.match(self.source)
        return found[1] if found else None

    @cached_property
    def _read(self) -> Mapping[str, Any]:
        """Those of the variables that it names, as transformers gives them."""
        named: Mapping[str, Any] = _plain_template_data({n: v for n, v in self.variables.items() if n in self.source})
        return named

    def writes(self, bos: str | None) -> bool:
        """Whether its prompts open with BOS."""
        return bool(bos) and self._probe(True).startswith(str(bos))

    @cached_property
    def opening(self) -> str:
        """The thought that its prompts open, such as "<think>" and a line break; mostly nothing."""
        found = re.search(r"<think>\s*$", self._probe(True))
        return found[0] if found else ""

    def controls(self, tokens: Sequence[str]) -> set[str]:
        """Those of a tokenizer's tokens that it writes around turns, whatever the tokenizer calls them; thoughts, tool
        calls and words are contents."""
        talks = (
            PROBE,
            [{"role": "system", "content": "zq2x"}, *PROBE],
            [*PROBE, {"role": "tool", "content": "zq2x"}, PROBE[1]],
        )
        text = "\n".join([self._probe(True), *(self._probe(False, of=talk) for talk in talks)])
        named = [t for t in tokens if t in text and len(t.strip()) > 2 and not t[0].isalnum()]
        return {t for t in named if not CONTENT_TAG.fullmatch(t)}

    def end_of_turn(self, tokenizer: PreTrainedTokenizerBase) -> int | None:
        """The special or control token that follows an answer; None where none does. Raises: InputError where a prompt
        says nothing of the assistant though the dialogue does: a model would have to be sampled without the words that
        open its turn."""
        prompt, text = self._probe(True), self._probe(False)
        said = text.find(ANSWER) + len(ANSWER)
        opening = text[len(prompt) : said - len(ANSWER)]
        if prompt and prompt == self._probe(False, 1) and text.startswith(prompt) and opening.strip():
            raise InputError(
                "the chat template has no generation prompt (add_generation_prompt): it opens an answer with "
                f"{opening!r}, which would be missing when the model is sampled. Give a template that has one "
                "(chat_template: FILE)."
            )
        tokens = tokenizer.added_tokens_decoder
        controls = self.controls([str(token) for token in tokens.values()])
        ids = {str(t): i for i, t in tokens.items() if (t.special and str(t).strip()) or str(t) in controls}
        longest_first = sorted(ids, key=len, reverse=True)
        any_of = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        found = any_of.search(text, said) if ANSWER in text else None
        last = None
        while found:  # Command R7B ends a response, then the turn
            last, found = found, any_of.match(text, found.end())
        return ids[last[0]] if last else None

    def reads_alike(self, messages: Turns, tools: Sequence[Json] | None, text: str, *, prompt: bool) -> bool:
        """Whether these messages are rendered as `text` too."""
        try:
            return self.render(messages, tools, "", prompt=prompt)[0] == text
        except TemplateRefusal:
            return False

    def _probe(self, prompt: bool, messages: int = 4, of: Turns = PROBE) -> str:
        """A question, and without `prompt` its answer; nothing where the template refuses them."""
        try:
            return self.render(of[: 1 if prompt else messages], None, "", prompt=prompt)[0]
        except TemplateRefusal:
            return ""

    def render(
        self, messages: Turns, tools: Sequence[Json] | None, where: str, *, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """(text, the spans that it marks as generated); with `prompt`, up to where the assistant begins to speak.

        Raises: TemplateRefusal with the template's own words; InputError where it does not end, or writes an object's
        address in memory.
        """
        try:
            with bounded():
                text, marks = self._by_skeleton(messages, tools, prompt) or self._rendered(messages, tools, prompt)
        except Unbounded as error:
            place = f"{where}: " if where else ""
            raise InputError(
                f"{place}the chat template does not end: {error}. Give another (chat_template: FILE)."
            ) from error
        except Exception as error:  # a template may fail in any way that an expression can
            what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            escaped = (c if c.isprintable() else repr(c)[1:-1] for c in what)
            raise TemplateRefusal(f"{where}: the chat template refuses this dialogue: {''.join(escaped)}") from error
        addresses = ADDRESS.findall(text)
        given = f"{messages}{tools}" if addresses else ""
        made = [address for address in addresses if address not in given]
        if made:
            raise InputError(
                f"{where}: the chat template writes an object itself (…{made[0]}), whose address in memory is another "
                "one in each process. Give one that does not (chat_template: FILE)."
            )
        return text, marks

    @cached_property
    def _skeletons(self) -> dict[tuple[object, ...], list[Skeleton | None]]:
        """By whether it is a prompt, and who speaks; None for each dialogue that gave none."""
        return {}

    @cached_property
    def _tracer(self) -> Tracer:
        return Tracer(self.source, _compile_jinja_template(self.source))

    def _by_skeleton(
        self, messages: Turns, tools: Sequence[Json] | None, prompt: bool
    ) -> tuple[str, list[Span]] | None:
        """What `_rendered` makes of messages that have a role and a content each, and nothing else, where it did the
        same with others before; else None."""
        said = [c for m in messages if len(m) == 2 and type(c := m.get("content")) is str]
        roles = [role for m in messages if type(role := m.get("role")) is str]
        if tools is not None or not len(said) == len(roles) == len(messages):
            return None
        shape = (prompt, *roles)
        kept = self._skeletons.get(shape, [])
        for known in kept:
            if known and (filled := known.filled(said)):
                return filled
        if len(kept) == TRIES or (not kept and len(self._skeletons) == SHAPES):
            return None
        rendered = self._rendered(messages, None, prompt)
        found = self._tracer.skeleton(lambda other, talk: self._rendered(talk, None, prompt, other), roles, said)
        alike = found is not None and found.filled(said) == rendered
        self._skeletons[shape] = [*kept, found if alike else None]
        return rendered

    def _rendered(
        self, messages: Turns, tools: Sequence[Json] | None, prompt: bool, template: jinja2.Template | None = None
    ) -> tuple[str, list[Span]]:
        """What transformers' `render_jinja_template` makes of plain JSON, which it copies at every call; with another
        `template` than its own, what that one does."""
        template = template or _compile_jinja_template(self.source)
        if self.parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        given: dict[str, Any] = {
            "messages": _alias_reasoning_fields([*messages]),  # type: ignore[list-item]
            "tools": None if tools is None else [*tools],
            "documents": None,
            "add_generation_prompt": prompt,
            **self._read,
        }
        if self.marked and not prompt:
            text, marks = _render_with_assistant_indices(template, **given)
            return text, marks
        return "".join(template.generate(given)), []
