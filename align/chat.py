"""Talk to a model, or to two beside each other.  `align chat my-sft --system "You are terse."`

Reads a line, prints the answer as it is sampled, keeps the dialogue. `align chat my-sft my-dpo` asks both the same, and
`align chat FOLDER my-sft` the bare model in FOLDER, too; a merged model beside an adapter is a second base in memory.
/help lists what else can be said. Ctrl-C ends an answer, and twice at the prompt the talk, as /quit and the end of
input do. Answers are sampled from the model's own distribution, as in training; that of a small model, or of one that
was trained little, wanders: `--temperature 0.3` is steadier. Nothing is stored but by /save.
"""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from align import sampling
from align.evaluation import bases
from align.ground.errors import InputError
from align.ground.progress import Work
from align.ground.prompt import Interrupts, is_text, listening, read_line
from align.ground.terminal import guarded, prose, say
from align.inputs.fit import label_of
from align.recipe import Count, Positional, Ref, Sampling, Temperature, TextStage, parse_flags
from align.stage import on_base
from align.stage.ahead.dry_run import plan
from align.stage.describe import Stage
from align.stage.question import prepare
from align.stage.workbench import Workbench
from align.store import Store

if TYPE_CHECKING:
    from align.sampling.dialogue import Side


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
    temperature: Temperature = 1.0
    """1 is the model's own distribution; lower is steadier, such as 0.3, and 0 takes the likeliest token each time;
    /temperature sets it in the talk."""
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


def is_turned(given: Config, first: Config) -> bool:
    """Whether the base, which is loaded first, is the folder that was named last."""
    return given.base is None and first.base is not None and first.base.model != given.parent


def talk(*benches: Workbench, turned: bool = False) -> None:
    """The dialogue, between stdin and stdout; `turned`: who is loaded last answers first. Raises: InputError for
    settings that cannot be used."""
    interrupts = Interrupts()
    with Work("chat"):
        ready(benches[0], {})
        sides, config = load_all(benches), benches[0].config
        talk = sampling.dialogue.Talk(sides[::-1] if turned else sides, config.system or "", config, interrupts)
    say("/help lists what can be said beside questions, /quit ends")
    say(sampling.dialogue.tempered(config.temperature))
    with listening(interrupts):
        while (line := read_line(interrupts)) is not None:
            word, _, rest = line.partition(" ")
            if word == "/quit":
                return
            if word in sampling.dialogue.VERBS:
                sampling.dialogue.VERBS[word].act(talk, rest.strip())
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
        sampling.dialogue.Side(
            label, renderer, bench.context, sampling.rollout.sampler(roles, role, renderer, bench.config.stop)
        )
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
