"""The help of a stage's command: where to start, or every setting with what it takes, its default and its docstring."""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator, Sequence
from typing import Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from align.recipe.fields import is_mapping, leaves, members
from align.recipe.settings import (
    IsFile,
    IsModel,
    IsPath,
    IsRef,
    Positional,
    Runtime,
    Settings,
    StageConfig,
    markers,
)
from align.recipe.telling import problems as words
from align.recipe.telling.meaning import meaning

SWITCHES = {
    "config": "FILE    Read settings from a YAML file with the same keys; flags win, and its paths are relative to it.",
    "split": "SPLIT    Of --data, where that is a data set of the hub: --data trl-lib/Capybara --split train.",
    "dry-run": "Say what would run, or why it is skipped, and what the data are; read their first and last rows, load "
    "nothing.",
    "memory": "SIZE    With --dry-run: a budget such as 24GiB to fit into, and what to change where a stage does not.",
    "device": "cpu|cuda    With --dry-run: plan the memory of that; without it, of what this machine has.",
    "json": "Print the artifact's manifest as the result; with --dry-run, what would become of it, and its memory.",
    "help": "Show where to start; --help all explains every setting.",
}
START = (
    (
        "base",
        "parent",
        "teacher",
        "compare",
        "adapters",
        "data",
        "judge",
        "name",
        "reward",
        "judges",
        "judge_prompt",
        "out",
        "texts",
        "pairs",
    ),
    ("beta", "group_size", "kl_coef", "n", "max_new_tokens", "against", "system"),
    ("scrub", "rules", "near", "fraction", "side", "read_as"),
    (
        "epochs",
        "batch_size",
        "learning_rate",
        "temperature",
        "adapter.rank",
        "max_length",
        "truncate",
        "base.quantize",
        "method",
    ),
    ("limit", "dtype", "max_kl", "chat_template"),
)
"""What most runs set: what goes in and comes out, the method, the training, the rest. A stage's help begins with the
first of those that it has, `SHOWN` in all with what it requires."""
SHOWN = 13
MUST = ("Required.", "Required, or")
"""How `need` begins of what nobody can leave out."""
COLUMN = 26
"""Where the text beside a flag begins."""
LONGEST = 48
"""Characters of a flag's choices on the first screen."""
METAVARS = {IsModel: "MODEL", IsRef: "REF", IsFile: "FILE", IsPath: "PATH"}

RUNTIME = "Without influence on the result"
KEYS = (
    "A key may be given by its last part where no other key ends so (--rank 8), and with - for _ (--learning-rate). "
    "Lists take commas, or the flag again."
)
Leaf = tuple[words.Path, FieldInfo]
"""Keys of a setting, and its field."""


def help_text(config: type[StageConfig], prog: str, doc: str, *, everything: bool = False) -> str:
    """Where to start, on one screen; or every setting, the stage's own first, those that change no result last.

    Args:
        doc: the stage's docstring, which may show a call of it between backticks.
    """
    body = _all(config, doc) if everything else _start(config, prog, doc)
    return "\n".join([*_usage(config, prog), "", *body])


def width() -> int:
    """Columns of help: those of the terminal, as far as lines stay readable."""
    return max(40, min(shutil.get_terminal_size().columns, 100))


def _usage(config: type[StageConfig], prog: str) -> list[str]:
    """How the command is called, with what it requires; a bare word stands as such."""
    fields = config.model_fields
    required = [(name,) for name, field in fields.items() if field.is_required()]
    order = [key for group in START for key in group]
    given = []
    for names in sorted([*config.needs_one_of, *required], key=lambda names: order.index(names[0])):
        ways = [name.upper() if Positional in markers(fields[name]) else _typed(config, name) for name in names]
        given.append(f"({' | '.join(ways)})" if len(ways) > 1 else ways[0])
    line = " ".join(["usage:", prog, *given, "[--KEY VALUE ...]"])
    return textwrap.wrap(line, width(), subsequent_indent=" " * 6, break_on_hyphens=False)


def _typed(config: type[StageConfig], name: str) -> str:
    """A setting or the plain value of a group as a flag, with what it takes."""
    field = config.model_fields[name]
    group = words.group_of(field)
    inner = group.model_fields[group.shorthand] if group and group.shorthand else field
    return f"--{name}{'.NAME' if is_mapping(inner) else ''} {_metavar(inner)}"


def _leaves(config: type[StageConfig]) -> list[Leaf]:
    """The settings that the stage reads."""
    unread = getattr(config, "unread", ())
    return [(path, field) for path, field in leaves(config) if path[0] not in unread]


# ---- where to start --------------------------------------------------------------------------------------------------


def _start(config: type[StageConfig], prog: str, doc: str) -> list[str]:
    shown = _first(config)
    out = [*_opening(doc), "", "Start here (in flags - does for _, as in --learning-rate)", ""]
    for path, field in shown:
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        said = f" Default {words.plain(default)}." if default not in (None, [], {}) else ""
        must = need(config, path, field)
        text = f"{_gist(_meaning(config, path))}.{said} {must if must.startswith(MUST) else ''}".rstrip()
        name = ".NAME" if is_mapping(field) else ""
        out += _beside(f"--{_flag(config, path)}{name} {_short(_metavar(field))}", text)
    rest = len(_leaves(config)) - len(shown)
    out += _beside("--dry-run", f"{_gist(SWITCHES['dry-run'])}.")
    return [*out, "", f"{prog} --help all    explains these and {rest} more"]


def _first(config: type[StageConfig]) -> list[Leaf]:
    """The settings to start with: those that are required, what most runs set, in the order of `START`, and the first
    one that the stage alone has."""
    no_base = ("parent",) in config.needs_one_of  # a parent says which base it is on, and here it must be given
    fields = {
        _flag(config, path): (path, field) for path, field in _leaves(config) if not (no_base and path[0] == "base")
    }
    wanted = [key for group in START for key in group if key in fields]
    required = [key for key, (path, field) in fields.items() if need(config, path, field).startswith(MUST)]
    own = [key for key in getattr(config, "__annotations__", {}) if key in fields and key not in wanted]
    chosen = [*dict.fromkeys([*required, *own[:1], *wanted])][:SHOWN]
    order = [*wanted, *chosen]
    return [fields[key] for key in sorted(chosen, key=order.index)]


def _opening(doc: str) -> list[str]:
    """The first sentence of a stage's docstring, and the call that it shows."""
    plain = " ".join(doc.split())
    call = re.search(r"`((?:python -m align\.|align )[^`]+)`", plain)
    first = re.split(r"(?<=\.) ", plain)[0]
    lines = textwrap.wrap(first.partition(" `")[0], width())
    if not call:
        return lines
    shown = textwrap.wrap(call[1], width() - 2, subsequent_indent=" " * 4, break_on_hyphens=False)
    return [*lines, "", *(f"  {line}" for line in shown)]


def _meaning(config: type[Settings], path: words.Path) -> str:
    for key in path[:-1]:
        config = words.group_of(config.model_fields[key]) or config
    return meaning(config, path[-1])


def _gist(text: str) -> str:
    """The first sentence of a docstring, without what stands in brackets."""
    plain = re.sub(r" \([^()]*\)", "", " ".join(text.split()))
    return re.split(r"(?<=[.;]) ", plain)[0].rstrip(".;")


def _flag(config: type[StageConfig], path: words.Path) -> str:
    """A setting's key as it is typed: a group's name for what a plain value of it stands for."""
    group = words.group_of(config.model_fields[path[0]])
    return path[0] if group and path[1:] == (group.shorthand,) else ".".join(path)


def _metavar(field: FieldInfo) -> str:
    """What a setting takes, in a word of capitals or as its choices."""
    kinds = members(field)
    choices = [str(value) for kind in kinds if get_origin(kind) is Literal for value in get_args(kind)]
    marked = next((name for marker, name in METAVARS.items() if marker in markers(field)), None)
    number = "N" if int in kinds else "X" if float in kinds or is_mapping(field) else None
    other = marked or number or (None if choices else "TEXT")
    return "|".join([*choices, *([other] if other else [])])


def _short(metavar: str) -> str:
    """The first of many choices; `--help all` has them all."""
    if len(metavar) <= LONGEST:
        return metavar
    return f"{metavar[: metavar.rindex('|', 0, LONGEST)]}|…"


def _beside(head: str, text: str) -> Iterator[str]:
    """A flag and what it does in two columns; a long flag has a line of its own."""
    text_width = width() - COLUMN
    lines = textwrap.wrap(text, text_width, break_on_hyphens=False)
    if len(head) + 4 > COLUMN:
        yield f"  {head}"
    else:
        yield f"  {head:<{COLUMN - 2}}{lines.pop(0)}"
    yield from (" " * COLUMN + line for line in lines)


# ---- everything ------------------------------------------------------------------------------------------------------


def _all(config: type[StageConfig], doc: str) -> list[str]:
    out = [line for paragraph in doc.strip().split("\n\n") for line in [*_wrapped(paragraph), ""]]
    out += textwrap.wrap(KEYS, width())
    for title, found in _sections(config).items():
        out += ["", title, ""]
        for path, field in found:
            name = ".NAME" if is_mapping(field) else ""
            out += _below(f"--{'.'.join(path)}{name}  {_takes(config, path, field)}", _meaning(config, path))
    out += ["", "The command itself", ""]
    return out + [line for name in switches(config) for line in _below(f"--{name}", SWITCHES[name])]


def switches(config: type[StageConfig]) -> list[str]:
    """The command's own flags: what makes no artifact plans no memory and prints no manifest."""
    away = ["memory", "device", "json"] * ("name" in getattr(config, "unread", ()))
    away += ["split"] * ("data" not in config.model_fields)
    return [name for name in SWITCHES if name not in away]


def _wrapped(paragraph: str) -> list[str]:
    """A paragraph at the width of help; one with indented lines, such as an equation, as it stands."""
    lines = paragraph.splitlines()
    return lines if any(line.startswith(" ") for line in lines) else textwrap.wrap(" ".join(lines), width())


def _below(head: str, text: str) -> list[str]:
    """A flag with what it takes, and below it what it does."""
    lines = textwrap.wrap(head, width(), initial_indent="  ", subsequent_indent=" " * 6, break_on_hyphens=False)
    said = " ".join(text.split())
    return lines + textwrap.wrap(said, width(), initial_indent=" " * 6, subsequent_indent=" " * 6)


def _sections(config: type[StageConfig]) -> dict[str, list[Leaf]]:
    """The settings under headings: the docstring of the class that first declares them, their group's, or the runtime
    ones."""
    owners: dict[str, type] = {}
    for owner in (owner for owner in config.__mro__ if issubclass(owner, Settings)):
        owners |= dict.fromkeys(getattr(owner, "__annotations__", {}), owner)
    titles = [_title(owner) for owner in config.__mro__ if issubclass(owner, StageConfig)]
    sections: dict[str, list[Leaf]] = {title: [] for title in titles}
    for path, field in _leaves(config):
        group = words.group_of(config.model_fields[path[0]]) if len(path) > 1 else None
        title = RUNTIME if Runtime in markers(field) else _title(owners[path[0]])
        sections.setdefault(_title(group) if group else title, []).append((path, field))
    sections[RUNTIME] = sections.pop(RUNTIME, [])
    return {title: sorted(some, key=lambda leaf: not leaf[1].is_required()) for title, some in sections.items() if some}


def _title(owner: type) -> str:
    return (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")


def _takes(config: type[StageConfig], path: words.Path, field: FieldInfo) -> str:
    said = need(config, path, field)
    if field.is_required():
        return f"{words.expected(field)}; {said[0].lower()}{said[1:-1]}"
    default = f"{words.expected(field)}; default {words.plain(field.get_default(call_default_factory=True))}"
    return f"{default}; {said[0].lower()}{said[1:-1]}" if said else default


def need(config: type[StageConfig], path: words.Path, field: FieldInfo) -> str:
    """Whether a setting is required, in a sentence: alone, unless another is given, or inside a group that is; "" where
    it is not."""
    is_inner = len(path) > 1
    others = [_other(names, path[0]) for names in config.needs_one_of if path[0] in names]
    if others and (field.is_required() or not is_inner):
        return f"Required, or {others[0]}." if others[0] else "Required."
    if not field.is_required():
        return ""
    return f"Required where {path[0]} is given." if is_inner else "Required."


def _other(names: Sequence[str], name: str) -> str:
    return " or ".join(f"--{other}" for other in names if other != name)
