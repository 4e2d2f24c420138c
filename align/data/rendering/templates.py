"""Chat templates: which one a tokenizer renders with, its clock stopped, and what it makes of a dialogue.

A template is Jinja that anyone may have written. It runs in transformers' sandbox; what it raises becomes an InputError
in its own words.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from functools import cached_property
from pathlib import Path

from jinja2 import Environment, TemplateError, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from trl.chat_template_utils import get_training_chat_template

from align.data.files.sources import read_template
from align.data.rendering.two_parts import two_part_template
from align.folders.config import decoder_start, is_encoder_decoder
from align.ground.bounds import Unbounded, bounded
from align.ground.errors import InputError

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}Assistant:\n"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% if not loop.last %}\n\n{% endif %}"
    "{% elif m.role == 'system' %}{{ m.content }}\n\n{% else %}User:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""For bases without a template. The prompt ends in a line break: a trailing space would be another token than in the
joined text."""

PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
)
"""`chat_template: plain`: contents joined, nothing in between; for base models that continue text."""

DATE = "2024-07-26"
"""The day on which a template's clock stands, unless another is set: the one that Llama 3.2's template falls back to
without a clock."""

MARK = re.compile(r"\{%[-+]?\s*generation\s*[-+]?%\}")
COMMENT = re.compile(r"\{#.*?#\}", re.DOTALL)
CLOCK = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
ASKS_FOR_CLOCK = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
STOPPED = re.compile(r"\{# the clock stands at (\d{4}-\d{2}-\d{2}) #\}\n")
CHANCE = re.compile(r"""\|\s*random\b|["']random["']|\blipsum\b""")
CONTENT_TAG = re.compile(r"</?(think|tool_\w+)>")
ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}>")

ANSWER = "zq1x"
PROBE = [{"role": "user", "content": "zq0x"}, {"role": "assistant", "content": ANSWER}]

Span = tuple[int, int]
"""Characters of a rendered text: the first, and the one after the last."""


class TemplateRefusal(InputError):
    """The template raised on one dialogue, such as Gemma's on a system message."""


@dataclass(frozen=True)
class Template:
    """A chat template and what it is given beside the messages."""

    source: str
    variables: Mapping[str, object]
    """The tokenizer's special tokens by name, as transformers passes them."""
    parts: bool = False
    """Whether it wants a content as a list of parts, as templates of models that also see images do."""
    note: str = ""
    """What was done to the template that the model or the user gave, in words."""

    @property
    def marked(self) -> bool:
        """Whether {% generation %} stands around what the assistant says."""
        return bool(MARK.search(self.source))

    @property
    def date(self) -> str | None:
        """The day on which its clock was stopped; None for a template that reads no clock."""
        found = STOPPED.match(self.source)
        return found[1] if found else None

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
                f"the chat template has no generation prompt (add_generation_prompt): it opens an answer with "
                f"{opening!r}, which would be "
                "missing when the model is sampled. Give a template that has one (chat_template: FILE)."
            )
        controls = self.controls([str(t) for t in tokenizer.added_tokens_decoder.values()])
        added = {
            str(t): i
            for i, t in tokenizer.added_tokens_decoder.items()
            if (t.special and str(t).strip()) or str(t) in controls
        }
        any_of = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)) or "(?!)")
        last = any_of.search(text, said) if ANSWER in text else None
        while last and (following := any_of.match(text, last.end())):  # Command R7B ends a response, then the turn
            last = following
        return added[last[0]] if last else None

    def reads_alike(
        self, messages: Sequence[Mapping[str, object]], tools: list[object] | None, text: str, *, prompt: bool
    ) -> bool:
        """Whether these messages are rendered as `text` too."""
        try:
            return self.render(messages, tools, "", prompt=prompt)[0] == text
        except TemplateRefusal:
            return False

    def _probe(self, prompt: bool, messages: int = 4, of: Sequence[Mapping[str, object]] = PROBE) -> str:
        """A question, and without `prompt` its answer; nothing where the template refuses them."""
        try:
            return self.render(of[: 1 if prompt else messages], None, "", prompt=prompt)[0]
        except TemplateRefusal:
            return ""

    def render(
        self, messages: Sequence[Mapping[str, object]], tools: list[object] | None, where: str, *, prompt: bool = False
    ) -> tuple[str, list[Span]]:
        """(text, the spans that it marks as generated); with `prompt`, up to where the assistant begins to speak.

        Raises: TemplateRefusal with the template's own words; InputError where it does not end, or writes an object's
        address in memory.
        """
        if self.parts:
            messages = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        marked = self.marked and not prompt
        try:
            with bounded():
                out: object = render_jinja_template(
                    conversations=[[*messages]],  # type: ignore[list-item]
                    tools=tools,
                    chat_template=self.source,
                    return_assistant_tokens_mask=marked,
                    add_generation_prompt=prompt,
                    **self.variables,
                )
        except Unbounded as error:
            raise InputError(
                f"{f'{where}: ' if where else ''}the chat template does not end: {error}. Give another "
                f"(chat_template: FILE)."
            ) from error
        except Exception as error:  # a template may fail in any way that an expression can
            what = str(error) if isinstance(error, TemplateError) else f"{type(error).__name__}: {error}"
            what = "".join(c if c.isprintable() else repr(c)[1:-1] for c in what)
            raise TemplateRefusal(f"{where}: the chat template refuses this dialogue: {what}") from error
        texts, marks = out
        if made := [a for a in ADDRESS.findall(texts[0]) if a not in f"{messages}{tools}"]:
            raise InputError(
                f"{where}: the chat template writes an object itself (…{made[0]}), whose address in memory is another "
                "one in each process. Give one that does not (chat_template: FILE)."
            )
        return texts[0], marks[0] if marked else []


def choose_template(
    tokenizer: PreTrainedTokenizerBase,
    setting: str | None,
    folder: Path,
    day: str | None,
    model: Mapping[str, object] | None = None,
) -> Template:
    """The template of a tokenizer folder, or the one that is set: None, "plain" or a Jinja file; `model` is its model's
    configuration.

    Where TRL ships a training form of exactly this template, that one (it keeps earlier turns as they were, and renders
    tools). Its clock stands still at `day`, which is written into it, so that everyone who renders with it renders the
    same.
    Raises: InputError for named templates without a default, for one that is no Jinja, that draws at random or reads
    the clock in a way that cannot be stopped, and for a `day` that it has no use for.
    """
    place = f"chat_template {setting}" if setting else f"the chat template of {folder}"
    own = _source(tokenizer, setting, folder, model or {})
    if "**" in own and _raises_to_powers(own):
        raise InputError(
            f"{place} raises to a power (**), which nothing can interrupt. Give one that does not (chat_template: "
            f"FILE)."
        )
    form = _training_form(tokenizer, own)
    source, day = stop_clock(form, day, place)
    if CHANCE.search(COMMENT.sub("", source)):
        raise InputError(
            f"{place} draws at random, so what it renders would change. Give one that does not (chat_template: FILE)."
        )
    notes = ["the chat template is taken in TRL's training form"] if form != own else []
    notes += [f"the clock of the chat template stands at {day}"] if day else []
    template = Template(source, dict(tokenizer.special_tokens_map), note=", ".join(notes))
    return _with_parts(template, place)


def _raises_to_powers(source: str) -> bool:
    try:
        return any(kind == "operator" and value == "**" for _, kind, value in Environment().lex(source))
    except TemplateSyntaxError:  # told of where it is rendered
        return False


def _source(tokenizer: PreTrainedTokenizerBase, setting: str | None, folder: Path, model: Mapping[str, object]) -> str:
    if is_encoder_decoder(model) and (setting == "plain" or (setting is None and not tokenizer.chat_template)):
        return two_part_template(tokenizer, decoder_start(model), setting == "plain")
    if setting == "plain":
        return PLAIN_TEMPLATE
    if setting is not None:
        return read_template(Path(setting))
    own = tokenizer.chat_template
    if isinstance(own, dict):
        if "default" not in own:
            raise InputError(
                f"{folder}: has the chat templates {', '.join(sorted(own))}, and none is called default. "
                "Give the one you want as a file (chat_template: FILE)."
            )
        own = own["default"]
    return DEFAULT_TEMPLATE if own is None else own


def _training_form(tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    """TRL's training form of a template without marks that TRL knows by its text, else the template."""
    if MARK.search(source):
        return source
    tokenizer.chat_template = source
    try:
        with bounded():
            return get_training_chat_template(tokenizer) or source
    except Exception:  # TRL knows no such template, or its probe of tools made this one fail
        return source


def stop_clock(source: str, day: str | None, place: str) -> tuple[str, str | None]:
    """(template with the date written where it would ask the clock, that date), or the template and None where it asks
    no clock.

    Raises: InputError where it asks with a format that is no literal, and where a day is set that it has no use for.
    """
    stopped = STOPPED.match(source)
    if stopped or "strftime_now" not in COMMENT.sub("", source):
        if day and (not stopped or stopped[1] != day):
            why = f"its clock stands at {stopped[1]} already" if stopped else "it reads no clock"
            raise InputError(f"template_date is {day}, which has no effect on {place}: {why}. Leave it out.")
        return source, stopped[1] if stopped else None
    day = day or DATE
    clock = datetime.combine(date.fromisoformat(day), datetime.min.time())
    fixed = CLOCK.sub(lambda call: repr(clock.strftime(call[2])), source)
    if "strftime_now" in ASKS_FOR_CLOCK.sub("", COMMENT.sub("", fixed)):
        raise InputError(
            f"{place} reads the clock (strftime_now) with a format that is no literal, so what it renders would change "
            "from day to day. Write the date into a copy of it, and give that as chat_template: FILE."
        )
    return f"{{# the clock stands at {day} #}}\n{fixed}", day


def _with_parts(template: Template, place: str) -> Template:
    """The template, with contents as lists of parts where it renders only those. Raises: InputError for one that is no
    Jinja."""
    for form in (template, replace(template, parts=True)):
        try:
            text, _ = form.render(PROBE, None, place)
        except TemplateRefusal as error:
            if isinstance(error.__cause__, TemplateSyntaxError):
                cause = error.__cause__
                raise InputError(f"{place} is no valid Jinja (line {cause.lineno}): {cause.message}.") from error
            continue
        if all(m["content"] in text for m in PROBE):
            return form
    return template
