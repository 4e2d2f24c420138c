"""`align data clean` and `align data decontaminate`: rows that stay, the originals of all others, and a report."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from align.cleaning.settings import Cleaning, Decontamination
from align.cli import data
from align.cli.flags import Command
from align.ground.errors import InputError
from align.ground.terminal import print_result
from align.inputs.fit import find_data
from align.recipe.fields import is_switch, members
from align.store import Store

if TYPE_CHECKING:
    from align.cleaning.tally import Cleaned


class RowWork(Protocol):
    """What is done to rows."""

    unseen: Mapping[str, str]
    """Columns that were not met before the rows are looked at."""

    def all(self, rows: Iterable[Cleaned]) -> list[Cleaned]: ...


def files(parser: argparse.ArgumentParser, settings: type[BaseModel]) -> None:
    """Flags for rows in and out, and one for each setting."""
    parser.add_argument("files", metavar="FILE", nargs="+", help="files, folders, patterns, or data artifacts")
    parser.add_argument(
        "--out", metavar="OUT", required=True, help="a new .jsonl; beside it OUT.aside.jsonl and OUT.report.json"
    )
    data.how_to_read(parser)
    for name, field in settings.model_fields.items():
        flags = sorted({f"--{name}", f"--{name.replace('_', '-')}"}, reverse=True)
        parser.add_argument(*flags, dest=f"set.{name}", metavar=_metavar(field), help=_help(field))


def _metavar(field: FieldInfo) -> str:
    if is_switch(field):
        return "yes|no"
    return "A,B" if get_origin(members(field)[0]) is tuple else "N"


def _help(field: FieldInfo) -> str:
    default = field.default
    without = f" (without it, {_spelt(default)})" if default not in ((), None) else ""
    named = [inner for kind in members(field) for inner in get_args(kind) if get_origin(inner) is Literal]
    choices = [choice for names in named for choice in get_args(names)]
    some = f" Some of {', '.join(choices)}." if choices else ""
    return f"{' '.join((field.description or '').split())}{some}{without}".replace("%", "%%")


def _spelt(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


def _value(field: FieldInfo, text: str) -> object:
    kinds = members(field)
    if is_switch(field):
        return {"yes": True, "no": False, "true": True, "false": False}.get(text.lower(), text)
    if get_origin(kinds[0]) is tuple:
        return () if text == "none" else tuple(filter(None, map(str.strip, text.split(",")))) or text
    if type(None) in kinds and text == "none":
        return None
    try:
        return int(text) if int in kinds else float(text)
    except ValueError:
        return text


def settings_of(args: argparse.Namespace, settings: type[BaseModel]) -> BaseModel:
    """The settings that a command line gives. Raises: InputError with a line for each that cannot be used."""
    given = {name: getattr(args, f"set.{name}") for name in settings.model_fields}
    fields = settings.model_fields
    try:
        return settings(**{name: _value(fields[name], text) for name, text in given.items() if text is not None})
    except ValidationError as error:
        lines = [f"--{e['loc'][0]} {given[str(e['loc'][0])]}: {e['msg']}." for e in error.errors()]
        raise InputError("\n".join(lines)) from error


def through(
    args: argparse.Namespace, settings: BaseModel, more: dict[str, object], make: Callable[[], RowWork]
) -> None:
    """Rows read, worked on, and written with what was done."""
    from align.cleaning.files import cleaned_rows, new_outs, write

    data.new_rows(args.out)
    outs = new_outs(args.out)
    found = [find_data(Store(args.store), "FILE", file) for file in args.files]
    work = make()
    rows = cleaned_rows([one.path for one in found], args.bad_rows, work.all)
    inputs = [{"file": one.source or file, "sha256": one.digest} for file, one in zip(args.files, found, strict=True)]
    said = {"inputs": inputs, **more, "settings": settings.model_dump(mode="json")}
    tally = write(outs, rows, said, data.columns_of(args), work.unseen)
    head = f"{outs.rows}: {tally.kept:,} of {tally.rows:,} rows"
    print_result("\n".join([head, *tally.lines(), f"originals in {outs.aside}, figures in {outs.report}"]), "")


def clean_flags(parser: argparse.ArgumentParser) -> None:
    files(parser, Cleaning)


def clean(args: argparse.Namespace) -> None:
    """Repair text, put placeholders in place of private data, and remove bad rows and duplicates; what is removed or
    changed is counted by its reason, and its original kept aside."""
    from align.cleaning.clean import Cleaner

    settings: Any = settings_of(args, Cleaning)
    through(args, settings, {}, lambda: Cleaner(settings, data.columns_of(args)))


def decontaminate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--against", metavar="EVAL", nargs="+", required=True, help="files of the questions that are measured with"
    )
    files(parser, Decontamination)


def decontaminate(args: argparse.Namespace) -> None:
    """Remove rows that hold a question of evaluation files, verbatim or edited."""
    from align.cleaning.contamination import Decontaminator

    settings: Any = settings_of(args, Decontamination)
    found = [find_data(Store(args.store), "--against", file) for file in args.against]
    against = [
        {"file": one.source or file, "sha256": one.digest} for file, one in zip(args.against, found, strict=True)
    ]
    paths = [Path(one.path) for one in found]
    through(args, settings, {"against": against}, lambda: Decontaminator(settings, data.columns_of(args), paths))


COMMANDS = {
    "data clean": Command(clean_flags, clean),
    "data decontaminate": Command(decontaminate_flags, decontaminate),
}
"""What `align data` removes from files."""
