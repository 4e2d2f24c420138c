"""The processes that `tests.benchmarks.store` starts and kills.  `python -m tests.benchmarks.store_worker ROLE STORE …`

Each prints a line when something is done and durable, so that whoever kills it knows what must still be there.
"""

from __future__ import annotations

import itertools
import json
import random
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from align.ground.errors import InputError
from align.store import Artifact, Store
from tests.store.conftest import fill, put

TEXT = {
    "tokenizer": "1" * 64,
    "chat_template": "2" * 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "stop_ids": [1],
}
"""A text contract that a remote takes."""


def put_named(store: Store, folder: Path, name: str, content: bytes) -> None:
    """Commit an artifact that a remote takes, name it, and only then report both."""
    with store.writing():
        files = fill(folder / "named", {"data.jsonl": json.dumps({"prompt": content.decode()}).encode()})
        artifact = put(store, files, kind="data", stage="pairs", config={"name": name}, text=TEXT)
        store.tag(name, artifact)
    print(name, artifact, flush=True)


def resident(peak: bool = False) -> int:
    """Resident memory of this process in bytes, now or at its peak (Linux)."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields["VmHWM" if peak else "VmRSS"].split()[0]) * 1024


def puts(store: Store, folder: Path, tag: str) -> None:
    print("ready", flush=True)
    for step in itertools.count():
        put_named(store, folder, f"put/{tag}-{step}", f"{tag} {step} ".encode() * 5000)


def refs(store: Store, folder: Path, tag: str) -> None:
    """New names for what is there, and one name that moves on and on."""
    for n in range(2):
        put_named(store, folder, f"ref/{tag}-{n}", f"{tag} {n}".encode())
    print("ready", flush=True)
    for step in itertools.count():
        for name in (f"ref/{tag}-more-{step}", "latest"):
            artifact = store.resolve(f"ref/{tag}-{step % 2}")
            store.tag(name, artifact)
            print(name, artifact, flush=True)


def pushes(store: Store, folder: Path, tag: str) -> None:
    """New artifacts, and their names, into a store beside this one."""
    put_named(store, folder, f"push/{tag}", tag.encode())
    store.push(far(store))
    print("ready", flush=True)
    for step in itertools.count():
        put_named(store, folder, f"push/{tag}-{step}", f"{tag} {step} ".encode() * 5000)
        for name, digest in store.push(far(store)).names.items():
            print(f"far/{name}", digest, flush=True)


def far(store: Store) -> Path:
    """Where `pushes` sends to."""
    return store.path.with_name(f"{store.path.name}-far")


def collects(store: Store, folder: Path, tag: str) -> None:
    """Garbage with ancestors, answers and caches, then a collection, over and over."""
    put_named(store, folder, f"kept/{tag}", tag.encode())
    for step in itertools.count():
        parents: dict[str, Artifact] = {}
        for n in range(10):
            junk = put(
                store, fill(folder / "out", {"weights": f"junk {tag} {step} {n}".encode() * 500}), parents=parents
            )
            store.remember(junk.digest, junk)
            store.folder(junk)
            parents = {"parent": junk}
        print("ready", flush=True)
        store.collect(delete=True)
        print("collected", flush=True)


def works(store: Store, folder: Path, tag: str, count: str) -> None:
    """Write `count` named artifacts; between them leave garbage, take names away, and read what others wrote."""
    rng = random.Random(tag)
    for step in range(int(count)):
        put_named(store, folder, f"work/{tag}-{step}", f"{tag} {step} ".encode() * 5000)
        put(store, fill(folder / "out", {"weights": f"junk {tag} {step}".encode()}))
        store.tag(f"gone/{tag}", f"work/{tag}-{step}")
        store.untag(f"gone/{tag}")
        store.tag("latest", f"work/{tag}-{step}")
        for name in (rng.choice([name for name in store.refs() if name.startswith("work/")]), "latest"):
            with store.hold(name) as hold:
                (artifact,) = hold.held.values()
                for path in artifact.files:
                    store.read(artifact, path)
                store.folder(artifact)


def sweeps(store: Store, folder: Path, tag: str, stop: str) -> None:
    """Collect until the file `stop` is there; print how often and how much."""
    rounds = removed = 0
    while not Path(stop).exists():
        removed += len(store.collect(delete=True).artifacts)
        rounds += 1
        time.sleep(0.01)
    print(json.dumps({"rounds": rounds, "removed": removed}), flush=True)


def looks(store: Store, folder: Path, *names: str) -> None:
    """CPU milliseconds of looking up every name (a ref, a digest, a prefix) and answer, and the memory that all of them
    took."""
    with_key = [name for name in names if len(name) == 64]
    store.resolve(names[0])
    before, figures = resident(), {}
    for name in names:
        start = time.process_time()
        store.resolve(name)
        figures[name] = (time.process_time() - start) * 1e3
    answers = []
    for key in with_key:
        start = time.process_time()
        assert store.asked(key)
        answers.append((time.process_time() - start) * 1e3)
    memory = resident(peak=True) - before
    start = time.process_time()
    with suppress(InputError):  # after looking for names like it
        store.resolve("no/such/name")
    unknown = (time.process_time() - start) * 1e3
    print(json.dumps({"names": figures, "answers": answers, "unknown": unknown, "memory": memory}), flush=True)


if __name__ == "__main__":
    role, path, folder, *rest = sys.argv[1:]
    roles: dict[str, Callable[..., None]] = {
        "puts": puts,
        "refs": refs,
        "pushes": pushes,
        "collects": collects,
        "works": works,
        "sweeps": sweeps,
        "looks": looks,
    }
    roles[role](Store(path), Path(folder), *rest)
