"""Commands that bring artifacts and bases in from elsewhere and take them there."""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import sys

from align.cli import flags
from align.cli.flags import Command, to_json
from align.exchange import hub
from align.ground.errors import InputError
from align.ground.paths import plain
from align.ground.terminal import counted, print_result, prose, say, wrapped
from align.store import Store, Transfer


def checkout_flags(parser: argparse.ArgumentParser) -> None:
    flags.ref(parser)
    parser.add_argument("folder", metavar="DIR", help="absent or empty")


def checkout(args: argparse.Namespace) -> None:
    """Copy an artifact's files into a folder, and say how to load them with PEFT or transformers alone."""
    from align.exchange.transfer import checkout
    from align.report.code import load_lines

    store = Store(args.store)
    artifact = store.resolve(args.ref)
    checkout(artifact, args.folder, store, args.ref)
    say(f"{counted(len(artifact.files), 'file')} in {args.folder}")
    if lines := load_lines(store, artifact, args.ref, args.folder):
        print("\n".join(lines))
    elif artifact.kind == "data":
        say(f"next: align data inspect {shlex.quote(args.folder)}")


def remote_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("url", metavar="URL", help="s3://bucket/folder, file:///folder, or another URL of fsspec")
    parser.add_argument(
        "refs",
        metavar="REF",
        nargs="*",
        default=[],
        help="names or digests; also patterns in quotes, 'quickstart/dpo.*'; without any, every name",
    )
    parser.add_argument("--force", action="store_true", help="move names, whatever they point at now")
    flags.as_json(parser)


def push_flags(parser: argparse.ArgumentParser) -> None:
    remote_flags(parser)
    parser.add_argument("--public", action="store_true", help="to hf://user/name: let everybody read it")


def push(args: argparse.Namespace) -> None:
    """Send artifacts, with parents and bases that the store holds, to a remote; of data that they were trained on goes
    the digest alone, and a data artifact only where it is named. What is there already is not sent again. To
    hf://user/name goes one of them, a model or an adapter with its card, as a private repository of the hub."""
    from align.report.lists import matching

    store = Store(args.store)
    if args.url.startswith(hub.SCHEME):
        return push_to_hub(args, store)
    if args.public:
        raise InputError("--public is for hf://user/name; who may read another remote is settled there.")
    if hub.REPOSITORY.fullmatch(args.url) and not os.path.exists(args.url):
        raise InputError(
            f"{args.url} could be a model repository of the hub or a new folder here. Write {hub.SCHEME}{args.url} for "
            f"the one, ./{args.url} for the other."
        )
    return _transferred("sent", store.push(args.url, matching(store, args.refs), force=args.force), args)


def push_to_hub(args: argparse.Namespace, store: Store) -> None:
    """One artifact into a repository of the hub. Raises: InputError for none or several."""
    from align.report.lists import matching

    repo, refs = hub.repository(args.url), matching(store, args.refs)
    if args.force or len(refs) != 1:
        wrong = "--force moves the names of a store" if args.force else f"{len(refs)} refs were given"
        raise InputError(f"{args.url}: a repository of the hub holds one artifact; {wrong}. Name one REF.")
    artifact = store.resolve(refs[0])
    address = hub.push(store, artifact, store.label(artifact), repo, public=args.public)
    found = {"digest": artifact.digest, "repository": repo, "commit": address}
    print_result(to_json(found) if args.json else address, "All is sent.")


def pull(args: argparse.Namespace) -> None:
    """Fetch artifacts, with parents and bases that it holds, from a remote. They are verified before any of them is in
    the store."""
    if args.url.startswith(hub.SCHEME):
        name = hub.repository(args.url)
        raise InputError(
            f"{args.url}: a repository of the hub is no store. A model there is a base (--base {name}); an adapter "
            f"comes in by `hf download {name} --local-dir DIR` and `align import DIR --base MODEL`."
        )
    store = Store(args.store)
    _transferred("fetched", store.pull(args.url, args.refs, force=args.force), args)


def _transferred(done: str, transfer: Transfer, args: argparse.Namespace) -> None:
    """What travelled, on stderr, and the names with their digests."""
    for name, old in transfer.moved.items():
        say(f"{name} pointed at {old[:12]} before")
    travelled = f"{counted(transfer.files, 'file')} ({transfer.size:,} bytes)"
    there = "1 file was" if transfer.kept == 1 else f"{transfer.kept:,} files were"
    say(f"{done} {travelled} and {counted(transfer.artifacts, 'manifest')}; {there} there already")
    lines = "\n".join(f"{name} {digest}" for name, digest in transfer.names.items())
    text = to_json(dataclasses.asdict(transfer)) if args.json else wrapped(lines, sys.stdout)
    print_result(text, f"All is {done}.")


def import_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder", metavar="DIR", help="a folder that PEFT saved: adapter_config.json and adapter_model.safetensors"
    )
    parser.add_argument(
        "--base", metavar="MODEL", help="the model it was trained on: a folder, an artifact or a hub id"
    )
    parser.add_argument("--revision", help="branch, tag or commit of the base on the hub")
    parser.add_argument("--quantize", choices=["nf4", "int8"], help="the quantisation it was trained on")
    parser.add_argument(
        "--chat-template", metavar="FILE", help="the template it was trained with: a file, a name in TRL, or `plain`"
    )
    parser.add_argument("--name", help="name of the artifact; without it, the folder's")


def import_(args: argparse.Namespace) -> None:
    """Take in a LoRA adapter that PEFT saved. It is loaded on its base, which proves that it fits, before anything is
    stored."""
    from align.exchange.transfer import import_adapter
    from align.recipe import Base

    if args.base is None:
        raise InputError(
            f"import: --base is missing: align import {args.folder} --base MODEL, the model that the adapter was "
            "trained on, which its adapter_config.json names (base_model_name_or_path)."
        )

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
    with prose():
        print(f"{plain(args.folder)} is the base of {', '.join(sorted(map(store.label, found)))}.")


COMMANDS = {
    "checkout": Command(checkout_flags, checkout),
    "push": Command(push_flags, push),
    "pull": Command(remote_flags, pull),
    "import": Command(import_flags, import_),
    "locate": Command(locate_flags, locate),
}
