"""Push and pull against a real S3 server on this machine: what travels, what wins, and what a killed push leaves."""

from __future__ import annotations

import hashlib
import itertools
import json
import multiprocessing
import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import align.store.remote.transfer as remote_module
from align.cli import dispatch
from align.ground import disk as disk
from align.ground.errors import AlignError, InputError
from align.report.lists import gc_text
from align.store import Artifact, Store
from align.store.remote import transfer
from align.store.remote.backend import S3, open_remote
from align.store.remote.names import note
from align.store.remote.place import Remote
from tests.store.conftest import fill, put
from tests.store.remotes import Server, make, make_line, model_files, serving
from tests.store.test_damage import flip
from tests.store.test_store import contents

ROOT = Path(__file__).parents[2]
BUCKETS = (f"bucket{number}" for number in itertools.count())


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving() as found:
        yield found


@pytest.fixture
def url(server: Server) -> str:
    """A place in an empty bucket."""
    where = server.bucket(next(BUCKETS))
    server.asked.clear()
    return where


@pytest.fixture(params=["s3", "file", "plain folder", "memory"])
def anywhere(request: pytest.FixtureRequest, server: Server, tmp_path: Path) -> str:
    if request.param == "s3":
        return server.bucket(next(BUCKETS))
    return {
        "file": f"file://{tmp_path}/far",
        "plain folder": str(tmp_path / "far"),
        "memory": f"memory://{tmp_path.name}/far",
    }[request.param]


@pytest.fixture
def line(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    return make_line(store, tmp_path)


def held(server: Server, url: str) -> dict[str, bytes]:
    """All that lies there, read without Align; what was read before is not read again where the server's tag is the
    same."""
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    pages = server.client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{folder}/")
    found = {}
    for entry in (entry for page in pages for entry in page.get("Contents", [])):
        read = server.read.get((bucket, entry["Key"], entry["ETag"], entry["LastModified"]))
        if read is None:
            read = server.client.get_object(Bucket=bucket, Key=entry["Key"])["Body"].read()
            server.read[bucket, entry["Key"], entry["ETag"], entry["LastModified"]] = read
        found[entry["Key"].removeprefix(f"{folder}/")] = read
    server.asked.clear()
    return found


def unsound(found: dict[str, bytes]) -> list[str]:
    """What is wrong with a remote, by `sha256sum` alone: every object and manifest is its name, and leads to what is
    there."""
    wrong = []
    for path, content in found.items():
        kind, _, name = path.partition("/")
        digest = name.rpartition("/")[2].removesuffix(".json")
        if kind in ("objects", "artifacts") and hashlib.sha256(content).hexdigest() != digest:
            wrong.append(path)
        if kind == "artifacts":
            manifest = json.loads(content)
            needed = [f"objects/{e['sha256'][:2]}/{e['sha256']}" for e in manifest["files"].values()]
            needed += [f"artifacts/{parent}.json" for parent in manifest["parents"].values()]
            wrong += [f"{path} needs {there}" for there in needed if there not in found]
        if kind == "refs" and f"artifacts/{content.decode().strip()}.json" not in found:
            wrong.append(path)
    return wrong


# ---- what travels ----------------------------------------------------------------------------------------------------


def test_what_is_pushed_is_pulled(anywhere: str, store: Store, line: dict[str, Artifact], tmp_path: Path):
    """Every byte, name and answer of a whole line comes back; costs, runs, places and the cache do not travel."""
    store.note_place("0" * 64, tmp_path)
    with store.run(line["ppo"].key) as run:
        run.finish(line["ppo"], {"seconds": 1.0})
    store.folder(line["ppo"])
    pushed = store.push(anywhere)
    other = Store(tmp_path / "other")
    pulled = other.pull(anywhere)
    assert (
        pushed == pulled
        and pulled.names == store.refs()
        and (pulled.artifacts, pulled.files, pulled.moved) == (4, 9, {})
    )
    assert other.verify() == [] and list(other.artifacts()) == list(store.artifacts()) and other.refs() == store.refs()
    kept = ("objects", "artifacts", "refs", "asked")
    assert {kind: contents(other.path / kind) for kind in kept} == {kind: contents(store.path / kind) for kind in kept}
    assert sorted(path.name for path in other.path.iterdir()) == sorted([*kept, "cache", "gate", "lock", "remotes"])
    assert not any(path.is_file() and path.name != ".pull.lock" for path in (other.path / "cache").rglob("*"))
    assert {path.stat().st_mode & 0o777 for path in (other.path / "objects").glob("*/*")} == {0o444}
    again = other.pull(anywhere)
    assert (again.artifacts, again.files, again.size, again.kept) == (0, 0, 0, 9)


def test_a_name_takes_its_lineage_and_nothing_else(
    url: str, server: Server, store: Store, line: dict[str, Artifact], tmp_path: Path
):
    """The reward model brings the SFT adapter (its parent) and the base that lies in the store; nothing of PPO."""
    store.push(url, ["line/reward"])
    found = held(server, url)
    assert {path.partition("/")[2] for path in found if path.startswith("refs/")} == {"line/reward"}
    manifests = {path.partition("/")[2].removesuffix(".json") for path in found if path.startswith("artifacts/")}
    assert manifests == {line[name].digest for name in ("base", "sft", "reward")} and unsound(found) == []
    assert {path.split("/")[0] for path in found} == {"objects", "artifacts", "refs", "format"}

    other = Store(tmp_path / "other")
    assert other.pull(url, [line["sft"].digest]).names == {} and other.refs() == {}
    assert {a.digest for a in other.artifacts()} == {line["base"].digest, line["sft"].digest}
    store.push(url, [line["ppo"].digest])
    with pytest.raises(InputError, match=r"has no name 'line/ppo'; did you mean line/reward\?"):
        other.pull(url, ["line/ppo"])
    assert other.pull(url, [line["ppo"].digest]).artifacts == 2


def test_only_what_is_missing_travels(url: str, server: Server, store: Store, tmp_path: Path):
    """A second artifact that shares all files but one sends one object, counted by the server; a third push sends
    none."""
    store.tag("first", make(store, tmp_path, 1))
    store.push(url)
    assert len(server.sent()) == 4
    second = put(
        store,
        fill(tmp_path / "made-1", {"history.jsonl": b'{"loss": 0.5, "step": 1}\n'}),
        text=store.resolve("first").text,
        version=2,
    )
    store.tag("second", second)
    assert store.push(url).files == 1
    digest = second.files["history.jsonl"]["sha256"]
    assert server.sent() == [f"{digest[:2]}/{digest}"]
    assert store.push(url).files == 0 and server.sent() == []
    assert unsound(held(server, url)) == []


def test_objects_come_before_manifests_and_names_last(
    url: str, server: Server, store: Store, line: dict[str, Artifact]
):
    store.push(url)
    put_there = [asked.partition("/store/")[2] for asked in server.asked if asked.startswith("PUT")]
    order = [kind for kind, _ in itertools.groupby(path.split("/")[0] for path in put_there) if kind != "format"]
    assert order == ["objects", "artifacts", "refs"]
    written = [
        line_.rpartition("/")[2].removesuffix(".json")
        for line_ in server.asked
        if line_.startswith("PUT") and "/artifacts/" in line_
    ]
    assert written.index(line["base"].digest) < written.index(line["sft"].digest) < written.index(line["reward"].digest)
    assert written[-1] == line["ppo"].digest


def test_answers_are_worked_out_here(url: str, server: Server, store: Store, line: dict[str, Artifact], tmp_path: Path):
    """A puller skips what the manifests say was asked. An answer that lies there is not read, and one that is here is
    kept."""
    store.push(url)
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    stranger = "e" * 64
    for key, answer in ((stranger, line["ppo"]), (line["ppo"].key, line["sft"])):
        server.client.put_object(Bucket=bucket, Key=f"{folder}/asked/{key}", Body=f"{answer}\n".encode())
    other = Store(tmp_path / "other")
    mine = make(other, tmp_path, 50)
    other.remember(line["sft"].key, mine)
    other.pull(url)
    assert other.asked(line["ppo"].key) == line["ppo"] and other.asked(stranger) is None
    assert other.asked(line["sft"].key) == mine, "what was answered here stays"


def test_the_key_of_an_artifact_is_the_one_that_was_asked(store: Store, tmp_path: Path):
    """`Artifact.key` is over exactly what a stage asks for; metrics and files take no part."""
    asked = {
        "stage": "sft",
        "version": 1,
        "settings": {"seed": 7},
        "parents": {},
        "data": {},
        "base": make(store, tmp_path, 7).base,
    }
    text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
    assert make(store, tmp_path, 7, metrics={"loss": 1.0}).key == hashlib.sha256(text.encode()).hexdigest()
    assert make(store, tmp_path, 7, config={"seed": 8}).key != make(store, tmp_path, 7).key


# ---- who wins --------------------------------------------------------------------------------------------------------


def pushers(tmp_path: Path, count: int, name: str) -> list[Store]:
    stores = [Store(tmp_path / f"pusher{n}") for n in range(count)]
    for number, store in enumerate(stores):
        store.tag(name, make(store, tmp_path, 100 + number))
    return stores


def race(stores: list[Store], url: str, patch: pytest.MonkeyPatch) -> list[str | None]:
    """All push at once and meet just before the name is written; the message of each that was refused."""
    meeting, told = threading.Barrier(len(stores)), dict.fromkeys(range(len(stores)), "")
    real = remote_module.swap

    def met(*arguments: Any) -> str | None:
        meeting.wait(timeout=60)
        return real(*arguments)

    patch.setattr(remote_module, "swap", met)

    def go(number: int) -> None:
        try:
            stores[number].push(url)
        except AlignError as error:
            told[number] = str(error)

    threads = [threading.Thread(target=go, args=(number,)) for number in told]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    patch.setattr(remote_module, "swap", real)
    return list(told.values())


def test_of_pushers_that_race_one_wins(anywhere: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For a new name and for one that all saw before; the others are told where it points, and their artifacts are
    there by digest."""
    stores = pushers(tmp_path, 4, "best")
    told = race(stores, anywhere, monkeypatch)
    assert told.count("") == 1
    winner = stores[told.index("")].refs()["best"]
    assert all(f"best was moved to {winner} by another push" in text for text in told if text)
    reader = Store(tmp_path / "reader")
    assert reader.pull(anywhere).names == {"best": winner}
    reader.pull(anywhere, [store.refs()["best"] for store in stores])
    assert len(list(reader.artifacts())) == 4 and reader.verify() == []

    for number, store in enumerate(stores):
        store.pull(anywhere, force=True)
        store.tag("best", make(store, tmp_path, 200 + number))
    told = race(stores, anywhere, monkeypatch)
    assert told.count("") == 1
    assert reader.pull(anywhere).moved == {"best": winner}
    assert reader.refs()["best"] == stores[told.index("")].refs()["best"]


def test_without_the_condition_all_would_win(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control of the race: names that are simply written are all accepted, and all but one are lost."""

    def write(remote: S3, path: str, old: bytes | None, new: bytes) -> bool:
        remote.write(path, new)
        return True

    monkeypatch.setattr(S3, "swap", write)
    monkeypatch.setattr(S3, "check_swap", lambda remote: None)
    assert race(pushers(tmp_path, 4, "best"), url, monkeypatch) == [""] * 4


def test_a_name_that_moved_there_is_not_overwritten(anywhere: str, tmp_path: Path):
    """One who has not seen a move is told; one who has pulled it may move it; a descendant may follow; --force says
    what it replaced."""
    ours, theirs = pushers(tmp_path, 2, "best")
    first = ours.push(anywhere).names["best"]
    with pytest.raises(
        AlignError, match=f"best points at {first} there; this store has not seen it[\\s\\S]*Nothing was sent.*--force"
    ):
        theirs.push(anywhere)
    assert theirs.push(anywhere, force=True).moved == {"best": first}
    second = theirs.refs()["best"]
    ours.tag("best", make(ours, tmp_path, 3))
    with pytest.raises(AlignError, match=f"best points at {second} there; when this store last saw it, it was {first}"):
        ours.push(anywhere)
    ours.pull(anywhere, ["best"], force=True)
    child = make(ours, tmp_path, 4, parents={"parent": second})
    ours.tag("best", child)
    assert ours.push(anywhere).moved == {"best": second}

    grandchild = make(ours, tmp_path, 5, parents={"parent": child})
    ours.tag("best", grandchild)
    stranger = Store(tmp_path / "stranger")
    stranger.pull(anywhere, [child.digest])
    stranger.tag("best", make(stranger, tmp_path, 6, parents={"parent": child}))
    assert stranger.push(anywhere).moved == {"best": child.digest}, "it has what it moves on from"
    with pytest.raises(AlignError, match="best points at"):
        ours.push(anywhere)


def test_a_pull_does_not_take_a_name_away(url: str, tmp_path: Path):
    ours, theirs = pushers(tmp_path, 2, "best")
    there = ours.push(url).names["best"]
    mine = theirs.refs()["best"]
    before = contents(theirs.path)
    with pytest.raises(
        AlignError, match=f"best points at {mine[:12]} here and at {there[:12]} there[\\s\\S]*Nothing was fetched"
    ):
        theirs.pull(url)
    assert contents(theirs.path) == before
    assert theirs.pull(url, force=True).moved == {"best": mine} and theirs.refs()["best"] == there
    ours.tag("best", make(ours, tmp_path, 9))
    ours.push(url)
    assert theirs.pull(url).moved == {"best": there}, "it was as it came from there"


def test_names_that_cannot_live_together_are_refused(anywhere: str, tmp_path: Path):
    one, two = pushers(tmp_path, 1, "a")[0], Store(tmp_path / "two")
    one.push(anywhere)
    two.tag("a/b", make(two, tmp_path, 3))
    with pytest.raises(AlignError, match="a and a/b cannot both be names"):
        two.push(anywhere)
    two.push(anywhere, [two.refs()["a/b"]])


class Forgetful:
    """A server that takes conditional writes and ignores the condition, as some do."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        return self.app({k: v for k, v in environ.items() if k not in self.ignored}, start_response)

    ignored: tuple[str, ...] = ()


@pytest.mark.parametrize("ignored", ["HTTP_IF_NONE_MATCH", "HTTP_IF_MATCH"])
def test_a_server_that_ignores_conditions_is_found_out(
    ignored: str, url: str, server: Server, store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
):
    forgetful = Forgetful(server.app)
    forgetful.ignored = (ignored,)
    monkeypatch.setattr(server, "app", forgetful)
    with pytest.raises(AlignError, match="does not honour conditional writes"):
        store.push(url)
    assert set(held(server, url)) <= {"format"}
    assert store.push(url, [line["ppo"].digest]).files == 9
    assert store.push(url, force=True).names == store.refs()


def test_a_place_without_conditional_writes_says_so(
    store: Store, line: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file system of fsspec that Align does not know: digests travel; names only with --force."""
    monkeypatch.setattr("align.store.remote.backend.Memory", Remote)
    where = f"memory://{tmp_path.name}/unknown"
    with pytest.raises(AlignError, match="does not know how to move a name there"):
        store.push(where)
    assert Store(tmp_path / "other").path.exists() is False and open_remote(where).names("objects") == []
    store.push(where, [line["ppo"].digest])
    store.push(where, force=True)
    assert Store(tmp_path / "other").pull(where).names == store.refs()


# ---- what is verified ------------------------------------------------------------------------------------------------


HARMS: list[Callable[[bytes], bytes | None]] = [
    lambda content: bytes([content[0] ^ 1]) + content[1:],
    lambda content: content[:-1],
    lambda content: content + b" ",
    lambda content: b"",
    lambda content: None,
]


@pytest.mark.parametrize("harm", HARMS, ids=["a bit flipped", "cut short", "grown", "empty", "gone"])
def test_what_changed_there_is_refused(
    harm: Callable[[bytes], bytes | None], store: Store, line: dict[str, Artifact], tmp_path: Path
):
    """Every object and manifest in turn: refused by name, and nothing of it is committed."""
    far = tmp_path / "far"
    store.push(far)
    for path in [*(far / "objects").glob("*/*"), *(far / "artifacts").iterdir()]:
        whole = path.read_bytes()
        harmed = harm(whole)
        path.unlink()
        if harmed is not None:
            path.write_bytes(harmed)
        with pytest.raises(AlignError, match=path.name):
            Store(tmp_path / "other").pull(far)
        assert [name for name in contents(tmp_path / "other") if not name.endswith(".lock")] == []
        path.unlink(missing_ok=True)
        path.write_bytes(whole)
    assert Store(tmp_path / "other").pull(far).files == 9, "control: what was put back is pulled"


def test_what_changed_at_the_server_is_refused(
    url: str, server: Server, store: Store, line: dict[str, Artifact], tmp_path: Path
):
    store.push(url)
    bucket, _, folder = url.removeprefix("s3://").partition("/")
    path = next(path for path in held(server, url) if path.startswith("objects/"))
    whole = held(server, url)[path]
    for harm in HARMS:
        if (harmed := harm(whole)) is None:
            server.client.delete_object(Bucket=bucket, Key=f"{folder}/{path}")
        else:
            server.client.put_object(Bucket=bucket, Key=f"{folder}/{path}", Body=harmed)
        with pytest.raises(AlignError, match=path):
            Store(tmp_path / "other").pull(url)
        assert [name for name in contents(tmp_path / "other") if not name.endswith(".lock")] == []
    server.client.put_object(Bucket=bucket, Key=f"{folder}/{path}", Body=whole)
    assert Store(tmp_path / "other").pull(url).files == 9, "control: what was put back is pulled"


def test_nothing_damaged_is_sent(anywhere: str, store: Store, line: dict[str, Artifact]):
    weights = line["sft"].files["adapters/0/adapter_model.safetensors"]["sha256"]
    flip(store.object_path(weights), -1)
    with pytest.raises(AlignError, match=rf"Nothing damaged is sent[\s\S]*{weights}[\s\S]*run line/sft again"):
        store.push(anywhere)
    remote = open_remote(anywhere)
    assert (
        remote.names("artifacts") == [] and remote.names("refs") == [] and weights not in str(remote.names("objects"))
    )
    store.object_path(weights).unlink()
    with pytest.raises(AlignError, match="Nothing damaged is sent"):
        store.push(anywhere)


def test_a_pull_heals_what_is_damaged_or_gone(anywhere: str, store: Store, line: dict[str, Artifact], tmp_path: Path):
    store.push(anywhere)
    store.object_path(line["sft"].files["tokenizer/tokenizer.json"]["sha256"]).unlink()
    flip(store.manifest_path(line["ppo"].digest), 3)
    flip(store.object_path(line["ppo"].files["adapters/0/adapter_model.safetensors"]["sha256"]), 3)
    assert len(store.verify()) == 3
    store.pull(anywhere, [line["ppo"].digest])
    assert store.verify() == []


def test_half_an_object_is_sent_again(store: Store, line: dict[str, Artifact], tmp_path: Path):
    """A file server that was cut off may keep the first half under the final name."""
    far = tmp_path / "far"
    store.push(far)
    path = next((far / "objects").glob("*/*"))
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    assert store.push(far).files == 1 and Store(far).verify() == []
    assert Store(tmp_path / "other").pull(far).files == 9


def test_a_folder_that_was_pushed_to_is_a_store(store: Store, line: dict[str, Artifact], tmp_path: Path):
    store.push(tmp_path / "far")
    far = Store(tmp_path / "far")
    assert far.verify() == [] and far.refs() == store.refs() and list(far.artifacts()) == list(store.artifacts())
    with pytest.raises(InputError, match="is this store itself"):
        far.push(f"file://{tmp_path}/far")
    with pytest.raises(InputError, match="is this store itself"):
        far.pull(tmp_path / "x/../far")


# ---- killed and cut off ----------------------------------------------------------------------------------------------


def push_in_child(environment: dict[str, str], store: Path, url: str) -> None:
    os.environ.update(environment)
    Store(store).push(url)


def kill_pushes(server: Server, url: str, store: Store, folder: Path, times: int) -> int:
    """Push new artifacts from a process that is killed at a random moment, again and again; how many kills came before
    the end.

    After each, what lies there is sound by `sha256sum` alone.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["s3fs", "tests.store.test_remote"])
    environment = {key: value for key, value in os.environ.items() if key.startswith("AWS_")}
    draw, killed, took = random.Random(0), 0, 1.0
    for number in range(times):
        more = {f"tokenizer/more-{n}.model": bytes([n, number % 256]) * 20_000 for n in range(4)}
        made = make(store, folder, 1000 + number, files=model_files(1000 + number, 60_000) | more)
        store.tag("latest", made)
        store.tag(f"kept/{number}", made)
        process = context.Process(target=push_in_child, args=(environment, store.path, url))
        server.asked.clear()
        process.start()
        while not server.asked and process.is_alive():  # Python starts; the push begins with its first request
            time.sleep(0.001)
        begun = time.monotonic()
        process.join(timeout=draw.uniform(0, took))
        if process.is_alive():
            process.kill()
            killed += 1
        else:
            took = 0.9 * took + 0.1 * (time.monotonic() - begun)
        process.join()
        assert unsound(held(server, url)) == []
        if number % 4 == 3:
            begun = time.monotonic()
            store.push(url)
            took = time.monotonic() - begun
    return killed


@pytest.mark.parametrize("noted_before", [True, False])
def test_a_push_killed_before_it_noted_what_it_moved(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noted_before: bool
) -> None:
    """The name moved there, and this store goes on from it. Negative control: without the note before the move it is
    taken for another's."""
    (ours,) = pushers(tmp_path, 1, "best")
    with monkeypatch.context() as patch:
        patch.setattr(transfer, "note", lambda *args: note(*args) if noted_before and len(args) > 3 else None)
        ours.push(url)
    ours.tag("best", make(ours, tmp_path, 5))
    if noted_before:
        assert ours.push(url).names == ours.refs()
    else:
        with pytest.raises(AlignError, match="Nothing was sent"):
            ours.push(url)


def check_killed(server: Server, url: str, store: Store, tmp_path: Path, times: int) -> None:
    killed = kill_pushes(server, url, store, tmp_path / "files", times)
    assert killed >= times // 3, "most kills came while something was under way"
    store.push(url)
    other = Store(tmp_path / "other")
    other.pull(url)
    assert store.verify() == [] and other.verify() == [] and unsound(held(server, url)) == []
    assert other.refs() == store.refs() and list(other.artifacts()) == list(store.artifacts())
    print(
        f"{killed} of {times} pushes were killed under way: {len(list(other.artifacts()))} artifacts, 0 lost, 0 corrupt"
    )


@pytest.mark.slow
def test_killed_pushes_leave_a_sound_remote(url: str, server: Server, store: Store, tmp_path: Path):
    check_killed(server, url, store, tmp_path, 10)


@pytest.mark.slow
def test_two_hundred_killed_pushes(url: str, server: Server, store: Store, tmp_path: Path):
    check_killed(server, url, store, tmp_path, 200)


def test_the_kill_test_would_find_a_wrong_order(url: str, server: Server, store: Store, line: dict[str, Artifact]):
    """Negative control: a manifest without its objects, and half an object, are found."""
    remote = open_remote(url)
    remote.write(f"artifacts/{line['base']}.json", store.manifest_path(line["base"].digest).read_bytes())
    assert len(unsound(held(server, url))) == 3
    store.push(url)
    assert unsound(held(server, url)) == []
    remote.write("objects/00/" + "0" * 64, b"half")
    assert unsound(held(server, url)) == ["objects/00/" + "0" * 64]


class CutOff:
    """A server that answers `left` more times to requests for objects, then only with errors."""

    def __init__(self, app: Any, method: str, left: int) -> None:
        self.app, self.method, self.left = app, method, left

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        if environ["REQUEST_METHOD"] == self.method and "/objects/" in environ["PATH_INFO"]:
            self.left -= 1
            if self.left < 0:
                time.sleep(0.5)  # those that were answered are through by then: a refusal ends what is under way
                start_response("403 Forbidden", [("Content-Type", "text/plain")])
                return [b"cut off"]
        return self.app(environ, start_response)


def test_what_arrived_is_not_sent_again(
    url: str, server: Server, store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(server, "app", CutOff(server.app, "PUT", 5))
    with pytest.raises(
        AlignError, match=r"Check the address, the credentials and the network; the same command goes on\."
    ):
        store.push(url)
    there = {path for path in held(server, url) if path.startswith("objects/")}
    assert len(there) == 5 and unsound(held(server, url)) == []
    monkeypatch.undo()
    assert store.push(url).files == 4 and len(server.sent()) == 4


def test_what_was_fetched_is_not_fetched_again(
    url: str, server: Server, store: Store, line: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Cut off, the store holds nothing of it but what waits in its cache; the next pull fetches the rest."""
    store.push(url)
    other = Store(tmp_path / "other")
    monkeypatch.setattr(server, "app", CutOff(server.app, "GET", 5))
    with pytest.raises(AlignError, match="the same command goes on"):
        other.pull(url)
    assert not (other.path / "objects").exists() and not (other.path / "artifacts").exists()
    waiting = len(list((other.path / "cache/arriving").iterdir()))
    assert 1 <= waiting <= 5
    assert len(other.collect(delete=True).arrived) == waiting, "the collector keeps what the pull can go on from"
    monkeypatch.undo()
    server.asked.clear()
    assert other.pull(url).files == 9 and other.verify() == []
    assert len([line_ for line_ in server.asked if line_.startswith("GET") and "/objects/" in line_]) == 9 - waiting
    assert not (other.path / "cache/arriving").exists()


def test_what_a_killed_pull_left_can_be_given_up(store: Store, line: dict[str, Artifact], tmp_path: Path):
    """Unfinished files go at once, fetched ones with --checkpoints; nothing goes while a pull is under way, which has
    the lock."""
    other = Store(tmp_path / "other")
    digest, unfinished = "a" * 64, ".tmp-1-2"
    fill(other.arriving, {digest: b"fetched", unfinished: b"half"})
    with disk.locked(other.pull_lock):
        found = other.collect(delete=True, checkpoints=True)
        assert (found.others, found.arrived, found.size) == ([], [], 0)
    found = other.collect(delete=True)
    assert (found.others, found.arrived, found.size) == ([other.arriving / unfinished], [other.arriving / digest], 4)
    assert "Kept: 1 file of a pull that was stopped, 7 B; --checkpoints gives them up." in gc_text(
        found, other.path, deleted=True
    )
    assert other.collect(delete=True, checkpoints=True).others == [other.arriving] and not other.arriving.exists()
    (other.path / "remotes").mkdir()
    fill(other.path / "remotes", {unfinished: b"half"})
    assert other.collect(delete=True).others == [other.path / "remotes" / unfinished]


# ---- what a person sees ----------------------------------------------------------------------------------------------


def test_addresses_that_lead_nowhere(
    server: Server, store: Store, line: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    for where, named in (
        ("s4://bucket/x", "s4:// is no scheme that fsspec knows"),
        ("s3://", "names no place"),
        ("gs://bucket/x", "pip install 'gcsfs'"),
    ):
        with pytest.raises(InputError, match=named):
            store.push(where)
    with pytest.raises(
        InputError, match=r"line/sft is a name in .*, no place\. The place comes first: align push URL line/sft"
    ):
        store.push("line/sft")
    with pytest.raises(AlignError, match=r"s3://no-such-bucket/x: .*Check the address"):
        store.push("s3://no-such-bucket/x")
    for where in ("s3://no-such-bucket/x", str(tmp_path / "absent"), "memory://absent"):
        with pytest.raises(InputError, match="holds no names"):
            Store(tmp_path / "other").pull(where)
    with pytest.raises(InputError, match="holds no named artifact"):
        Store(tmp_path / "other").push("memory://absent")
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(InputError, match=r"pip install 'align-rlhf\[s3\]'"):
        store.push("s3://bucket/x")
    assert not (tmp_path / "other").exists() and not (tmp_path / "absent").exists()


def test_a_newer_format_is_not_touched(anywhere: str, store: Store, line: dict[str, Artifact]):
    store.push(anywhere)
    open_remote(anywhere).write("format", b"2\n")
    for call in (store.push, store.pull):
        with pytest.raises(AlignError, match="A newer Align may read it"):
            call(anywhere)


def test_the_command_line(store: Store, line: dict[str, Artifact], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What travelled goes to stderr; stdout holds names and digests, or everything as JSON."""
    far, here, other = str(tmp_path / "far"), str(store.path), str(tmp_path / "other")
    dispatch(["push", far, "line/sft", "--store", here])
    out, err = capsys.readouterr()
    assert out == f"line/sft {line['sft']}\n"
    assert "sent 6 files" in err and "2 manifests; 0 files were there already" in err
    dispatch(["push", far, "--json", "--store", here])
    told = json.loads(capsys.readouterr().out)
    assert told["names"] == store.refs() and (told["files"], told["kept"], told["artifacts"], told["moved"]) == (
        3,
        6,
        2,
        {},
    )
    Store(other).tag("line/sft", make(Store(other), tmp_path, 77))
    with pytest.raises(AlignError, match="--force moves the name") as refused:
        dispatch(["pull", far, "--store", other])
    assert refused.value.exit_code == 1
    capsys.readouterr()
    dispatch(["pull", far, "--store", other, "--force"])
    out, err = capsys.readouterr()
    assert "line/sft pointed at" in err and out.splitlines() == [
        f"{name} {digest}" for name, digest in store.refs().items()
    ]
    with pytest.raises(InputError, match="unrecognized arguments: --forse"):
        dispatch(["pull", far, "--forse"])


def test_listing_loads_no_file_system(store: Store, line: dict[str, Artifact]):
    """fsspec and s3fs are imported by the command that needs them, and by no other."""
    program = """
import subprocess
import sys
from align.cli import dispatch
dispatch(["ls", "--store", sys.argv[1]])
before = {"fsspec", "s3fs", "botocore", "numpy"} & set(sys.modules)
dispatch(["push", "memory://x", "--store", sys.argv[1]])
print(sorted(before), "fsspec" in sys.modules, "torch" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, store.path], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.splitlines()[-1] == "[] True False"


def test_data_travel_where_they_are_named(store: Store, tmp_path: Path):
    """Of data that an adapter was trained on its manifest has the digest. Negative control: named, they travel."""
    rows = {"data.jsonl": b'{"prompt": "a", "chosen": "b", "rejected": "c"}\n'}
    pairs = make(store, tmp_path, 1, files=rows, kind="data", stage="pairs", base=None, text=None)
    store.tag("w/pairs", pairs)
    store.tag("w/dpo", make(store, tmp_path, 2, stage="dpo", data={"data": pairs.files["data.jsonl"]["sha256"]}))
    assert store.push(tmp_path / "far", ["w/dpo"]).artifacts == 1
    assert set(Store(tmp_path / "far").refs()) == {"w/dpo"}
    assert store.push(tmp_path / "far", ["w/dpo", "w/pairs"]).artifacts == 1
    assert Store(tmp_path / "far").resolve("w/pairs") == pairs
