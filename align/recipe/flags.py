"""The command line of a stage alone: `python -m align.dpo --parent my-sft --beta 0.2`. Its flags are the keys of the
recipe.

A flag is a key with dots for groups (`--adapter.rank 8`), or its last part where no other key ends so (`--rank 8`); '-'
may stand for '_'. `--base NAME` stands for `--base.model NAME`, `--flag` for `--flag true`. Lists repeat the flag or
part with commas. Flags win over `--config FILE`, which holds the same keys.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

from pydantic.fields import FieldInfo

from align.ground.errors import InputError
from align.ground.json import Json
from align.recipe.document import read_yaml
from align.recipe.effect import idle, set_aside
from align.recipe.fields import is_list, is_mapping, is_switch, leaves, literals, maps_to_text, spellings, spelt
from align.recipe.hub_data import spelled, with_split
from align.recipe.paths import relative_to
from align.recipe.settings import Positional, StageConfig, Verbatim, markers
from align.recipe.telling import elsewhere
from align.recipe.telling import problems as words
from align.recipe.telling.help import help_text, switches

C = TypeVar("C", bound=StageConfig)
VALUES = {"memory": "a size such as 24GiB", "device": "cpu or cuda", "split": "a split such as train"}
"""What some of the command's own flags take; --config takes a file."""


@dataclass(frozen=True)
class Flags(Generic[C]):
    """A parsed command line."""

    config: C
    json: bool
    dry_run: bool
    memory: str | None = None
    device: str | None = None


def parse_flags(config: type[C], argv: Sequence[str], *, prog: str, doc: str = "") -> Flags[C]:
    """Read a command line into a config. `--help` prints where to start, `--help all` every setting, and both exit.

    Args:
        prog: how the command is called, such as "python -m align.dpo"; its last word names the stage in messages.
        doc: text on top of the help.
    Raises: InputError with a line for each problem.
    """
    if {"--help", "-h"} & set(argv):
        print(help_text(config, prog, doc, everything="all" in argv))
        raise SystemExit(0)
    command = _Command(config, prog)
    command.read(argv)
    return command.result()


class _Command(Generic[C]):
    """A command line on its way to a config; problems are gathered and told at the end."""

    def __init__(self, config: type[C], prog: str) -> None:
        self.config = config
        self.prog = prog
        self.owner = prog.split()[-1].removeprefix("align.")
        unread = {"name"} & {*getattr(config, "unread", ())}  # of others that are unread their stage says why
        self.fields = {path: field for path, field in leaves(config) if path[0] not in unread}
        self.flags = spellings(config, self.fields)
        self.values: dict[words.Path, object] = {}
        self.spelt: dict[words.Path, str] = {}  # by which name each was given
        self.switches: dict[str, str] = {}
        self.bare = [path for path, field in self.fields.items() if Positional in markers(field)]
        self.own = switches(config)
        self.strange: list[str] = []
        self.strays: list[str] = []
        self.found: list[str] = []

    def read(self, argv: Sequence[str]) -> None:
        words_left = list(argv)
        while words_left:
            word = words_left.pop(0)
            if not word.startswith("--") or word == "--":
                self.positional(word)
                continue
            name, equals, text = word[2:].partition("=")
            path = self.path_of(name)
            own = name.replace("_", "-")
            if own in ("json", "dry-run") and own in self.own:
                if equals and text not in ("true", "false"):
                    self.found.append(f"--{name}: expected true or false, found {words.found(text)}.")
                self.switches[own] = text or "true"
                continue
            if path is None and name not in self.own:
                if not equals and words_left and not words_left[0].startswith("--"):
                    text = words_left.pop(0)
                self.unknown(name, text)
                continue
            field = self.field_of(path) if path is not None else None
            if not equals:
                given = self.value_of(name, field, words_left)
                if given is None:
                    continue
                text = given
            if path is None or field is None:
                if not text:
                    self.found.append(f"--{name} needs a value: {VALUES.get(name, 'a file')}.")
                self.switches[name] = text
            else:
                self.take(name, path, text)

    def value_of(self, name: str, field: FieldInfo | None, words_left: list[str]) -> str | None:
        """The value of a flag, off the words that follow; None where there is none, which is a problem."""
        follows = words_left[0] if words_left else "--"
        said = follows in ("true", "false", *literals(field)) if field is not None else False
        if field is not None and is_switch(field) and not said and (follows.startswith("--") or self.bare):
            return "true"
        if not follows.startswith("--"):
            return words_left.pop(0)
        wanted = VALUES.get(name, "a file") if field is None else words.expected(field)
        self.found.append(f"--{name} needs a value: {wanted}.")
        return None

    def path_of(self, name: str) -> words.Path | None:
        """The keys that a flag stands for; in a setting that maps names, such as `--judges.manners`, the last key is
        free."""
        first, _, last = name.partition(".")
        whole = self.flags.get(first.replace("-", "_"))
        if last and whole and is_mapping(self.fields[whole]):
            return *whole, last
        return self.flags.get(name.replace("-", "_"))

    def field_of(self, path: words.Path) -> FieldInfo:
        return self.fields[path] if path in self.fields else self.fields[path[:-1]]

    def take(self, name: str, path: words.Path, text: str) -> None:
        field = self.field_of(path)
        if is_list(field):
            if text in literals(field):
                self.values[path] = text
            else:
                parts = [part.strip() for part in text.split(",")]
                if Verbatim not in markers(field) and len(parts) > 1 and not all(parts):
                    self.found.append(f"--{name} {text!r}: an entry is blank. Give it a value, or leave out its comma.")
                new = [text] if Verbatim in markers(field) else [part for part in parts if part]
                self.values[path] = [*self.listed(path), *new]
        elif path in self.values:
            first = self.spelt.get(path, name)
            what = f"--{name} is given twice" if first == name else f"--{first} and --{name} are one setting"
            self.found.append(f"{what}; give it once.")
        elif both := next((p for p in self.values if p[: len(path)] == path or path[: len(p)] == p), None):
            self.found.append(f"--{'.'.join(both)} and --{name} say one thing in two ways; give one of them.")
        else:
            is_text = path not in self.fields and maps_to_text(field)
            self.values[path] = text if is_text else spelt(field, text)
            self.spelt[path] = name
            if not text.strip() and self.values[path] is None:  # as where a shell's variable holds nothing
                self.found.append(f"--{name} is empty. Give it a value, null for none, or leave it out.")

    def listed(self, path: words.Path) -> list[object]:
        """What a setting that is a list holds so far."""
        before = self.values.get(path)
        return before if isinstance(before, list) else []

    def positional(self, word: str) -> None:
        paths = self.bare
        path = next((path for path in paths if path not in self.values or is_list(self.fields[path])), None)
        if path is None:
            self.strays.append(word)
        elif is_list(self.fields[path]):
            self.values[path] = [*self.listed(path), word]
        else:
            self.values[path] = spelt(self.fields[path], word)

    def stray(self) -> str:
        """What is said of words that stand for no setting."""
        count = {0: "no bare words", 1: "one word"}.get(len(self.bare), f"{len(self.bare)} words")
        takes = f"{count} ({', '.join(map('.'.join, self.bare))})" if self.bare else count
        lists = [".".join(path) for path in self.values if path in self.fields and is_list(self.fields[path])]
        several = f"; several values of --{lists[0]} are joined by commas" if lists else ""
        said = f"{self.owner} takes {takes}; settings are given as --KEY VALUE{several}. See {self.prog} --help."
        return f"{', '.join(self.strays)}: {said}"

    def unknown(self, name: str, value: str) -> None:
        plain = name.replace("-", "_")
        keys = [".".join(path) for path in self.fields]
        clash = [f"--{key}" for key in keys if key.split(".")[-1] == plain]
        inside = [f"--{key}" for key in keys if key.startswith(f"{plain}.")]
        if clash:
            text = f"--{name} could be {' or '.join(clash)}; give the whole key."
        elif inside:
            field = self.config.model_fields.get(plain)
            group = words.group_of(field) if field else None
            own = words.meant(group, value) if group else None
            other = f"{plain}.{own}" if own else words.meant(self.config, value)
            hint = f" Did you mean --{other} {value}?" if other else ""
            text = f"--{name} holds several settings; give them one by one: {', '.join(inside)}.{hint}"
        else:
            guess = words.nearest(plain, [*self.flags, *self.own])
            maps = guess in self.flags and words.only_maps(self.fields[self.flags[guess]])
            meant = f"{guess}.NAME {value}".rstrip() if maps else guess
            near = f"did you mean --{meant}?" if guess else f"see {self.prog} --help all."
            hint = (
                getattr(self.config, "strangers", {}).get(plain)
                or elsewhere.hint(plain, partial(words.holds, self.config), self.typed, value)
                or near
            )
            text = f"--{name} is not a setting of {self.owner}; {hint}"
            self.strange.append(plain)
        self.found.append(text)

    def typed(self, key: str) -> str:
        """A setting as a flag: a group's name for what a plain value of it stands for."""
        short = next((name for name in self.config.model_fields if self.flags.get(name) == tuple(key.split("."))), key)
        path = self.flags.get(short.replace("-", "_"))
        return f"--{short}{'.NAME' if path and words.only_maps(self.fields[path]) else ''}"

    def in_full(self, said: str) -> list[str]:
        """Which keys flags stand for that were given by their last part, where what is `said` of the whole is about
        their group: `--model` was typed, and not base, which a parent stands for as well."""
        kin = {"base": ("base", "parent")}
        short = {path: name for path, name in self.spelt.items() if len(path) > 1 and name != ".".join(path)}
        return [
            f"--{name} is {'.'.join(path)} here."
            for path, name in short.items()
            if name != path[0] and any(re.search(rf"\b{key}\b", said) for key in kin.get(path[0], path[:1]))
        ]

    def result(self) -> Flags[C]:
        given: Json = {}
        lines: dict[words.Path, str] = {}
        if "config" in self.switches:
            document = read_yaml(self.switches["config"])
            if "stages" in document.values:
                raise InputError(
                    f"{document.path} is a recipe, which `align run {document.path}` runs; --config takes a file with "
                    f"settings of {self.owner} alone."
                )
            lines = document.lines
            given = relative_to(document.path.parent, self.config, document.values)
        for path, said in self.values.items():
            inner: dict[str, Any] = given
            for key in path[:-1]:
                before = inner.get(key)
                inner[key] = dict(before) if isinstance(before, Mapping) else {}
                inner = inner[key]
            inner[path[-1]] = said
        if self.strays:
            self.found.insert(0, self.stray())
        if "split" in self.switches:
            try:
                given["data"] = with_split(spelled(given.get("data")), self.switches["split"])
            except ValueError as error:
                self.found.append(str(error))

        def origin(path: words.Path) -> str:
            return f"{lines[path]}: " if path in lines and path not in self.values else ""

        def spell(path: words.Path) -> str:
            field = self.config.model_fields.get(path[0])
            group = words.group_of(field) if field else None
            if origin(path):
                return ".".join(path)
            if lines and path not in self.values:  # as the file is to have it
                return f"{path[0]}: {{{path[1]}: …}}" if len(path) == 2 else path[0]
            is_short = group is not None and path[1:] == (group.shorthand,) and self.spelt.get(path) != ".".join(path)
            return f"--{'.'.join(path[:1] if is_short else path)}"

        wrong = words.problems(self.config, given, self.owner, spell)
        config = None if wrong else self.config.model_validate(given)
        for path, text in idle(config, None, spell) if config else []:
            if config and self.values and path not in self.values:  # flags win over the file
                set_aside(config, path)
            else:
                wrong.append((path, text))
        wrong = words.but_meant(wrong, self.config, [*self.strange, *given])
        self.found += [f"{origin(path)}{text}" for path, text in wrong]
        self.found += self.in_full(" ".join(text for path, text in wrong if not path))
        if config is None or self.found:
            raise InputError("\n".join(dict.fromkeys(self.found)))
        on = {name: self.switches.get(name) == "true" for name in ("json", "dry-run")}
        plan = {name: self.switches.get(name) for name in ("memory", "device")}
        return Flags(config, on["json"], on["dry-run"], **plan)
