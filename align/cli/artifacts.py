"""Commands that look at artifacts of a store, name them and clear them away."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import sys

from align.cli import flags
from align.cli.flags import Command, to_json
from align.ground.errors import AlignError, InputError
from align.ground.terminal import counted, print_result, prose, say, wrapped
from align.store import Store


def show_flags(parser: argparse.ArgumentParser) -> None:
    flags.ref(parser)
    flags.as_json(parser)


def one_flags(parser: argparse.ArgumentParser) -> None:
    show_flags(parser)
    parser.add_argument(
        "--settings", action="store_true", help="only what --config of its stage takes, to run it again or otherwise"
    )


def ls_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="*", default=[], help="only these; also patterns in quotes, 'quickstart/dpo.*'"
    )
    parser.add_argument(
        "--show",
        metavar="COLUMN,…",
        help="these columns: settings, figures, roles of parents, costs, as in beta,rewards/accuracies,parent,seconds; "
        "or kind, stage, digest, size, finished, base; or what a report measured: gold, or quickstart/report.gold",
    )
    parser.add_argument("--sort", metavar="COLUMN", help="in the order of this column, which need not be shown")
    parser.add_argument("--reverse", action="store_true", help="with --sort: the largest first")
    flags.as_json(parser)
    parser.add_argument(
        "--size", action="store_true", help="also the bytes that a name alone needs, and those that others need too"
    )


def ls(args: argparse.Namespace) -> None:
    """The named artifacts of the store."""
    from align.report.columns import Column, shown_table, with_columns
    from align.report.lists import ls_rows, ls_table, named

    if args.size and args.show:
        raise InputError("--size shows columns of its own; give it or --show.")
    if args.reverse and not args.sort:
        raise InputError("--reverse turns the order of --sort round; name a column: --sort beta --reverse.")
    store = Store(args.store)
    empty = store.path.is_dir() and not any(store.path.iterdir())
    if (args.store or os.environ.get("ALIGN_STORE")) and not empty:
        _existing(args.store)  # or it is mistyped, where the usual one is not made yet
    if not (store.exists() or args.names or args.json):
        begins = "It begins with the first stage that runs: `align --help` shows one."
        return print(wrapped(f"There is no store at {store.path} yet. {begins}", sys.stdout))
    rows = ls_rows(store, named(store, args.names), size=args.size)
    show = [column.strip() for column in (args.show or "").split(",") if column.strip()]
    shown: list[Column] = []
    if rows and (show or args.sort):
        rows, shown = with_columns(store, rows, show, args.sort, reverse=args.reverse)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if args.json:
        print(to_json(rows))
    else:
        print(shown_table(rows, shown, width) if shown else ls_table(store, rows, width, size=args.size))
    if damages := store.damaged_refs():
        raise AlignError("\n".join(map(str, damages.values())))


def show(args: argparse.Namespace) -> None:
    """One artifact: where it came from, its settings, metrics and files, what it cost, and how to load it."""
    from align.report.text import show_text

    store = Store(args.store)
    if args.settings:
        from align.cli.given_back import given_back

        artifact = store.resolve(args.ref)
        found = given_back(store, artifact)
        print(to_json(found.settings) if args.json else found.yaml(args.ref))
    elif args.json:
        artifact = store.resolve(args.ref)
        print(to_json({**artifact.manifest, "digest": artifact.digest, "cost": store.cost(artifact)}))
    else:
        about, blank, code = show_text(store, args.ref).partition("\n\n")
        with prose():
            print(about)
        if blank:
            print(f"\n{code}")


def lineage(args: argparse.Namespace) -> None:
    """Where an artifact came from, as a tree."""
    from align.report.lists import lineage_json, lineage_text

    store = Store(args.store)
    print(to_json(lineage_json(store, args.ref)) if args.json else lineage_text(store, args.ref))


def diff_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a name, a digest, or the beginning of one")
    parser.add_argument("b", metavar="B", help="another")
    flags.as_json(parser)


def diff(args: argparse.Namespace) -> None:
    """How two artifacts differ: settings, data, base, text contract, parents, metrics, files and cost."""
    from align.report.diff import diff, diff_text

    store = Store(args.store)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print(to_json(diff(store, args.a, args.b)) if args.json else diff_text(store, args.a, args.b, width))


def compare_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "refs", metavar="REF", nargs="+", help="names, digests, or patterns such as 'quickstart/dpo.*', in quotes"
    )
    parser.add_argument("--html", metavar="FILE", help="also a page of its own, with all curves over each other")
    flags.as_json(parser)


def compare(args: argparse.Namespace) -> None:
    """Runs beside each other: the settings that differ, figures with their intervals, what each cost, and their curves.
    A figure is marked the best only where its interval lies apart from all others."""
    from align.report.compare import as_json, compare
    from align.stage import catalogue

    found = compare(Store(args.store), args.refs, catalogue.defaults)
    if args.html:
        from align.generate import write_out
        from align.report.compare_page import compared_page

        write_out(args.html, compared_page(found), "--html")
        say(f"The page is written: {args.html}")
    if args.json:
        print(to_json(as_json(found)))
    else:
        from align.report.compare_text import compared_text

        print(compared_text(found, shutil.get_terminal_size().columns, args.html))


def combine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "refs",
        metavar="REF",
        nargs="+",
        help="artifacts of one stage, such as the reports of a recipe under several seeds: 'quickstart/*/report'",
    )
    flags.as_json(parser)


def combine(args: argparse.Namespace) -> None:
    """Every figure of several runs: its mean, Student's 95 % interval over three runs or more, and what each gave."""
    from align.evaluation.combine import combine, combined_text
    from align.evaluation.unlike import unlike
    from align.report.lists import matching

    store = Store(args.store)
    refs = matching(store, args.refs)
    found, others = combine(store, refs)
    notes = unlike(store, [store.resolve(ref) for ref in refs])
    for note in notes:
        say(note)
    figures = {name: dataclasses.asdict(figure) for name, figure in found.items()}
    if args.json:
        print(to_json({"runs": refs, "figures": figures, "not_of_every_run": others, "notes": notes}))
    else:
        print(combined_text(found, others, refs, shutil.get_terminal_size().columns))


def tag_flags(parser: argparse.ArgumentParser) -> None:
    flags.ref(parser)
    parser.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-', in parts separated by '/'")


def tag(args: argparse.Namespace) -> None:
    """Give an artifact a name. A taken name moves, and what it pointed at before is printed."""
    store = Store(args.store)
    with store.hold(args.ref) as hold:
        (artifact,) = hold.held.values()
        old = store.tag(args.name, artifact)
    if old and old != artifact.digest:
        say(f"the name pointed at {old} before")
    print_result(line := f"{args.name} {artifact.digest}", f"The name is given: {line}")


def rm_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", metavar="NAME", nargs="+", help="as `align ls` prints it; also patterns in quotes, 'quickstart/dpo.*'"
    )
    parser.add_argument(
        "--delete", action="store_true", help="with a pattern: do it; without this, only list the names"
    )


def rm(args: argparse.Namespace) -> None:
    """Take names away; of a pattern, list them. Artifacts stay until `align gc --delete`; what still needs them, and
    what would go then, is printed."""
    from align.report.lists import ls_rows, ls_table, matching, rm_text
    from align.store.remote.names import is_pattern

    store = Store(args.store)
    names = list(dict.fromkeys(matching(store, args.names)))
    unknown = [name for name in names if name not in store.pointers("refs")]
    if unknown:
        store.untag(unknown[0])  # says which names are near, before any is removed
    if any(map(is_pattern, args.names)) and not args.delete:
        print(
            ls_table(store, ls_rows(store, names), shutil.get_terminal_size().columns if sys.stdout.isatty() else None)
        )
        return say(f"Nothing is removed yet: --delete takes {'these names' if len(names) > 1 else 'this name'} away.")
    removed = {name: store.untag(name) for name in names}
    print_result(wrapped(rm_text(store, removed), sys.stdout), f"The names are removed: {', '.join(removed)}")


def gc_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delete", action="store_true", help="remove it; without this, only say what would go")
    parser.add_argument(
        "--checkpoints", action="store_true", help="also give up what stopped runs and pulls could go on from"
    )
    flags.as_json(parser)


def gc(args: argparse.Namespace) -> None:
    """Say what no name reaches and no running work holds: artifacts, objects, answers, and what killed processes
    left."""
    from align.report.lists import gc_rows, gc_text

    store = _existing(args.store)
    garbage = store.collect(delete=args.delete, checkpoints=args.checkpoints)
    if args.json:
        print(to_json(gc_rows(garbage, deleted=args.delete)))
    else:
        with prose():
            print(gc_text(garbage, store.path, deleted=args.delete))


def _existing(folder: str | None) -> Store:
    """A store that is there: of one that is not, "all is well" would be no answer. Raises: InputError."""
    store = Store(folder)
    if not store.exists():
        raise InputError(f"there is no store at {store.path}. Name one (--store, $ALIGN_STORE).")
    return store


def verify(args: argparse.Namespace) -> None:
    """Read every byte of the store. Exits with 1 when something is damaged or missing, and says what to run again."""
    store = _existing(args.store)
    if damages := store.verify():
        raise AlignError("\n".join(map(str, damages)))
    with prose():
        print(f"{store.path}: {counted(sum(1 for _ in store.artifacts()), 'artifact')}, every byte is right.")


COMMANDS = {
    "ls": Command(ls_flags, ls),
    "show": Command(one_flags, show),
    "lineage": Command(show_flags, lineage),
    "diff": Command(diff_flags, diff),
    "compare": Command(compare_flags, compare),
    "combine": Command(combine_flags, combine),
    "tag": Command(tag_flags, tag),
    "rm": Command(rm_flags, rm),
    "gc": Command(gc_flags, gc),
    "verify": Command(flags.none, verify),
}
