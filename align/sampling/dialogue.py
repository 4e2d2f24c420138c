"""A dialogue with one model or with several, all asked the same, and what can be said in it beside questions."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from align.data.records import Message, Prompt
from align.ground.disk import write_file
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.prompt import Interrupted, Interrupts
from align.ground.terminal import say
from align.inputs.fit import check_out
from align.recipe import Sampling
from align.rendering.render import Renderer
from align.sampling.rollout import Sampler
from align.sampling.streaming import Stream


@dataclass(frozen=True)
class Turn:
    """A question, its answer, and whether that ended by itself."""

    asked: str
    said: str
    ended: bool


@dataclass
class Side:
    """One who answers."""

    label: str
    renderer: Renderer
    context: int
    """Tokens that the model takes, its answer's included."""
    sampler: Sampler
    turns: list[Turn] = field(default_factory=list)


@dataclass
class Talk:
    """A dialogue with each side, all asked the same."""

    sides: list[Side]
    system: str
    settings: Sampling
    interrupts: Interrupts

    def ask(self, line: str) -> None:
        for side in self.sides:
            if len(self.sides) > 1:
                print(f"{side.label}:", flush=True)
            self._answer(side, line)

    def _answer(self, side: Side, line: str) -> None:
        """One side's answer, streamed. What cannot be asked is said and leaves the dialogue as it was."""
        settings = self.settings
        try:
            prompt = self._ids(side, self.dialogue(side.turns), line)
        except InputError as error:
            hint = ", /system alone takes the system text away" if self.system else ""
            return say(f"{error} /reset begins a new dialogue{hint}.")
        room = side.context - len(prompt)
        if room < 1:
            alone = self._ids(side, self.dialogue([]), line)
            return say(too_long(len(prompt), len(alone), side.context, self.system))
        limit = min(settings.max_new_tokens, room)
        stream = Stream(side.renderer, settings.stop, lambda text: print(text, end="", flush=True))

        def told(ids: Sequence[int]) -> None:
            stream(ids)
            self.interrupts.check()

        ended: bool | None = None  # by Ctrl-C
        with suppress(Interrupted):
            ((answer,),) = side.sampler(
                [prompt], n=1, max_new_tokens=limit, temperature=settings.temperature, told=told
            )
            ended = answer.ended
        said = stream.end()
        print(flush=True)
        if ended is None:
            say("ended; /retry samples it again")
        elif not ended:
            full = "the context is full: /reset begins a new dialogue"
            say(f"cut after {limit:,} tokens; {'--max_new_tokens allows more' if limit < room else full}")
        side.turns.append(Turn(line, said, bool(ended)))

    def _ids(self, side: Side, before: Sequence[Message], line: str) -> list[int]:
        """A question behind what was said, as the model reads it. Raises: InputError."""
        asked = Prompt((*before, Message("user", line)), where="this dialogue")
        return side.renderer.prompt_ids([asked])[0]

    def dialogue(self, turns: Sequence[Turn]) -> list[Message]:
        """What was said, without questions whose answer Ctrl-C ended at once; one that was cut off is none to learn
        from."""
        opening = [Message("system", self.system)] if self.system else []
        said = [
            (Message("user", t.asked), Message("assistant", t.said, learn=t.ended)) for t in turns if t.said or t.ended
        ]
        return [*opening, *(message for both in said for message in both)]

    # ---- what can be said beside questions ---------------------------------------------------------------------------

    def help(self, _: str) -> None:
        said = {f"{word} {verb.takes}": verb.does for word, verb in VERBS.items()}
        said["/quit"] = "end, as the end of input (Ctrl-D) and Ctrl-C twice at the prompt do"
        said["Ctrl-C"] = "end an answer before its end; what was said of it stays"
        say("\n".join(f"{word:<14} {does}" for word, does in said.items()))

    def open_with(self, text: str) -> None:
        self.system = text
        say(f"the dialogue goes on and opens with {repr(text) if text else 'no system text'}")

    def temper(self, text: str) -> None:
        try:
            found = Sampling(temperature=float(text)).temperature
        except ValueError:  # pydantic's, too
            return say(f"/temperature takes 0, or a number from 0.001 to 1,000, such as 0.3; found {text or 'nothing'}")
        self.settings = self.settings.model_copy(update={"temperature": found})
        say(tempered(found))

    def reset(self, _: str) -> None:
        for side in self.sides:
            side.turns.clear()

    def retry(self, _: str) -> None:
        answered = [side for side in self.sides if side.turns]
        if not answered:
            return say("nothing was answered yet")
        last = answered[0].turns[-1].asked
        for side in answered:
            if side.turns[-1].asked == last:
                side.turns.pop()
        self.ask(last)

    def save(self, file: str) -> None:
        rows = [self._row(side) for side in self.sides if any(turn.said.strip() for turn in side.turns)]
        if not file:
            return say("/save needs the name of a new file, such as talk.jsonl")
        if not rows:
            return say("nothing was answered yet that could be learnt")
        try:
            check_out(file, folder=False)
            lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
            write_file(Path(os.path.expanduser(file)), "".join(lines).encode())
        except (InputError, OSError) as error:
            return say(str(error).removeprefix("out: "))
        turns = [turn for side in self.sides for turn in side.turns]
        empty = sum(not turn.said.strip() for turn in turns)
        cut = sum(not turn.ended for turn in turns if turn.said.strip())
        notes = [f"{cut:,} cut off before their end are marked as not to be learnt (weight 0)"] if cut else []
        notes += [f"{empty:,} that say nothing were left out"] if empty else []
        what = "1 dialogue" if len(rows) == 1 else f"{len(rows):,} dialogues"
        say(f"{what} in {file}" + (f"; of the answers {', '.join(notes)}" if notes else ""))

    def _row(self, side: Side) -> Json:
        """A dialogue as `align.data.shapes.messages` reads it, which refuses empty answers."""
        spoken = [turn for turn in side.turns if turn.said.strip()]
        messages = [m.plain() | ({} if m.learn else {"weight": 0}) for m in self.dialogue(spoken)]
        return {"messages": messages} | ({"model": side.label} if len(self.sides) > 1 else {})


class Verb(NamedTuple):
    """What can be said beside questions: what stands behind it, what it does, who does it."""

    takes: str
    does: str
    act: Callable[[Talk, str], None]


VERBS = {
    "/help": Verb("", "this", Talk.help),
    "/system": Verb("TEXT", "what the dialogue opens with from now on; without TEXT, nothing", Talk.open_with),
    "/temperature": Verb("T", "sample at T from now on: 0.3 is steadier than 1, 0 takes the likeliest", Talk.temper),
    "/reset": Verb("", "begin a new dialogue", Talk.reset),
    "/retry": Verb("", "answer the last question anew", Talk.retry),
    "/save": Verb("FILE", "write the dialogue into the new FILE, a .jsonl that sft reads", Talk.save),
}


def tempered(temperature: float) -> str:
    """How answers are chosen, in words, and how else they may be."""
    own = "the model's own distribution"
    if temperature == 0:
        return f"answers are the likeliest token each time; /temperature 1 samples {own}"
    if temperature == 1:
        return f"answers are sampled at temperature 1, {own}; /temperature 0.3 is steadier, 0 the likeliest"
    return f"answers are sampled at temperature {temperature:g}; /temperature 1 is {own}, 0 the likeliest"


def too_long(tokens: int, alone: int, context: int, system: str) -> str:
    """Why nothing is asked: a dialogue and a question of so many tokens, of which the question `alone` has so many, and
    what to do. The answer needs one token."""
    over = alone - (context - 1)
    if over > 0:
        opened = "with the system text " * bool(system)
        return (
            f"this message is too long: {opened}it has {alone:,} tokens as the model reads it, and the model's context "
            f"of {context:,} has room for {context - 1:,} and an answer. Leave out {over:,} or more."
        )
    return (
        f"this dialogue has {tokens:,} tokens with that message, and the model's context of {context:,} has room for "
        f"{context - 1:,} and an answer. /reset begins a new dialogue."
    )
