"""The `align` command.

Commands that need no tensors load no torch. A stage's own command line is `align STAGE …`, the same as `python -m
align.STAGE …`.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from align.ground import ranks
from align.ground.errors import AlignError, InputError
from align.ground.terminal import guarded, print_result, say
from align.store import Artifact, Store, Transfer

STAGES = {
    "pretrain": "a model from scratch, or more training on plain text",
    "sft": "fine-tune on demonstrations",
    "pairs": "sample a model's answers and have a judge order them",
    "reward": "train a reward model on preference pairs",
    "dpo": "train on preference pairs directly",
    "ppo": "train against rewards, with a value role",
    "grpo": "train against rewards, relative to a prompt's other answers",
    "rloo": "the same, each answer as one action",
    "reinforce_pp": "train against rewards, relative to the whole rollout",
    "merge": "merge adapters into a model of their own",
    "evaluate": "measure stages beside each other",
    "generate": "sample answers to a file of prompts",
    "chat": "talk to a model",
}
"""Commands with a module of their own, which reads the flags."""

HELP = f"""usage: align COMMAND …

LoRA alignment on one frozen base: pretrain, SFT, reward, DPO, PPO, GRPO, merge and evaluate, from one recipe.

recipes
  run RECIPE          run a recipe's stages that are not done yet

artifacts
  ls                  the named artifacts of the store
  show REF            one artifact: where it came from, what it cost, how to load it
  lineage REF         its ancestors as a tree
  diff A B            how two artifacts differ, from settings to files
  combine REF REF …   several runs of one thing, such as seeds: means and their intervals
  tag REF NAME        give an artifact a name; a taken name moves
  rm NAME …           take names away; their artifacts stay until gc
  gc                  say what no name reaches any more; --delete removes it
  verify              read the whole store and name what is damaged
  checkout REF DIR    copy its files into a folder
  push URL [REF …]    send artifacts, with all that they come from, to s3://…, file://… or another place
  pull URL [REF …]    fetch them from there
  import DIR          take in an adapter that PEFT saved
  locate DIR          tell the store where a base lies now

stages alone (also python -m align.STAGE)
{chr(10).join(f"  {name:<20}{text}" for name, text in STAGES.items())}

align COMMAND --help explains the rest. REF is a name, a digest, or the beginning of one. The store is --store,
else $ALIGN_STORE, else .align/ in the working folder. Exit codes: 0 done or skipped, 1 failed, 2 bad input, 75 stopped
and can go on."""


class Parser(argparse.ArgumentParser):
    """argparse whose errors are ours."""

    def error(self, message: str) -> NoReturn:
        raise InputError(f"{self.prog}: {message}\n{self.format_usage().strip()}")


def main() -> None:
    """The console script. Exits with 0, 1, 2 or 75."""
    guarded(lambda: dispatch(sys.argv[1:]))


def dispatch(argv: Sequence[str]) -> None:
    """Run one command line. Raises: AlignError."""
    command, rest = (argv[0], list(argv[1:])) if argv else ("--help", [])
    if command in ("-h", "--help", "help"):
        print(HELP)
    elif command == "--version":
        from importlib.metadata import version

        print(f"align {version('align-rlhf')}")
    elif command in STAGES:
        sys.argv = [f"align {command}", *rest]
        runpy.run_module(f"align.{command}", run_name="__main__", alter_sys=True)
    elif command in COMMANDS:
        make, body = COMMANDS[command]
        parser = Parser(
            prog=f"align {command}",
            description=body.__doc__,
        )
        parser.add_argument(
            "--store", metavar="DIR", help="the store; without it, $ALIGN_STORE, else .align/ in the working folder"
        )
        make(parser)
        body(parser.parse_intermixed_args(rest))
    else:
        near = difflib.get_close_matches(command, [*COMMANDS, *STAGES], 1, 0.6)
        raise InputError(
            f"align has no command {command!r}; "
            + (f"did you mean {near[0]}?" if near else "`align --help` lists them.")
        )


# ---- recipes ---------------------------------------------------------------------------------------------------------


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

    asked = memory.Question.asked(args.memory, args.device, args.dry_run)
    recipe = pipeline.load(args.recipe, args.set)
    store = Store(args.store) if args.store else pipeline.store_of(recipe)
    made = pipeline.run(recipe, store, from_=args.from_, until=args.until, dry_run=args.dry_run, asked=asked)
    if args.dry_run or not ranks.is_first():
        return
    costs = store.costs()

    def seconds(artifact: Artifact) -> float | None:
        return costs.get(artifact.digest, {}).get("seconds")

    rows = {f"{recipe.name}/{stage}": artifact for stage, artifact in made.items()}
    if args.json:
        text = _json(
            {name: {"digest": a.digest, "seconds": seconds(a), "metrics": a.metrics} for name, a in rows.items()}
        )
    else:
        width = max(map(len, rows))
        took = {name: seconds(artifact) for name, artifact in rows.items()}
        times = {name: "made elsewhere" if found is None else f"{found:8.1f} s" for name, found in took.items()}
        lines = [f"{name:<{width}}  {artifact.short}  {times[name]}" for name, artifact in rows.items()]
        name, last = list(rows.items())[-1]
        text = "\n".join([*lines, "", _report(store, last) if last.kind == "report" else f"align show {name}"])
    print_result(text, f"The artifacts are made: {', '.join(rows)}")


def _report(store: Store, report: Artifact) -> str:
    table = store.read(report, "table.txt").decode()
    return f"{table.rstrip()}\n\nreport: {store.folder(report) / 'report.html'}"


# ---- artifacts -------------------------------------------------------------------------------------------------------


def ref_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("ref", metavar="REF", help="a name, a digest, or the beginning of one")


def json_flag(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="for programs")


def show_flags(parser: argparse.ArgumentParser) -> None:
    ref_flags(parser)
    json_flag(parser)


def ls_flags(parser: argparse.ArgumentParser) -> None:
    json_flag(parser)
    parser.add_argument(
        "--size", action="store_true", help="also the bytes that a name alone needs, and those that others need too"
    )


def ls(args: argparse.Namespace) -> None:
    """The named artifacts of the store."""
    from align.report.lists import ls_rows, ls_table

    store = Store(args.store)
    print(_json(ls_rows(store, size=args.size)) if args.json else ls_table(store, size=args.size))
    if damages := store.damaged_refs():
        raise AlignError("\n".join(map(str, damages.values())))


def show(args: argparse.Namespace) -> None:
    """One artifact: where it came from, its settings, metrics and files, what it cost, and how to load it."""
    from align.report.text import show_text

    store = Store(args.store)
    if args.json:
        artifact = store.resolve(args.ref)
        print(_json({**artifact.manifest, "digest": artifact.digest, "cost": store.cost(artifact)}))
    else:
        print(show_text(store, args.ref))


def lineage(args: argparse.Namespace) -> None:
    """Where an artifact came from, as a tree."""
    from align.report.lists import lineage_json, lineage_text

    store = Store(args.store)
    print(_json(lineage_json(store, args.ref)) if args.json else lineage_text(store, args.ref))


def diff_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", metavar="A", help="a name, a digest, or the beginning of one")
    parser.add_argument("b", metavar="B", help="another")
    json_flag(parser)


def diff(args: argparse.Namespace) -> None:
    """How two artifacts differ: settings, data, base, text contract, parents, metrics, files and cost."""
    from align.report.diff import diff, diff_text

    store = Store(args.store)
    print(_json(diff(store, args.a, args.b)) if args.json else diff_text(store, args.a, args.b))


def combine_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "refs",
        metavar="REF",
        nargs="+",
        help="artifacts of one stage, such as the reports of a recipe under several seeds",
    )
    json_flag(parser)


def combine(args: argparse.Namespace) -> None:
    """Every figure of several runs: its mean, Student's 95 % interval over the runs, and what each gave."""
    from align.evaluation.combine import combine, combined_text

    store = Store(args.store)
    if not args.json:
        print(combined_text(store, args.refs))
        return
    found, _ = combine(store, args.refs)
    print(_json({name: dataclasses.asdict(figure) for name, figure in found.items()}))


def tag_flags(parser: argparse.ArgumentParser) -> None:
    ref_flags(parser)
    parser.add_argument("name", metavar="NAME", help="letters, digits, '.', '_' and '-', in parts separated by '/'")


def tag(args: argparse.Namespace) -> None:
    """Give an artifact a name. A taken name moves, and what it pointed at before is printed."""
    store = Store(args.store)
    with store.hold(args.ref) as hold:
        (artifact,) = hold.held.values()
        old = store.tag(args.name, artifact)
    print_result(line := f"{args.name} {artifact.digest}", f"The name is given: {line}")
    if old and old != artifact.digest:
        say(f"the name pointed at {old} before")


def rm_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", metavar="NAME", nargs="+", help="as `align ls` prints it")


def rm(args: argparse.Namespace) -> None:
    """Take names away. Artifacts stay until `align gc --delete`; what still needs them, and what would go then, is
    printed."""
    from align.report.lists import rm_text

    store = Store(args.store)
    unknown = [name for name in args.names if name not in store.pointers("refs")]
    if unknown:
        store.untag(unknown[0])  # says which names are near, before any is removed
    removed = {name: store.untag(name) for name in dict.fromkeys(args.names)}
    print_result(rm_text(store, removed), f"The names are removed: {', '.join(removed)}")


def gc_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--delete", action="store_true", help="remove it; without this, only say what would go")
    parser.add_argument(
        "--checkpoints", action="store_true", help="also give up what stopped runs and pulls could go on from"
    )
    json_flag(parser)


def gc(args: argparse.Namespace) -> None:
    """Say what no name reaches and no running work holds: artifacts, objects, answers, and what killed processes
    left."""
    from align.report.lists import gc_rows, gc_text

    store = _existing(args.store)
    garbage = store.collect(delete=args.delete, checkpoints=args.checkpoints)
    print(
        _json(gc_rows(garbage, deleted=args.delete)) if args.json else gc_text(garbage, store.path, deleted=args.delete)
    )


def _existing(folder: str | None) -> Store:
    """A store that is there: of one that is not, "all is well" would be no answer. Raises: InputError."""
    store = Store(folder)
    if not store.path.is_dir():
        raise InputError(f"there is no store at {store.path}. Name one (--store, $ALIGN_STORE).")
    return store


def verify(args: argparse.Namespace) -> None:
    """Read every byte of the store. Exits with 1 when something is damaged or missing, and says what to run again."""
    store = _existing(args.store)
    if damages := store.verify():
        raise AlignError("\n".join(map(str, damages)))
    print(f"{store.path}: {sum(1 for _ in store.artifacts())} artifacts, every byte is right.")


def checkout_flags(parser: argparse.ArgumentParser) -> None:
    ref_flags(parser)
    parser.add_argument("folder", metavar="DIR", help="absent or empty")


def checkout(args: argparse.Namespace) -> None:
    """Copy an artifact's files into a folder, and say how to load them with PEFT or transformers alone."""
    from align.exchange.transfer import checkout
    from align.report.code import load_lines

    store = Store(args.store)
    artifact = store.resolve(args.ref)
    checkout(artifact, args.folder, store, args.ref)
    say(f"{len(artifact.files)} files in {args.folder}")
    print("\n".join(load_lines(store, artifact, args.ref, args.folder)))


def remote_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="s3://bucket/folder, file:///folder, or another URL of fsspec")
    parser.add_argument("refs", metavar="REF", nargs="*", default=[], help="names or digests; without any, every name")
    parser.add_argument("--force", action="store_true", help="move names, whatever they point at now")
    json_flag(parser)


def push(args: argparse.Namespace) -> None:
    """Send artifacts, with all that they come from, to a remote. What is there already is not sent again."""
    store = Store(args.store)
    _transferred("sent", store.push(args.url, args.refs, force=args.force), args)


def pull(args: argparse.Namespace) -> None:
    """Fetch artifacts, with all that they come from, from a remote. They are verified before any of them is in the
    store."""
    store = Store(args.store)
    _transferred("fetched", store.pull(args.url, args.refs, force=args.force), args)


def _transferred(done: str, transfer: Transfer, args: argparse.Namespace) -> None:
    """What travelled, on stderr, and the names with their digests."""
    for name, old in transfer.moved.items():
        say(f"{name} pointed at {old[:12]} before")
    travelled = f"{transfer.files} files ({transfer.size:,} bytes) and {transfer.artifacts} manifests"
    say(f"{done} {travelled}; {transfer.kept} files were there already")
    lines = "\n".join(f"{name} {digest}" for name, digest in transfer.names.items())
    print_result(_json(dataclasses.asdict(transfer)) if args.json else lines, f"All is {done}.")


def import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help="a folder that PEFT saved: adapter_config.json and adapter_model.safetensors"
    )
    parser.add_argument(
        "--base", required=True, metavar="MODEL", help="the model it was trained on: a folder, an artifact or a hub id"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the base on the hub")
    parser.add_argument("--quantize", choices=["nf4", "int8"], help="the quantisation it was trained on")
    parser.add_argument(
        "--chat-template", metavar="FILE", help="the template it was trained with: a Jinja file, or `plain`"
    )
    parser.add_argument("--name", help="name of the artifact; without it, the folder's")


def import_(args: argparse.Namespace) -> None:
    """Take in a LoRA adapter that PEFT saved. It is loaded on its base, which proves that it fits, before anything is
    stored."""
    from align.exchange.transfer import import_adapter
    from align.recipe import Base

    base = Base(model=args.base, revision=args.revision, quantize=args.quantize)
    store = Store(args.store)
    artifact = import_adapter(args.folder, base, store, name=args.name, chat_template=args.chat_template)
    name = args.name or next(iter(store.names(artifact)))
    print_result(line := f"{name} {artifact.digest}", f"The artifact is made: {line}")
    say(f"next: align show {name}, or align chat {name}")


def locate_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", help="a model folder in the Hugging Face layout")


def locate(args: argparse.Namespace) -> None:
    """Tell the store where a base lies on this machine, after it was moved or when artifacts came from elsewhere."""
    from align.exchange.transfer import locate

    store = Store(args.store)
    found = locate(args.folder, store)
    print(f"{Path(args.folder).absolute()} is the base of {', '.join(store.label(a) for a in found)}.")


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


COMMANDS: dict[str, tuple[Callable[[argparse.ArgumentParser], None], Callable[[argparse.Namespace], None]]] = {
    "run": (run_flags, run),
    "ls": (ls_flags, ls),
    "show": (show_flags, show),
    "lineage": (show_flags, lineage),
    "diff": (diff_flags, diff),
    "combine": (combine_flags, combine),
    "tag": (tag_flags, tag),
    "rm": (rm_flags, rm),
    "gc": (gc_flags, gc),
    "verify": (lambda parser: None, verify),
    "checkout": (checkout_flags, checkout),
    "push": (remote_flags, push),
    "pull": (remote_flags, pull),
    "import": (import_flags, import_),
    "locate": (locate_flags, locate),
}
"""What each command reads, and what it does; its docstring is its help."""
