"""`align data …`: files of rows looked at, and shown as a model reads them; what makes others of them are stages."""

from __future__ import annotations

import argparse
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from align.cli import flags
from align.cli.flags import Command, to_json
from align.data.shapes.keys import KNOWN
from align.data.tools import findings, kinds
from align.data.tools.canonical import new_file
from align.ground.errors import InputError
from align.ground.progress import Task
from align.ground.terminal import SCREEN, say
from align.inputs.bases import find_base
from align.inputs.fit import find_data
from align.recipe import Base
from align.store import Store
from align.store.remote.address import secrets, without

if TYPE_CHECKING:
    from align.data.examples import Example
    from align.data.formats import Records
    from align.rendering.render import Renderer

SHOWN = 3
"""Records that are shown without --rows."""


# ---- what the commands read alike ------------------------------------------------------------------------------------


def rows(parser: argparse.ArgumentParser, bad_rows: str = "error") -> None:
    parser.add_argument(
        "--read_as",
        "--read-as",
        choices=[*kinds.KINDS],
        metavar="KIND",
        help=f"what the rows are: {', '.join(kinds.KINDS)}; without it, what most of them are",
    )
    parser.add_argument("--shape", metavar="NAME", help="the dialect that they are in; without it, what the keys say")
    how_to_read(parser, bad_rows)


def how_to_read(parser: argparse.ArgumentParser, bad_rows: str = "error") -> None:
    parser.add_argument(
        "--bad_rows", "--bad-rows", choices=("error", "drop"), default=bad_rows, help=f"without it, {bad_rows}"
    )
    parser.add_argument("--columns.KEY", metavar="NAME", dest="_", help="what the file calls the key, such as prompt")
    for key in sorted(KNOWN):
        parser.add_argument(f"--columns.{key}", dest=f"columns.{key}", help=argparse.SUPPRESS)


def base(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="MODEL", help="whose tokenizer and chat template to take")
    parser.add_argument("--chat_template", "--chat-template", metavar="FILE", help="plain, or a Jinja file")


def load(args: argparse.Namespace, file: str) -> tuple[str, Records[Any]]:
    """(kind, records) of a file, or of a data artifact."""
    path = find_data(Store(args.store), "FILE", file).path
    with Task(f"reading {path.name}"):
        records = kinds.ReadAs(args.read_as)(path, args.bad_rows, None, columns_of(args), args.shape)
    return kinds.kind_of(records[0]), records


def told(file: str) -> str:
    """A file's name as messages may have it: of a URL without its secrets."""
    return without(secrets(file), file)


def columns_of(args: argparse.Namespace) -> dict[str, str]:
    """What the file calls keys of ours."""
    given = {key.removeprefix("columns."): value for key, value in vars(args).items() if key.startswith("columns.")}
    return {key: value for key, value in given.items() if value}


def renderer_of(args: argparse.Namespace) -> tuple[Renderer, int]:
    """(what renders for the base, without a limit, the base's context)."""
    with Task("loading libraries"):
        from align.rendering.render import load_renderer

    found = find_base(Base(model=args.base), Store(args.store))
    special: Any = "keep"
    return load_renderer(found.path, args.chat_template, sys.maxsize, special_tokens=special), found.context


def rendered(renderer: Renderer, kind: str, records: Sequence[Any]) -> list[Example]:
    """Records as the stage that takes their kind has them rendered; of prompts nothing counts."""
    from align.data.examples import Example

    if kind == "prompts":
        return [Example((ids,), ([False] * len(ids),)) for ids in renderer.prompt_ids(records)]
    by_kind = {
        "pairs": renderer.preferences,
        **dict.fromkeys(("labelled", "steps"), renderer.labelled),
        "sft": renderer.conversations,
        "texts": renderer.texts,
    }
    made: list[Example] = by_kind[kind](records)  # type: ignore[operator]
    return made


# ---- the commands ----------------------------------------------------------------------------------------------------


def inspect_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file, folder, pattern, or data artifact")
    rows(parser, "drop")
    base(parser)
    flags.as_json(parser)


def inspect(args: argparse.Namespace) -> None:
    """What a file holds: its shape, lengths, turns, duplicates, scripts, garbled characters; with --base, tokens."""
    if args.chat_template and not args.base:
        raise InputError("--chat_template goes with --base MODEL, whose tokens are counted.")
    kind, records = load(args, args.file)
    found = [
        findings.Finding("rows", f"{records.rows:,}, read as {len(records):,} of {kind}", len(records)),
        findings.Finding("shape", records.told, records.shape),
        *findings.findings(records),
    ]
    if args.base:
        renderer, context = renderer_of(args)
        examples = rendered(renderer, kind, records)
        found.append(findings.sizes([max(map(len, e.sequences)) for e in examples], "tokens", context))
        counted = [sum(map(sum, e.supervised)) for e in examples]
        found.append(findings.sizes(counted, "tokens that count"))
    if args.json:
        print(to_json({f.name: f.value for f in found} | {"kind": kind, "left_out": dict(records.dropped)}))
        return
    width = max(len(f.name) for f in found)
    lines = [line for f in found for line in beside(f.name, f.text, width + 2)]
    if args.bad_rows == "drop" and records.dropped.examples:
        fate = "left out here; a stage refuses a file that has some, unless it is given --bad_rows drop"
        lines += beside("bad rows", fate, width + 2)
    print("\n".join([told(args.file), *lines]))


def beside(name: str, text: str, column: int) -> list[str]:
    """A finding behind its name; in a terminal within its width."""
    lines = text.split("\n")
    if sys.stdout.isatty():
        room = max(shutil.get_terminal_size().columns - column, 20)
        lines = [part for line in lines for part in textwrap.wrap(line, room, break_on_hyphens=False) or [""]]
    return [f"{name if i == 0 else '':<{column}}{line}" for i, line in enumerate(lines)]


def show_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file, folder, pattern, or data artifact")
    parser.add_argument("--mask", action="store_true", help="as it is rendered for --base, what counts marked")
    parser.add_argument("--rows", metavar="N", type=int, default=SHOWN, help=f"how many; without it, {SHOWN}")
    parser.add_argument("--html", metavar="OUT", help="write a page instead, with --mask")
    rows(parser)
    base(parser)


def show(args: argparse.Namespace) -> None:
    """The first records: as rows of ours, or, with --mask, as a model reads them, with what counts in colour."""
    from align.data.tools.canonical import as_row

    if args.rows < 1:
        raise InputError(f"--rows is {args.rows}; expected at least 1.")
    if args.mask != bool(args.base) or (args.html and not args.mask):
        raise InputError("--mask takes the model that renders, --base MODEL, and --html goes with --mask.")
    kind, records = load(args, args.file)
    some = records[: args.rows]
    if len(records) > len(some):
        say(f"the first {len(some):,} of {len(records):,} records; --rows shows more")
    if not args.mask:
        import json

        print("\n".join(json.dumps(as_row(record), ensure_ascii=False, default=str) for record in some))
        return
    from align.rendering.shown import example_as_text, in_terminal, page, titles_of

    renderer, _ = renderer_of(args)
    texts = [
        (record.where, [*zip(titles_of(record), example_as_text(renderer.tokenizer, example), strict=True)])
        for record in some
        for example in rendered(renderer, kind, [record])
    ]
    if args.html:
        out = new_file(args.html)
        out.write_text(page(told(args.file), texts), encoding="utf-8")
        say(f"{out}: {len(texts):,} records")
        return
    for where, several in texts:
        print(f"--- {where}")
        for called, text in several:
            if called:
                print(f"{called}:")
            show_marked(in_terminal(text, sys.stdout.isatty()))


def show_marked(text: str) -> None:
    """Colours are ours: what the text itself would have a terminal do is escaped already."""
    stream = getattr(sys.stdout, "stream", sys.stdout)
    with SCREEN.lock:
        SCREEN.wipe()
        stream.write(text + "\n")
        stream.flush()


COMMANDS = {"data inspect": Command(inspect_flags, inspect), "data show": Command(show_flags, show)}
