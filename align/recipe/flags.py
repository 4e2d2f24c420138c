"""The command line of a stage alone: `python -m align.dpo --parent my-sft --beta 0.2`. Its flags are the keys of the
recipe.

A flag is a key with dots for groups (`--adapter.rank 8`), or its last part where no other key ends so (`--rank 8`); '-'
may stand for '_'. `--base NAME` stands for `--base.model NAME`, `--flag` for `--flag true`. Lists repeat the flag or
part with commas. Flags win over `--config FILE`, which holds the same keys.
"""

from __future__ import annotations

import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar, get_args, get_origin

from pydantic.fields import FieldInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from align.ground.errors import InputError
from align.recipe import problems as words
from align.recipe.effect import idle, set_aside
from align.recipe.file import place, read_yaml
from align.recipe.settings import Positional, Runtime, Settings, StageConfig, Verbatim, markers

C = TypeVar("C", bound=StageConfig)

SWITCHES = {
    "config": "FILE    Read settings from a YAML file with the same keys; flags win, and its paths are relative to it.",
    "dry-run": "Say what would run, or why it is skipped, and what the data are; read their first and last rows, load "
    "nothing.",
    "memory": "SIZE    With --dry-run: a budget such as 24GiB to fit into, and what to change where a stage does not.",
    "device": "cpu|cuda    With --dry-run: plan the memory of that; without it, of what this machine has.",
    "json": "Print the artifact's manifest as the result.",
    "help": "Show this text.",
}


@dataclass(frozen=True)
class Flags(Generic[C]):
    """A parsed command line."""

    config: C
    json: bool
    dry_run: bool
    memory: str | None = None
    device: str | None = None


def parse_flags(config: type[C], argv: Sequence[str], *, prog: str, doc: str = "") -> Flags[C]:
    """Read a command line into a config. `--help` prints every setting and exits.

    Args:
        prog: how the command is called, such as "python -m align.dpo"; its last word names the stage in messages.
        doc: text on top of the help.
    Raises: InputError with a line for each problem.
    """
    if {"--help", "-h"} & set(argv):
        print(help_text(config, prog, doc))
        raise SystemExit(0)
    command = _Command(config, prog)
    command.read(argv)
    return command.result()


class _Command:
    """A command line on its way to a config; problems are gathered and told at the end."""

    def __init__(self, config: type[object], prog: str) -> None:
        self.config = config
        self.prog = prog
        self.owner = prog.split()[-1].removeprefix("align.")
        self.fields = dict(_leaves(config))
        self.flags = _spellings(config, self.fields)
        self.values: dict[words.Path, object] = {}
        self.switches: dict[str, str] = {}
        self.found: list[str] = []

    def read(self, argv: Sequence[str]) -> None:
        words_left = list(argv)
        while words_left:
            word = words_left.pop(0)
            if not word.startswith("--") or word == "--":
                self.positional(word)
                continue
            name, equals, value = word[2:].partition("=")
            path = self.path_of(name)
            if name in ("json", "dry-run", "dry_run"):
                self.switches[name.replace("_", "-")] = value or "true"
                continue
            if path is None and name not in ("config", "memory", "device"):
                self.unknown(name)
                if not equals and words_left and not words_left[0].startswith("--"):
                    words_left.pop(0)
                continue
            field = self.field_of(path) if path is not None else None
            if not equals:
                if (
                    field is not None
                    and _is_switch(field)
                    and (not words_left or words_left[0] not in ("true", "false"))
                ):
                    value = "true"
                elif words_left and not words_left[0].startswith("--"):
                    value = words_left.pop(0)
                else:
                    wanted = {"memory": "a size such as 24GiB", "device": "cpu or cuda"}.get(name, "a file")
                    self.found.append(f"--{name} needs a value: {words.expected(field) if field else wanted}.")
                    continue
            if path is None or field is None:
                self.switches[name] = value
            else:
                self.keep(name, path, value)

    def path_of(self, name: str) -> words.Path | None:
        """The keys that a flag stands for; in a setting that maps names, such as `--judges.manners`, the last key is
        free."""
        first, _, last = name.partition(".")
        whole = self.flags.get(first.replace("-", "_"))
        if last and whole and _is_mapping(self.fields[whole]):
            return *whole, last
        return self.flags.get(name.replace("-", "_"))

    def field_of(self, path: words.Path) -> FieldInfo:
        return self.fields[path] if path in self.fields else self.fields[path[:-1]]

    def keep(self, name: str, path: words.Path, text: str) -> None:
        field = self.field_of(path)
        if _is_list(field):
            if text in _literals(field):
                self.values[path] = text
            else:
                before = self.values.get(path)
                new = [text] if Verbatim in markers(field) else list(filter(None, (v.strip() for v in text.split(","))))
                self.values[path] = [*(before if isinstance(before, list) else []), *new]
        elif path in self.values:
            self.found.append(f"--{name} is given twice; give it once.")
        else:
            self.values[path] = text if path not in self.fields and _maps_to_text(field) else _value(field, text)

    def positional(self, word: str) -> None:
        path = next((path for path, field in self.fields.items() if Positional in markers(field)), None)
        if path is None or (path in self.values and not _is_list(self.fields[path])):
            takes = f"one word ({'.'.join(path)})" if path else "no bare words"
            given = next(
                (".".join(name) for name in self.values if name in self.fields and _is_list(self.fields[name])), None
            )
            several = f"; several values of --{given} are joined by commas" if given else ""
            self.found.append(
                f"{word}: {self.owner} takes {takes}; settings are given as --KEY VALUE{several}. See {self.prog} "
                f"--help."
            )
        elif _is_list(self.fields[path]):
            self.values[path] = [*self.values.get(path, []), word]
        else:
            self.values[path] = _value(self.fields[path], word)

    def unknown(self, name: str) -> None:
        plain = name.replace("-", "_")
        keys = [".".join(path) for path in self.fields]
        clash = [f"--{key}" for key in keys if key.split(".")[-1] == plain]
        inside = [f"--{key}" for key in keys if key.startswith(f"{plain}.")]
        if clash:
            text = f"--{name} could be {' or '.join(clash)}; give the whole key."
        elif inside:
            text = f"--{name} holds several settings; give them one by one: {', '.join(inside)}."
        else:
            guess = words.nearest(plain, [*self.flags, *SWITCHES])
            hint = f"did you mean --{guess}?" if guess else f"see {self.prog} --help."
            text = f"--{name} is not a setting of {self.owner}; {hint}"
        self.found.append(text)

    def result(self) -> Flags[object]:
        given: dict[str, object] = {}
        lines: dict[words.Path, str] = {}
        if "config" in self.switches:
            document = read_yaml(self.switches["config"])
            lines = document.lines
            given = place(self.config, document.values, document.path.parent)
        for path, value in self.values.items():
            inner = given
            for key in path[:-1]:
                inner[key] = inner = dict(inner.get(key) or {})
            inner[path[-1]] = value

        def origin(path: words.Path) -> str:
            return f"{lines[path]}: " if path in lines and path not in self.values else ""

        def spell(path: words.Path) -> str:
            group = words.group_of(self.config.model_fields[path[0]]) if path[0] in self.config.model_fields else None
            short = path[:1] if len(path) == 2 and group is not None and group.shorthand == path[1] else path
            return ".".join(path) if origin(path) else f"--{'.'.join(short)}"

        wrong = words.problems(self.config, given, self.owner, spell)
        config: object = None if wrong else self.config.model_validate(given)
        for path, text in idle(config, None, spell) if config else []:
            if self.values and path not in self.values:  # flags win over the file
                set_aside(config, path)
            else:
                wrong.append((path, text))
        self.found += [f"{origin(path)}{text}" for path, text in wrong]
        if self.found:
            raise InputError("\n".join(dict.fromkeys(self.found)))
        on = {name: self.switches.get(name) == "true" for name in ("json", "dry-run")}
        plan = {name: self.switches.get(name) for name in ("memory", "device")}
        return Flags(config, on["json"], on["dry-run"], **plan)


def help_text(config: type[StageConfig], prog: str, doc: str) -> str:
    """Every setting with what it takes, its default and its docstring, the stage's own first, those that change no
    result last."""
    width = min(shutil.get_terminal_size().columns, 110)
    word = next(
        (f" [{name.upper()}]" for name, field in config.model_fields.items() if Positional in markers(field)), ""
    )
    out = [f"usage: {prog}{word} [--KEY VALUE ...]", *(["", doc.strip()] if doc.strip() else []), ""]
    out += textwrap.wrap(
        "A key may be given by its last part where no other key ends so (--rank 8). Lists take commas, or the flag "
        "again.",
        width,
    )
    for title, members in _sections(config).items():
        out += ["", title, ""]
        for path, field in members:
            out.append(f"  --{'.'.join(path)}{'.NAME' if _is_mapping(field) else ''}  {_takes(field)}")
            out += textwrap.wrap(
                " ".join((field.description or "").split()), width, initial_indent=" " * 6, subsequent_indent=" " * 6
            )
    out += ["", "The command itself", ""]
    out += [f"  --{name}  {text}" for name, text in SWITCHES.items()]
    return "\n".join(out)


def _sections(config: type[StageConfig]) -> dict[str, list[tuple[words.Path, FieldInfo]]]:
    """The settings under headings: the docstring of the class that first declares them, their group's, or the runtime
    ones."""
    owners = {
        name: owner
        for owner in config.__mro__
        for name in getattr(owner, "__annotations__", {})
        if issubclass(owner, Settings)
    }
    titles = [_title(owner) for owner in config.__mro__ if issubclass(owner, StageConfig)]
    sections: dict[str, list[tuple[words.Path, FieldInfo]]] = {title: [] for title in titles}
    for path, field in _leaves(config):
        group = words.group_of(config.model_fields[path[0]]) if len(path) > 1 else None
        title = (
            _title(group)
            if group
            else "Without influence on the result"
            if Runtime in markers(field)
            else _title(owners[path[0]])
        )
        sections.setdefault(title, []).append((path, field))
    runtime = sections.pop("Without influence on the result", [])
    sections["Without influence on the result"] = runtime
    return {
        title: sorted(members, key=lambda m: not m[1].is_required()) for title, members in sections.items() if members
    }


def _title(owner: type) -> str:
    return (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")


def _takes(field: FieldInfo) -> str:
    needed = (
        "required" if field.is_required() else f"default {words.plain(field.get_default(call_default_factory=True))}"
    )
    return f"{words.expected(field)}; {needed}"


def _leaves(config: type[Settings], prefix: words.Path = ()) -> Iterator[tuple[words.Path, FieldInfo]]:
    """(keys, field) of every setting, those inside groups too."""
    for name, field in config.model_fields.items():
        group = words.group_of(field)
        if group is None:
            yield (*prefix, name), field
        else:
            yield from _leaves(group, (*prefix, name))


def _spellings(config: type[Settings], fields: dict[words.Path, FieldInfo]) -> dict[str, words.Path]:
    """Flag -> keys: whole keys, last parts that only one key has, and groups that a plain value stands for."""
    ends = Counter(path[-1] for path in fields)
    flags = {path[-1]: path for path in fields if ends[path[-1]] == 1}
    for name, field in config.model_fields.items():
        group = words.group_of(field)
        flags.pop(name, None)
        if group is not None and group.shorthand:
            flags[name] = (name, group.shorthand)
    return flags | {".".join(path): path for path in fields}


def _members(field: FieldInfo) -> list[object]:
    return [words.bare(member) for member in words.alternatives(field.annotation)]


def _is_list(field: FieldInfo) -> bool:
    return any(get_origin(member) is list for member in _members(field))


def _is_mapping(field: FieldInfo) -> bool:
    return any(get_origin(member) is dict for member in _members(field))


def _maps_to_text(field: FieldInfo) -> bool:
    return any(words.bare(get_args(member)[1]) is str for member in _members(field) if get_origin(member) is dict)


def _is_switch(field: FieldInfo) -> bool:
    return bool in _members(field)


def _literals(field: FieldInfo) -> list[object]:
    return [value for member in _members(field) if get_origin(member) is Literal for value in get_args(member)]


def _value(field: FieldInfo, text: str) -> object:
    """A word of the command line as the value it spells: text where text is wanted and it is not the number that may
    stand there too, else a YAML scalar."""
    members = _members(field)
    if text == "null" and type(None) in members:
        return None
    if {str, float} <= {*members}:
        with suppress(ValueError):
            return float(text)
    if str in members or text in _literals(field):
        return text
    try:
        return YAML(typ="safe", pure=True).load(text)
    except YAMLError:
        return text
