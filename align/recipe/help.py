"""The help of a stage's command: every setting with what it takes, its default and its docstring."""

from __future__ import annotations

import shutil
import textwrap

from pydantic.fields import FieldInfo

from align.recipe import problems as words
from align.recipe.fields import is_mapping, leaves
from align.recipe.settings import Positional, Runtime, Settings, StageConfig, markers

SWITCHES = {
    "config": "FILE    Read settings from a YAML file with the same keys; flags win, and its paths are relative to it.",
    "split": "SPLIT    Of --data, where that is a data set of the hub: --data trl-lib/Capybara --split train.",
    "dry-run": "Say what would run, or why it is skipped, and what the data are; read their first and last rows, load "
    "nothing.",
    "memory": "SIZE    With --dry-run: a budget such as 24GiB to fit into, and what to change where a stage does not.",
    "device": "cpu|cuda    With --dry-run: plan the memory of that; without it, of what this machine has.",
    "json": "Print the artifact's manifest as the result.",
    "help": "Show this text.",
}


RUNTIME = "Without influence on the result"
KEYS = (
    "A key may be given by its last part where no other key ends so (--rank 8). Lists take commas, or the flag again."
)
Leaf = tuple[words.Path, FieldInfo]
"""Keys of a setting, and its field."""


def help_text(config: type[StageConfig], prog: str, doc: str) -> str:
    """Every setting with what it takes, its default and its docstring, the stage's own first, those that change no
    result last."""
    width = min(shutil.get_terminal_size().columns, 110)
    positional = [name for name, field in config.model_fields.items() if Positional in markers(field)]
    words_taken = "".join(f" [{name.upper()}]" for name in positional)
    out = [f"usage: {prog}{words_taken} [--KEY VALUE ...]", ""]
    if doc.strip():
        out += [doc.strip(), ""]
    out += textwrap.wrap(KEYS, width)
    for title, members in _sections(config).items():
        out += ["", title, ""]
        for path, field in members:
            name = ".NAME" if is_mapping(field) else ""
            out.append(f"  --{'.'.join(path)}{name}  {_takes(field)}")
            said = " ".join((field.description or "").split())
            out += textwrap.wrap(said, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    out += ["", "The command itself", ""]
    out += [
        f"  --{name}  {text}" for name, text in SWITCHES.items() if name != "split" or "data" in config.model_fields
    ]
    return "\n".join(out)


def _sections(config: type[StageConfig]) -> dict[str, list[Leaf]]:
    """The settings under headings: the docstring of the class that first declares them, their group's, or the runtime
    ones."""
    owners: dict[str, type] = {}
    for owner in (owner for owner in config.__mro__ if issubclass(owner, Settings)):
        owners |= dict.fromkeys(getattr(owner, "__annotations__", {}), owner)
    titles = [_title(owner) for owner in config.__mro__ if issubclass(owner, StageConfig)]
    sections: dict[str, list[Leaf]] = {title: [] for title in titles}
    for path, field in leaves(config):
        group = words.group_of(config.model_fields[path[0]]) if len(path) > 1 else None
        title = RUNTIME if Runtime in markers(field) else _title(owners[path[0]])
        sections.setdefault(_title(group) if group else title, []).append((path, field))
    sections[RUNTIME] = sections.pop(RUNTIME, [])
    return {title: sorted(some, key=lambda leaf: not leaf[1].is_required()) for title, some in sections.items() if some}


def _title(owner: type) -> str:
    return (owner.__doc__ or owner.__name__).strip().splitlines()[0].rstrip(".")


def _takes(field: FieldInfo) -> str:
    if field.is_required():
        return f"{words.expected(field)}; required"
    return f"{words.expected(field)}; default {words.plain(field.get_default(call_default_factory=True))}"
