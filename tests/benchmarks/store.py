"""How much the store can be trusted, and what it costs.  `python -m tests.benchmarks.store [kills processes flips put
lookup]`

kills: `kill -9` at random moments of put, ref, gc and push; what was reported before is there, and nothing is damaged.
processes: eight on one store, two of them collecting, while the others write, rename, remove and read.
flips: one byte in every file of a store, one at a time; found, named, and refused by readers.
put: 100 MB into the store beside cp, sha256sum and fsync of the same files, turn about.
lookup: CPU time and memory of finding one of 10,000 artifacts.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

from align.ground.errors import AlignError
from align.store import Inputs, Store, digest_json
from align.store.remote.backend import open_remote
from align.store.remote.names import SEEN, _noted, note
from tests.benchmarks.store_worker import far
from tests.store.conftest import fill, make_family, put

ROOT = Path(__file__).parents[2]
MB = 10**6
FAR = "memory://far"


def start(role: str, store: Store, folder: Path, *rest: object) -> subprocess.Popen[str]:
    """A worker of `store_worker`. What it says on stderr goes into a file: a full pipe would stop it, with a lock in
    its hands."""
    command = [sys.executable, "-m", "tests.benchmarks.store_worker", role, store.path, folder, *rest]
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / f"stderr-{role}", "w") as errors:
        return subprocess.Popen(list(map(str, command)), cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=errors)


def said(folder: Path, role: str) -> str:
    """The end of what a worker said on stderr."""
    return (folder / f"stderr-{role}").read_text()[-2000:]


# ---- kills -----------------------------------------------------------------------------------------------------------


@dataclass
class Kills:
    """What was found after killing workers."""

    kills: int = 0
    reported: int = 0
    """Commits and names that a worker had reported when it was killed."""
    lost: list[str] = field(default_factory=list)
    damages: list[str] = field(default_factory=list)
    unfinished: int = 0
    """Temporary files that the kills left."""
    left: int = 0
    """Those that the next collection did not remove."""


def kill_at_random(folder: Path, kills: int, seed: int = 0, *, flaw: Callable[[Store], None] | None = None) -> Kills:
    """Kill workers that put, name, push and collect in turn. `flaw` harms the store after every kill, to see that it is
    found."""
    rng, found = random.Random(seed), Kills()
    for number in range(kills):
        role = ("puts", "refs", "pushes", "collects")[number % 4]
        store = Store(folder / f"{role}-{number // 80}")
        named = _kill(store, folder / "files", role, f"{seed}-{number}", rng.uniform(0, 0.12), found)
        found.kills += 1
        if flaw:
            flaw(store)
        for collected in (False, True):
            found.damages += [str(damage) for place in (store, Store(far(store))) for damage in place.verify()]
            found.lost += [line for line in named if not _there(store, line)]
            if not collected:
                found.unfinished += len(list(store.path.rglob(".tmp-*"))) + len(list(far(store).rglob(".tmp-*")))
                with suppress(AlignError):  # of a damaged store, which was counted
                    for place in (store, Store(far(store))):
                        place.collect(delete=True)
        found.left += len(list(store.path.rglob(".tmp-*"))) + len(list(far(store).rglob(".tmp-*")))
    return found


def _kill(store: Store, folder: Path, role: str, tag: str, seconds: float, found: Kills) -> list[str]:
    """Start a worker, kill it `seconds` after it is ready; the lines "name digest" that it had reported, but for names
    that move."""
    process = start(role, store, folder, tag)
    assert process.stdout
    lines = []
    while (line := process.stdout.readline().strip()) != "ready":
        assert line, said(folder, role)
        lines.append(line)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    whole, _, _ = process.communicate()[0].rpartition("\n")  # a kill may cut a line short
    lines += whole.splitlines()
    named = [line for line in lines if " " in line and not line.startswith("latest ")]
    found.reported += len(named)
    return named


def _there(store: Store, line: str) -> bool:
    """Whether a name stands for the artifact that was reported, all of which can be read."""
    name, digest = line.split()
    if name.startswith("far/"):
        store, name = Store(far(store)), name.removeprefix("far/")
    try:
        artifact = store.resolve(name)
        return artifact.digest == digest and all(store.read(artifact, path) is not None for path in artifact.files)
    except AlignError:
        return False


# ---- processes -------------------------------------------------------------------------------------------------------


@dataclass
class Crowd:
    """What eight processes did to one store."""

    written: int
    errors: list[str]
    lost: list[str]
    damages: list[str]
    collections: int
    removed: int


def crowd(folder: Path, artifacts: int, writers: int = 6, collectors: int = 2) -> Crowd:
    """`writers` write `artifacts` between them while `collectors` collect all the time."""
    store, stop = Store(folder / "store"), folder / "stop"
    share = [artifacts // writers + (n < artifacts % writers) for n in range(writers)]
    working = [start("works", store, folder / f"files{n}", n, count) for n, count in enumerate(share)]
    sweeping = [start("sweeps", store, folder / f"sweep{n}", n, stop) for n in range(collectors)]
    lines = [line for process in working for line in process.communicate()[0].splitlines()]
    stop.touch()
    counts = [json.loads(out) for process in sweeping if (out := process.communicate()[0])]
    errors = [said(folder / f"files{n}", "works") for n, process in enumerate(working) if process.returncode]
    errors += [said(folder / f"sweep{n}", "sweeps") for n, process in enumerate(sweeping) if process.returncode]
    return Crowd(
        len(lines),
        errors,
        [line for line in lines if not _there(store, line)],
        list(map(str, store.verify())),
        sum(count["rounds"] for count in counts),
        sum(count["removed"] for count in counts),
    )


# ---- flips -----------------------------------------------------------------------------------------------------------


def full_store(folder: Path) -> Store:
    """A store with a file of every kind that lasts."""
    store = Store(folder / "store")
    family = make_family(store, folder)
    for name, artifact in family.items():
        with store.run(digest_json(name)) as run:
            run.finish(artifact, {"seconds": 1.5, "tokens_per_second": 100.25})
    store.note_place("9" * 64, folder)
    note(store, open_remote(FAR), store.refs())
    with store.run(digest_json("stopped"), Inputs((family["sft"].digest,))) as run:
        fill(run.checkpoints, {"checkpoint-1/state": b"state"})
    return store


def lasting(store: Store) -> list[Path]:
    """Every file but locks, the inputs of runs that have ended, checkpoints and the cache."""
    kinds = ("objects", "artifacts", "refs", "asked", "places", "remotes")
    files = [path for kind in kinds for path in (store.path / kind).rglob("[!.]*") if path.is_file()]
    stopped = [path for path in store.path.glob("runs/*/inputs") if any((path.parent / "checkpoints").glob("*"))]
    return sorted([*files, *store.path.glob("runs/*/cost.json"), *stopped])


def refused(store: Store, path: Path) -> bool:
    """Whether a reader who needs that file is refused what it holds."""
    kind, *inner = path.relative_to(store.path).parts
    try:
        if kind == "objects":
            for artifact in store.artifacts():
                for name, entry in artifact.files.items():
                    if entry["sha256"] == path.name:
                        store.read(artifact, name)
        elif kind == "artifacts":
            store.resolve(path.stem)
        elif kind == "refs":
            store.resolve("/".join(inner))
        elif kind == "asked":
            store.asked(path.name)
        elif kind == "places":
            return store.place(path.name) is None
        elif kind == "remotes":
            return _noted(store, open_remote(FAR), SEEN) == {}
        elif path.name == "inputs":
            store.collect()
        else:
            return len(store.costs()) == len(list(store.path.glob("runs/*/cost.json"))) - 1
    except AlignError:
        return True
    return False


def flip(path: Path, position: int, bit: int) -> None:
    """Change one bit; a new file, as hard links would carry it elsewhere."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.unlink()
    path.write_bytes(content)


def flips(folder: Path, seed: int = 0) -> tuple[int, list[str]]:
    """How many bytes were flipped, one in every file at a time, and which of them were not found, named and refused."""
    rng, store = random.Random(seed), full_store(folder)
    missed = []
    for path in lasting(store):
        whole, mode = path.read_bytes(), path.stat().st_mode
        position, bit = rng.randrange(len(whole)), rng.randrange(8)
        flip(path, position, bit)
        if not (any(damage.path == path for damage in store.verify()) and refused(store, path)):
            missed.append(f"{path} byte {position} bit {bit}")
        path.write_bytes(whole)
        path.chmod(mode)
    assert store.verify() == []
    return len(lasting(store)), missed


# ---- put -------------------------------------------------------------------------------------------------------------


def put_times(folder: Path, size: int, rounds: int) -> dict[str, list[float]]:
    """Seconds of: cp, sha256sum and fsync; put of a folder that stays the caller's; put of one that becomes the
    store's, as of stages."""
    times: dict[str, list[float]] = {"cp + sha256sum + fsync": [], "put": [], "put, owned": []}
    for number in range(rounds + 1):
        for way, found in times.items():
            here = folder / f"{number}"
            content = {
                "adapters/0/adapter_model.safetensors": os.urandom(size),
                "adapters/0/adapter_config.json": b"{}" * 400,
            }
            source = fill(here / "source", content | {"tokenizer/tokenizer.json": os.urandom(3 * MB)})
            if way != "put, owned":  # what a stage has just written is not on the disk yet
                subprocess.run(["sync", "-f", source], check=True)
            begun = time.perf_counter()
            if way == "put":
                put(Store(here / "store"), source)
            elif way == "put, owned":
                put(Store(here / "store"), source, owned=True, check=lambda folder: None)
            else:
                line = (
                    "cp -r source copy && find copy -type f -exec sha256sum {} + > sums && find copy -type f "
                    "-exec sync {} +"
                )
                subprocess.run(line, shell=True, check=True, cwd=here)
            if number:  # the first warms up
                found.append(time.perf_counter() - begun)
            shutil.rmtree(here)
    return times


# ---- lookup ----------------------------------------------------------------------------------------------------------


def lookups(folder: Path, artifacts: int) -> dict[str, float]:
    """CPU milliseconds (the slowest of ten) by ref, digest, prefix and answer in a store of `artifacts`, and MiB that
    looking took."""
    store, made = Store(folder / f"store-{artifacts}"), []
    with patch("os.fsync"):  # the store is thrown away
        for number in range(artifacts):
            artifact = put(
                store,
                fill(folder / "files", {"weights": str(number).encode(), "tokenizer/vocab": b"shared"}),
                version=number,
            )
            store.tag(f"group-{number % 100}/{number}", artifact)
            store.remember(artifact.digest, artifact)
            made.append(artifact.digest)
    chosen = random.Random(0).sample(range(artifacts), 10)
    names = {
        "by ref": [f"group-{n % 100}/{n}" for n in chosen],
        "by digest": [made[n] for n in chosen],
        "by prefix": [made[n][:14] for n in chosen],
    }
    process = start("looks", store, folder, *(name for group in names.values() for name in group))
    out = process.communicate()[0]
    assert process.returncode == 0, said(folder, "looks")
    found = json.loads(out)
    figures = {way: max(found["names"][name] for name in group) for way, group in names.items()}
    return figures | {
        "asked(key)": max(found["answers"]),
        "an unknown name": found["unknown"],
        "MiB": found["memory"] / 2**20,
    }


# ---- the table -------------------------------------------------------------------------------------------------------


def report(part: str, folder: Path, args: argparse.Namespace) -> list[tuple[str, str]]:
    if part == "kills":
        kills = kill_at_random(folder, args.kills)
        reported = (
            f"{kills.reported:,} commits and names reported before, {len(kills.lost)} lost, "
            f"{len(kills.damages)} damaged"
        )
        return [
            (f"{kills.kills} × kill -9", f"{reported}; {kills.unfinished} unfinished files, {kills.left} not collected")
        ]
    if part == "processes":
        found = crowd(folder, args.artifacts)
        return [
            (
                "8 processes, 2 of them gc",
                f"{found.written} artifacts, {len(found.errors)} errors, {len(found.lost)} lost",
            ),
            ("", f"{len(found.damages)} damaged; {found.collections} collections removed {found.removed} artifacts"),
            *(("error", error.strip()) for error in found.errors),
        ]
    if part == "flips":
        count, missed = flips(folder)
        return [
            ("one flipped byte", f"{count} files, {len(missed)} not found or not refused"),
            *(("missed", line) for line in missed),
        ]
    if part == "put":
        times = put_times(folder, 100 * MB, args.rounds)
        first = statistics.median(next(iter(times.values())))
        return [
            (way, f"{statistics.median(t) * 1e3:6.0f} ms, × {statistics.median(t) / first:.2f}")
            for way, t in times.items()
        ]
    rows = []
    for size in (100, 10_000):
        rows += [
            (f"{size:,}: {way}", f"{value:.1f}{'' if way == 'MiB' else ' ms of CPU'}")
            for way, value in lookups(folder, size).items()
        ]
    return rows


PARTS = ("kills", "processes", "flips", "put", "lookup")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all without it")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--artifacts", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument(
        "--folder", help="work here, on the file system that is to be measured; a temporary folder without it"
    )
    args = parser.parse_args()
    if unknown := set(args.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    for part in args.parts or PARTS:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            begun = time.perf_counter()
            for what, figure in report(part, Path(folder), args):
                print(f"{part:<10} {what:<26} {figure}", flush=True)
            print(f"{part:<10} {'took':<26} {time.perf_counter() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    main()
