"""Which chat template a tokenizer renders with, its clock stopped."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path

from jinja2 import Environment, TemplateSyntaxError
from transformers import PreTrainedTokenizerBase
from trl.chat_template_utils import get_training_chat_template

from align.data.files.sources import read_template
from align.folders.config import decoder_start, is_encoder_decoder
from align.ground.bounds import bounded
from align.ground.errors import InputError
from align.rendering.templates.template import COMMENT, MARK, PLAIN_TEMPLATE, PROBE, STOPPED, Template, TemplateRefusal
from align.rendering.templates.two_parts import two_part_template

DEFAULT_TEMPLATE = (
    "{{ bos_token or '' }}{% for m in messages %}{% if m.role == 'assistant' %}Assistant:\n"
    "{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% if not loop.last %}\n\n{% endif %}"
    "{% elif m.role == 'system' %}{{ m.content }}\n\n{% else %}User:\n{{ m.content }}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)
"""For bases without a template. The prompt ends in a line break: a trailing space would be another token than in the
joined text."""

DATE = "2024-07-26"
"""The day on which a template's clock stands, unless another is set: the one that Llama 3.2's template falls back to
without a clock."""

CLOCK = re.compile(r"""strftime_now\(\s*(["'])([^"'\\]*)\1\s*\)""")
ASKS_FOR_CLOCK = re.compile(r"strftime_now\s+is\s+(not\s+)?defined")
CHANCE = re.compile(r"""\|\s*random\b|["']random["']|\blipsum\b""")


def choose_template(
    tokenizer: PreTrainedTokenizerBase,
    setting: str | None,
    folder: Path,
    day: str | None,
    model: Mapping[str, object] | None = None,
) -> Template:
    """The template of a tokenizer folder, or the one that is set: None, "plain", a Jinja file or a name in TRL;
    `model` is its model's configuration.

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
            f"{place} raises to a power (**), which nothing can interrupt. "
            "Give one that does not (chat_template: FILE)."
        )
    form = _training_form(tokenizer, own)
    source, day = stop_clock(form, day, place)
    if CHANCE.search(COMMENT.sub("", source)):
        raise InputError(
            f"{place} draws at random, so what it renders would change. Give one that does not (chat_template: FILE)."
        )
    notes = (
        ["the chat template is taken in TRL's training form (docs/data.md says what that is)"] if form != own else []
    )
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
        return read_template(setting)
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
