"""`align run` and `align sweep`: a recipe's stages that are not done yet, once or for each of several values."""

from __future__ import annotations

import argparse
import fnmatch
import re
from contextlib import nullcontext
from typing import TYPE_CHECKING

from align.cli.flags import Command, to_json
from align.ground import ranks
from align.ground.errors import InputError
from align.ground.leaving import Unwritable
from align.ground.terminal import print_result, prose, say
from align.recipe import Recipe
from align.store import Artifact, Store

if TYPE_CHECKING:
    from align.pipeline import Unfinished


def run_flags(parser: argparse.ArgumentParser) -> None:
    _flags(parser, "KEY=VALUE", "change a setting, as in stages.dpo.beta=0.2")


def sweep_flags(parser: argparse.ArgumentParser) -> None:
    _flags(
        parser,
        "KEY=VALUE,VALUE,…",
        "run once for each of several values, as in stages.dpo.beta=0.05,0.1,0.2 or seed=0,1,2; several flags are the "
        "product; one value changes the setting",
    )


def _flags(parser: argparse.ArgumentParser, metavar: str, setting: str) -> None:
    parser.add_argument("recipe", help="a YAML file")
    parser.add_argument(
        "--from", dest="from_", metavar="STAGE", help="begin here, on what earlier stages made, as it is in the store"
    )
    parser.add_argument("--until", metavar="STAGE", help="end here")
    parser.add_argument("--dry-run", action="store_true", help="print what would run, what would be skipped, and why")
    parser.add_argument(
        "--memory", metavar="SIZE", help="with --dry-run: a budget such as 24GiB, and what to change to fit into it"
    )
    parser.add_argument(
        "--device", metavar="cpu|cuda", help="with --dry-run: plan the memory of that; without it, of what is here"
    )
    parser.add_argument("--set", action="append", default=[], metavar=metavar, help=setting)
    parser.add_argument(
        "--json",
        action="store_true",
        help="print name, digest, seconds and metrics of every stage as JSON; with --dry-run, what would become of it",
    )


def run(args: argparse.Namespace) -> None:
    """Run a recipe's stages that are not done yet, in order. The results are named RECIPE/STAGE."""
    from align import pipeline

    ranks.follow_launcher()
    _run(args, pipeline.load(args.recipe, args.set, store=store_given(args)))


def sweep(args: argparse.Namespace) -> None:
    """Run a recipe for each of several values. A setting of a stage makes variants of it and of what builds on it
    (RECIPE/dpo.beta-0.1), one beside `stages` a recipe for each value (RECIPE/seed-0/dpo); what no value reaches is
    shared, and what is done is skipped."""
    from align import pipeline

    recipe = pipeline.load(args.recipe, sweeps=args.set, store=store_given(args))
    if not recipe.is_swept:
        raise InputError(
            f"{args.recipe}: nothing is swept. Give several values, as in --set stages.STAGE.SETTING=1,2, or "
            "{sweep: [1, 2]} in the recipe."
        )
    _run(args, recipe)


def store_given(args: argparse.Namespace) -> Store | None:
    """The store of --store."""
    return Store(args.store) if args.store else None


def _run(args: argparse.Namespace, recipe: Recipe) -> None:
    from align import memory, pipeline

    asked = memory.Inquiry.asked(args.memory, args.device, args.dry_run)
    store = store_given(args) or pipeline.store_of(recipe)
    how = {"dry_run": args.dry_run, "as_json": args.json}
    unfinished: pipeline.Unfinished | None = None
    with prose() if args.dry_run and not args.json else nullcontext():
        try:
            made = pipeline.run(recipe, store, from_=args.from_, until=args.until, asked=asked, **how)
        except pipeline.Unfinished as error:
            unfinished, made = error, dict(error.made)
    if not args.dry_run and ranks.is_first() and (made or args.json):
        try:
            _print(recipe, made, store, unfinished, as_json=args.json)
        except Unwritable as error:
            if not unfinished:
                raise
            say(str(error))  # beside what failed
    if unfinished:
        raise unfinished


def _print(
    recipe: Recipe, made: dict[str, Artifact], store: Store, unfinished: Unfinished | None, *, as_json: bool
) -> None:
    """What was made; for programs also what was not."""
    rows = {f"{recipe.name}/{stage}": artifact for stage, artifact in made.items()}
    costs = store.costs()
    seconds = {name: costs.get(artifact.digest, {}).get("seconds") for name, artifact in rows.items()}
    if as_json:
        lacking = {"failed": unfinished.failed, "left_out": unfinished.left_out} if unfinished else {}
        more = {f"{recipe.name}/{run}": {key: why} for key, runs in lacking.items() for run, why in runs.items()}
        text = _for_programs(rows, seconds, more)
    else:
        text = _table(rows, seconds, store)
        if recipe.is_swept or list(made.values())[-1].kind != "report":
            text += f"\n\nnext: {_next(recipe, list(made), store)}{store.flag}"
    print_result(text, f"The artifacts are made: {', '.join(rows)}")


def _next(recipe: Recipe, names: list[str], store: Store) -> str:
    """How to look at what a recipe made: the last thing, or all runs of a stage, and no others, beside each other."""
    from align.memory.text import patterns
    from align.report.compare import RUNS_LIMIT

    several = [entry for entry in (recipe.stages[name] for name in names) if entry.name != entry.stage]
    last = (several or [recipe.stages[names[-1]]])[-1]
    runs = [entry.name for entry in several if entry.stage == last.stage]
    if len(runs) < 2:
        return f"align show {recipe.name}/{last.name}"
    there, titles = store.pointers("refs"), [f"{recipe.name}/{run}" for run in runs]
    shapes = [f"{recipe.name}/{shape}" for shape in (f"{last.stage}.*", f"*/{last.stage}", f"*/{last.stage}.*")]
    exact = [shape for shape in shapes if {*fnmatch.filter(there, shape)} == {*titles}]
    seeds = last.kind == "evaluate" and all(re.fullmatch(rf"seed-\d+/{re.escape(last.stage)}", run) for run in runs)
    verb = "combine" if seeds else "compare" if len(runs) <= RUNS_LIMIT else "ls"
    return f"align {verb} {' '.join(map(repr, exact[:1] or patterns(titles, there)))}"


def _for_programs(rows: dict[str, Artifact], seconds: dict[str, float | None], more: dict[str, dict[str, str]]) -> str:
    found = {name: {"digest": a.digest, "seconds": seconds[name], "metrics": a.metrics} for name, a in rows.items()}
    return to_json(found | more)


def _table(rows: dict[str, Artifact], seconds: dict[str, float | None], store: Store) -> str:
    """A line a stage, and below them the report that the last one made."""
    from align.report.text import result_text

    width = max(map(len, rows))
    lines = []
    for name, artifact in rows.items():
        took = seconds[name]
        time = "made elsewhere" if took is None else f"{took:8.1f} s"
        lines.append(f"{name:<{width}}  {artifact.short}  {time}")
    last = list(rows.values())[-1]
    if last.kind != "report":
        return "\n".join(lines)
    reports = [name for name, artifact in rows.items() if artifact.kind == "report"]
    whose = f", the last of {len(reports)} reports" if reports[1:] else ""
    return "\n".join([*lines, "", f"{reports[-1]}{whose}:", "", result_text(store, last)])


COMMANDS = {"run": Command(run_flags, run), "sweep": Command(sweep_flags, sweep)}
