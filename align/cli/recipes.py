"""`align run`: a recipe's stages that are not done yet."""

from __future__ import annotations

import argparse

from align.cli.flags import Command, to_json
from align.ground import ranks
from align.ground.terminal import print_result
from align.store import Artifact, Store


def run_flags(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="change a setting, as in stages.dpo.beta=0.2"
    )
    parser.add_argument(
        "--json", action="store_true", help="print name, digest, seconds and metrics of every stage as JSON"
    )


def run(args: argparse.Namespace) -> None:
    """Run a recipe's stages that are not done yet, in order. The results are named RECIPE/STAGE."""
    from align import memory, pipeline

    asked = memory.Inquiry.asked(args.memory, args.device, args.dry_run)
    recipe = pipeline.load(args.recipe, args.set)
    store = Store(args.store) if args.store else pipeline.store_of(recipe)
    made = pipeline.run(recipe, store, from_=args.from_, until=args.until, dry_run=args.dry_run, asked=asked)
    if args.dry_run or not ranks.is_first():
        return
    rows = {f"{recipe.name}/{stage}": artifact for stage, artifact in made.items()}
    costs = store.costs()
    seconds = {name: costs.get(artifact.digest, {}).get("seconds") for name, artifact in rows.items()}
    text = _for_programs(rows, seconds) if args.json else _table(rows, seconds, store)
    print_result(text, f"The artifacts are made: {', '.join(rows)}")


def _for_programs(rows: dict[str, Artifact], seconds: dict[str, float | None]) -> str:
    found = {name: {"digest": a.digest, "seconds": seconds[name], "metrics": a.metrics} for name, a in rows.items()}
    return to_json(found)


def _table(rows: dict[str, Artifact], seconds: dict[str, float | None], store: Store) -> str:
    """A line a stage, and below them the report that the last one made, or how to look at what it made."""
    from align.report.text import result_text

    width = max(map(len, rows))
    lines = []
    for name, artifact in rows.items():
        took = seconds[name]
        time = "made elsewhere" if took is None else f"{took:8.1f} s"
        lines.append(f"{name:<{width}}  {artifact.short}  {time}")
    name, last = list(rows.items())[-1]
    return "\n".join([*lines, "", result_text(store, last) if last.kind == "report" else f"align show {name}"])


COMMANDS = {"run": Command(run_flags, run)}
