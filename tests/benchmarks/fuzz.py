"""Manifests and recipes, broken at random: only InputError and AlignError may come of them, and nothing is written.

    python -m tests.benchmarks.fuzz --minutes 10 [--seed 0]

Valid seeds are mutated: bytes flipped, cut, repeated and spliced; JSON values replaced by others of every kind, keys
lost, doubled and swapped; lines of YAML moved, indented and anchored. Prints how many cases were tried and what became
of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from align import pipeline
from align.ground.errors import AlignError
from align.store import Artifact, canonical_json
from align.store.remote.contracts import check_contracts

ROOT = Path(__file__).parents[2]
ENTRY = {"sha256": "a" * 64, "size": 3}
FILES = (
    "adapters/0/adapter_config.json",
    "adapters/0/adapter_model.safetensors",
    "tokenizer/tokenizer.json",
    "history.jsonl",
)
IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
MANIFEST = {
    "format": 1, "kind": "adapter", "stage": "sft", "version": 1,
    "config": {"adapter": {"rank": 4, "targets": ["q", "v"]}, "seed": 0},
    "parents": {"parent": "b" * 64}, "base": {"model": "tiny", "revision": None, "digest": "c" * 64, "quantize": "nf4"},
    "text": {"tokenizer": "1" * 64, "chat_template": "2" * 64, "stop_ids": [1]} | dict.fromkeys(IDS, 1),
    "data": {"data": "d" * 64}, "metrics": {"loss": 1.5, "eval/loss_ci95": [1, 2.5]},
    "files": dict.fromkeys(FILES, ENTRY),
}  # fmt: skip
PIECES = [
    b"\x00",
    b"\xff",
    b"\n",
    b"  ",
    b"\t",
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b"\\",
    b",",
    b":",
    b"#",
    b"=",
    b"_",
    b"stages:",
    b"name:",
    b"- ",
    b"&a ",
    b"*a",
    b"<<: *a\n",
    b"? ",
    b"| \n",
    b"> \n",
    b"---\n",
    b"...\n",
    b"%YAML 1.1\n",
    b"!!binary ",
    b"!!set {a, b}",
    b"!!python/object:os.system ",
    b"!!omap [a: 1]",
    b"!!timestamp x",
    b"!!int abc",
    b"!!float x",
    b"true",
    b"null",
    b"~",
    b"1_000",
    b"NaN",
    b"1e999",
    b"-0",
    b"0x",
    b"0b",
    b"0o9",
    b"2026-01-01",
    b"2026-13-45",
    b"12:30:45",
    b"9" * 5000,
    b"[" * 2000,
    b"{a: " * 300,
    b"\\ud800",
    b"\xe2\x80\xae",
    b"\xc3\xa4",
]
VALUES: list[Any] = [
    None,
    True,
    False,
    0,
    -1,
    1 << 70,
    1.5,
    -0.0,
    1e308,
    "",
    "a",
    "../x",
    "x" * 3000,
    "\u202e",
    "\x00",
    "a" * 64,
    "artifact:",
    [],
    {},
    [[]],
    {"": None},
    {"a": {"b": []}},
    [1, "a", None],
    [{}] * 3,
    {"size": -1, "sha256": "a" * 64},
    "artifact:" + "c" * 64,
]


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """Flip, cut, repeat, splice or insert, once to six times."""
    text = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        at, length = draw.randrange(len(text) + 1), draw.randint(1, 40)
        match draw.randrange(6):
            case 0 if text:
                text[at % len(text)] ^= 1 << draw.randrange(8)
            case 1:
                del text[at : at + length]
            case 2:
                text[at:at] = text[at : at + length] * draw.randint(1, 4)
            case 3:
                text[at:at] = draw.choice(PIECES)
            case 4:
                text[at : at + length] = draw.choice(PIECES)
            case _:
                del text[at:]
                text += content[draw.randrange(len(content)) :]
    return bytes(text)


def mutate_value(value: Any, draw: random.Random) -> Any:
    """The same with one value somewhere replaced, lost, or put under another key."""
    if isinstance(value, dict) and value and draw.random() < 0.85:
        out = dict(value)
        key = draw.choice(list(out))
        match draw.randrange(5):
            case 0:
                del out[key]
            case 1:
                out[draw.choice(["", "../x", "a", "\x00", "x" * 600, key.upper(), key + "/x", "é"])] = out[key]
            case _:
                out[key] = mutate_value(out[key], draw)
        return out
    if isinstance(value, list) and value and draw.random() < 0.7:
        at = draw.randrange(len(value))
        return [*value[:at], mutate_value(value[at], draw), *value[at + draw.randrange(2) :]]
    return draw.choice(VALUES)


def mutate_lines(content: bytes, draw: random.Random) -> bytes:
    """Lines of a recipe lost, doubled, moved, indented, or with another value."""
    lines = content.splitlines(keepends=True) or [b""]
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(lines))
        match draw.randrange(5):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(draw.randrange(len(lines) + 1), lines[at])
            case 2:
                lines[at] = b" " * draw.randint(1, 5) + lines[at]
            case 3:
                lines[at] = (
                    lines[at].partition(b":")[0]
                    + b": "
                    + draw.choice([*PIECES, json.dumps(draw.choice(VALUES)).encode()])
                    + b"\n"
                )
            case _:
                lines[at] = draw.choice([b"&a ", b"*a ", b"- ", b"? ", b"<<: *a ", b"!!set "]) + lines[at]
    return b"".join(lines)


def try_manifest(draw: random.Random) -> None:
    value: Any = MANIFEST
    for _ in range(draw.randint(0, 3)):
        value = mutate_value(value, draw)
    content = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=draw.random() < 0.1).encode(
        "utf-8", "surrogatepass"
    )
    if draw.random() < 0.5:
        content = mutate_bytes(content, draw)
    artifact = Artifact.parse(content, hashlib.sha256(content).hexdigest())
    assert canonical_json(artifact.manifest) == content, "what is accepted is what the digest names"
    assert artifact.key and artifact.needs is not None and artifact.size >= 0
    check_contracts(artifact)


def recipes() -> list[bytes]:
    small = (
        b"name: x\nbase: {model: org/m}\nstages:\n  sft: {data: a.jsonl, epochs: 2}\n  reward: {parent: sft, "
        b"data: b.jsonl}\n"
    )
    return [small, *(path.read_bytes() for path in sorted((ROOT / "recipes").glob("*.yaml")))]


def try_recipe(draw: random.Random, seeds: list[bytes], folder: Path) -> None:
    content = draw.choice(seeds)
    for mutate in draw.choices([mutate_lines, mutate_bytes], k=draw.randint(1, 2)):
        content = mutate(content, draw)
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    overrides = [mutate_bytes(b"stages.sft.epochs=2", draw).decode("utf-8", "replace")] if draw.random() < 0.1 else []
    pipeline.load(path, overrides)


def run(cases: Callable[[int], bool], seed: int) -> tuple[Counter[str], list[str]]:
    """Try cases as long as `cases(count)` says; how many were accepted and refused, and the first of each other
    exception."""
    counts: Counter[str] = Counter()
    escaped: dict[str, str] = {}
    seeds = recipes()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        count = 0
        while cases(count):
            draw = random.Random(f"{seed}/{count}")
            what = "manifest" if count % 4 else "recipe"
            try:
                try_manifest(draw) if what == "manifest" else try_recipe(draw, seeds, folder)
                counts[f"{what}s accepted"] += 1
            except AlignError:
                counts[f"{what}s refused"] += 1
            except Exception as error:
                counts[f"{what}s that broke it"] += 1
                escaped.setdefault(
                    f"{what}: {type(error).__name__}: {str(error)[:60]}",
                    f"{what} {seed}/{count}: {type(error).__name__}: {error}",
                )
            count += 1
        left = {path.name for path in folder.rglob("*")} - {"recipe.yaml"}
        if left:
            escaped["written"] = f"written: {sorted(left)}"
    return counts, list(escaped.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    end = time.monotonic() + 60 * args.minutes
    counts, escaped = run(lambda _: time.monotonic() < end, args.seed)
    print(
        f"{args.minutes:g} minutes, {sum(counts.values()):,} cases: "
        + ", ".join(f"{n:,} {what}" for what, n in sorted(counts.items()))
    )
    print("\n".join(escaped) or "nothing but InputError and AlignError came of them, and nothing was written")
    raise SystemExit(bool(escaped))


if __name__ == "__main__":
    main()
