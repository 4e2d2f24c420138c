"""Talk to a model, or to two beside each other.  `align chat my-sft --system "You are terse."`

Reads a line, prints the answer as it is sampled, keeps the dialogue. `align chat my-sft my-dpo` asks both the same, and
`align chat FOLDER my-sft` the bare model in FOLDER, too; a merged model beside an adapter is a second base in memory.
/help lists what else can be said. Ctrl-C ends an answer, and twice at the prompt the talk, as /quit and the end of
input do. Answers are sampled from the model's own distribution; `--temperature 0` takes the likeliest token each time.
Nothing is stored but by /save.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

from align import sampling
from align.data.records import Message, Prompt
from align.evaluation import bases
from align.ground.disk import write_file
from align.ground.errors import InputError
from align.ground.json import Json
from align.ground.progress import Work
from align.ground.prompt import Interrupted, Interrupts, is_text, listening, read_line
from align.ground.terminal import guarded, prose, say
from align.inputs.fit import check_out, label_of
from align.recipe import Count, Positional, Ref, Sampling, TextStage, parse_flags
from align.stage import on_base
from align.stage.ahead.dry_run import plan
from align.stage.describe import Stage
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store

if TYPE_CHECKING:
    from align.sampling.rollout import Sampler


class Config(Sampling, TextStage):
    """Chat"""

    unread: ClassVar[frozenset[str]] = frozenset({"name"})
    needs_one_of: ClassVar = {("base", "parent"): "neither artifact nor model is named, as in align chat my-sft."}

    parent: Annotated[Ref | None, Positional] = None
    """Artifact to talk to: a name, a digest, or its beginning; or a folder with a model, as base takes it."""
    beside: Annotated[Ref | None, Positional] = None
    """A second artifact, which is asked the same and answers below the first; a merged model is a second base."""
    system: str | None = None
    """What the dialogue opens with."""
    max_new_tokens: Count = 256
    """Longest answer in tokens; less where the context has less room."""


def ready(bench: Workbench, records: Mapping[str, Any]) -> None:
    """Raises: InputError for settings that are no text."""
    if not all(map(is_text, (bench.config.system or "", *bench.config.stop))):
        raise InputError("system and stop: expected text in UTF-8, as a terminal sends it where its locale says so.")


STAGE = Stage(
    "chat",
    version=1,
    config=Config,
    inputs={"parent": ("adapter", "model"), "beside": ("adapter", "model")},
    encoder_decoders=True,
    ready=ready,
)


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
    bench: Workbench
    sampler: Sampler
    turns: list[Turn] = field(default_factory=list)


@dataclass
class Talk:
    """A dialogue with each side, all asked the same."""

    sides: list[Side]
    system: str
    interrupts: Interrupts

    def ask(self, line: str) -> None:
        for side in self.sides:
            if len(self.sides) > 1:
                print(f"{side.label}:", flush=True)
            self._answer(side, line)

    def _answer(self, side: Side, line: str) -> None:
        """One side's answer, streamed. What cannot be asked is said and leaves the dialogue as it was."""
        config, renderer = side.bench.config, side.bench.renderer
        assert renderer is not None
        messages = [*self.dialogue(side.turns), Message("user", line)]
        try:
            (prompt,) = renderer.prompt_ids([Prompt(tuple(messages), where="this dialogue")])
        except InputError as error:
            hint = ", /system alone takes the system text away" if self.system else ""
            return say(f"{error} /reset begins a new dialogue{hint}.")
        room = side.bench.context - len(prompt)
        if room < 1:
            return say(
                f"this dialogue has {len(prompt):,} tokens, all of the model's context of {side.bench.context:,}. "
                "/reset begins a new dialogue."
            )
        limit = min(config.max_new_tokens, room)
        stream = sampling.streaming.Stream(renderer, config.stop, lambda text: print(text, end="", flush=True))

        def told(ids: Sequence[int]) -> None:
            stream(ids)
            self.interrupts.check()

        ended: bool | None = None  # by Ctrl-C
        with suppress(Interrupted):
            ((answer,),) = side.sampler([prompt], n=1, max_new_tokens=limit, temperature=config.temperature, told=told)
            ended = answer.ended
        said = stream.end()
        print(flush=True)
        if ended is None:
            say("ended; /retry samples it again")
        elif not ended:
            full = "the context is full: /reset begins a new dialogue"
            say(f"cut after {limit:,} tokens; {'--max_new_tokens allows more' if limit < room else full}")
        side.turns.append(Turn(line, said, bool(ended)))

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
        say("\n".join(f"{word:<13} {does}" for word, does in said.items()))

    def open_with(self, text: str) -> None:
        self.system = text
        say(f"the dialogue goes on and opens with {repr(text) if text else 'no system text'}")

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
    "/reset": Verb("", "begin a new dialogue", Talk.reset),
    "/retry": Verb("", "answer the last question anew", Talk.retry),
    "/save": Verb("FILE", "write the dialogue into the new FILE, a .jsonl that sft reads", Talk.save),
}


def is_turned(given: Config, first: Config) -> bool:
    """Whether the base, which is loaded first, is the folder that was named last."""
    return given.base is None and first.base is not None and first.base.model != given.parent


def talk(*benches: Workbench, turned: bool = False) -> None:
    """The dialogue, between stdin and stdout; `turned`: who is loaded last answers first. Raises: InputError for
    settings that cannot be used."""
    interrupts = Interrupts()
    with Work("chat"):
        ready(benches[0], {})
        sides = load_all(benches)
        talk = Talk(sides[::-1] if turned else sides, benches[0].config.system or "", interrupts)
    say("/help lists what can be said beside questions, /quit ends")
    with listening(interrupts):
        while (line := read_line(interrupts)) is not None:
            word, _, rest = line.partition(" ")
            if word == "/quit":
                return
            if word in VERBS:
                VERBS[word].act(talk, rest.strip())
            elif re.fullmatch("/[a-z]+", word):
                say(f"there is no {word}; /help lists what there is. A blank in front asks it as it is")
            else:
                talk.ask(line.strip())


def load_all(benches: Sequence[Workbench]) -> list[Side]:
    """Who answers, one base after the other; all compute in what the first does."""
    sides = load_sides(benches[0])
    for bench in benches[1:]:
        precision = benches[0].held.get("precision", bench.config.precision)
        bench.question = replace(bench.question, config=bench.config.model_copy(update={"precision": precision}))
        say(f"chat: {bench.config.parent} is on a base of its own, which is loaded beside the first")
        sides += load_sides(bench)
        if sides[0].label == sides[-1].label:
            sides[0].label, sides[-1].label = benches[0].config.parent or sides[0].label, bench.config.parent
    return sides


def load_sides(bench: Workbench) -> list[Side]:
    """Who answers: the parent or the base, and who is beside it, on the one base."""
    renderer, roles = bench.load_renderer(), bench.load_base()
    on_base.add_reference(bench, roles)
    named = {"reference": bench.config.parent and (bench.config.parent, bench.parents["parent"])}
    if beside := bench.parents.get("beside"):
        on_base.add_role(bench, roles, "beside", None if beside.kind == "model" else bench.store.folder(beside))
        named["beside"] = bench.config.beside, beside
    labels = [label_of(*found) if found else bench.base.label for found in named.values()]
    if len({*labels}) < len(labels):
        labels = [found[0] if found else bench.base.label for found in named.values()]
    return [
        Side(label, bench, sampling.rollout.sampler(roles, role, renderer, bench.config.stop))
        for label, role in zip(labels, named, strict=True)
    ]


def main() -> None:
    def body() -> None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")
        parsed = parse_flags(Config, sys.argv[1:], prog="align chat", doc=__doc__ or "")
        store = Store(parsed.config.store)
        if parsed.dry_run:
            with prose():
                print(*(plan(STAGE, config, store) for config in bases.on_bases(STAGE, parsed.config, store)), sep="\n")
            return
        configs = bases.on_bases(STAGE, parsed.config, store)
        talk(*(Workbench(prepare(STAGE, c, store)) for c in configs), turned=is_turned(parsed.config, configs[0]))

    guarded(body, "stopped")


if __name__ == "__main__":
    main()
