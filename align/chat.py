"""Talk to a model.  `align chat my-sft --system "You are terse."`

Reads a line, prints the answer, keeps the dialogue. /reset begins a new one, /quit or the end of input ends. Answers
are sampled from the model's own distribution; `--temperature 0` takes the likeliest token each time. Nothing is stored.
"""

from __future__ import annotations

import io
import sys
from typing import Annotated

from pydantic import PositiveInt

from align import sampling
from align.data.records import Message, Prompt
from align.ground.errors import InputError
from align.ground.terminal import guarded, say
from align.recipe import Positional, Ref, Sampling, TextStage, parse_flags
from align.stage import on_base
from align.stage.describe import Stage
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store


class Config(Sampling, TextStage):
    """Chat"""

    parent: Annotated[Ref | None, Positional] = None
    """Artifact to talk to: a name, a digest, or its beginning. Or give base."""
    system: str | None = None
    """What the dialogue opens with."""
    max_new_tokens: PositiveInt = 256
    """Longest answer in tokens; less where the context has less room."""


STAGE = Stage("chat", version=1, config=Config, inputs={"parent": ("adapter", "model")}, encoder_decoders=True)


def talk(bench: Workbench) -> None:
    """The dialogue, between stdin and stdout. Raises: InputError for settings that are no text."""
    config = bench.config
    if not all(map(is_text, (config.system or "", *config.stop))):
        raise InputError(
            "system and stop: expected text in UTF-8, as the terminal sends it where its locale is one of UTF-8."
        )
    renderer = bench.load_renderer()
    roles = bench.load_base()
    on_base.add_reference(bench, roles)
    sampler = sampling.rollout.sampler(roles, "reference", renderer, config.stop)
    opening = [Message("system", config.system)] if config.system else []
    messages = list(opening)
    say("/reset begins a new dialogue, /quit ends")
    while (line := _read()) is not None:
        if line == "/reset":
            messages = list(opening)
            continue
        asked = [*messages, Message("user", line)]
        try:
            (prompt,) = renderer.prompt_ids([Prompt(tuple(asked), where="this dialogue")])
        except InputError as error:
            say(f"{error} /reset begins a new dialogue.")
            continue
        room = bench.context - len(prompt)
        if room < 1:
            say(
                f"this dialogue has {len(prompt):,} tokens, all of the model's context of {bench.context:,}. /reset "
                "begins a new dialogue."
            )
            continue
        ((answer,),) = sampler(
            [prompt], n=1, max_new_tokens=min(config.max_new_tokens, room), temperature=config.temperature
        )
        text = renderer.answer(answer.ids, config.stop)
        print(text, flush=True)
        messages = [*asked, Message("assistant", text)]


def _read() -> str | None:
    """The next line that says something; None at the end. A line in another encoding is left out, and that is said."""
    while True:
        try:
            line = input("> " if sys.stdin.isatty() else "").strip()
        except EOFError:
            return None
        if not is_text(line):
            say("a line that is no UTF-8 was left out; type or send text in UTF-8")
            continue
        if line == "/quit":
            return None
        if line:
            return line


def is_text(line: str) -> bool:
    """Whether it was read without bytes that its encoding does not know, for which Python puts lone surrogates (PEP
    383)."""
    return not any("\ud800" <= character <= "\udfff" for character in line)


def main() -> None:
    def body() -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        parsed = parse_flags(Config, sys.argv[1:], prog="align chat", doc=__doc__ or "")
        talk(Workbench(prepare(STAGE, parsed.config, Store(parsed.config.store))))

    guarded(body)


if __name__ == "__main__":
    main()
