"""The collector removes what nothing reaches or holds, and never anything else, whoever else is at work."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path

import pytest

from align.ground.errors import AlignError, InputError
from align.store import Artifact, Inputs, Store, digest_json, verify
from align.store import garbage as collector
from align.store.access import access_to
from tests.store.conftest import fill, put
from tests.store.test_processes import ROOT, finish, go, lines, start
from tests.store.test_store import contents

KEY = digest_json("what is asked")
OTHER = digest_json("what else is asked")
DATA = b'{"prompt": "a"}\n'

HOLDS = """
import sys
from align.store import Inputs, Store
store = Store(sys.argv[1])
print("ready", flush=True)
with store.run(sys.argv[2], Inputs((sys.argv[3],), (sys.argv[4],))) as run:
    (run.path / ".tmp-scratch").mkdir()
    print("holds", flush=True)
    sys.stdin.readline()
"""

PUTS = """
import contextlib, sys
from pathlib import Path
from align.store import Store
from tests.store.conftest import fill, put
store = Store(sys.argv[1])
print("ready", flush=True)
with store.writing() if sys.argv[3] == "writing" else contextlib.nullcontext():
    artifact = put(store, fill(Path(sys.argv[2]), {"weights": b"new"}))
    print(artifact, flush=True)
    sys.stdin.readline()
    store.tag("new", artifact)
print("named", flush=True)
"""

COLLECTS = (
    "import sys; from align.store import Store; print('ready', flush=True); "
    "Store(sys.argv[1]).collect(delete=True); print('done')"
)


@pytest.fixture
def line(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    """A base in the store; sft on it; pairs from sft; a reward model on pairs, which alone has a name. And junk with a
    child."""
    base = put(store, fill(tmp_path / "base", {"model/config.json": b"{}"}), kind="model", stage="pretrain", base=None)
    on_base = {"model": f"artifact:{base.digest}", "revision": None, "digest": base.digest, "quantize": None}
    sft = put(store, fill(tmp_path / "sft", {"weights": b"sft", "tokenizer/vocab": b"shared"}), base=on_base)
    pairs = put(
        store,
        fill(tmp_path / "pairs", {"data.jsonl": DATA}),
        kind="data",
        stage="pairs",
        base=None,
        parents={"parent": sft},
    )
    read = {"data": pairs.files["data.jsonl"]["sha256"]}
    reward = put(
        store, fill(tmp_path / "reward", {"weights": b"reward"}), kind="reward", stage="reward", base=None, data=read
    )
    junk = put(store, fill(tmp_path / "junk", {"weights": b"junk", "tokenizer/vocab": b"shared"}))
    child = put(store, fill(tmp_path / "child", {"weights": b"child"}), parents={"parent": junk})
    store.tag("reward", reward)
    return {"base": base, "sft": sft, "pairs": pairs, "reward": reward, "junk": junk, "child": child}


def there(store: Store, line: dict[str, Artifact]) -> set[str]:
    return {name for name, artifact in line.items() if store.manifest_path(artifact.digest).exists()}


def test_what_no_name_reaches_goes(store: Store, line: dict[str, Artifact]):
    """The named reward model keeps its data, the data's parent and that one's base; dry by default; shared bytes
    stay."""
    before = contents(store.path)
    garbage = store.collect()
    assert contents(store.path) == before, "without delete it only says what would go"
    assert garbage.artifacts == [line["child"].digest, line["junk"].digest], "descendants first"
    assert {path.read_bytes() for path in garbage.objects} == {b"junk", b"child"}
    manifests = sum(store.manifest_path(digest).stat().st_size for digest in garbage.artifacts)
    assert garbage.size == manifests + len(b"junk") + len(b"child")
    store.collect(delete=True)
    assert there(store, line) == {"base", "sft", "pairs", "reward"} and store.verify() == []
    assert before.keys() - contents(store.path).keys() == {
        path.relative_to(store.path).as_posix()
        for path in [*garbage.objects, *map(store.manifest_path, garbage.artifacts)]
    }
    store.untag("reward")
    assert len(store.collect(delete=True).artifacts) == 4 and there(store, line) == set(), (
        "negative control: the name had kept them"
    )
    assert store.collect().artifacts == [] and not list(store.path.glob("objects/*/*"))


def test_reading_a_store_that_is_not_there_makes_none(tmp_path: Path):
    assert Store(tmp_path / "none").collect(delete=True).size == 0 and list(tmp_path.iterdir()) == []


def test_answers_caches_and_runs_go_with_their_artifacts(store: Store, line: dict[str, Artifact]):
    for key, name in ((KEY, "reward"), (OTHER, "junk")):
        with store.run(key) as run:
            run.finish(line[name], {"seconds": 1.0})
        shutil.copytree(store.folder(line[name]), store.path / "cache" / line[name].digest)  # by an earlier version
        (store.path / "runs" / key / "checkpoints").mkdir()  # a process that waited for the key makes it anew
    store.collect(delete=True)
    assert store.asked(KEY) == line["reward"] and store.asked(OTHER) is None
    assert [path.name for path in (store.path / "cache").iterdir() if path.is_dir()] == [line["reward"].digest[:32]]
    assert [path.name for path in (store.path / "runs").iterdir()] == [KEY] and store.cost(line["reward"])
    assert not (store.path / "runs" / KEY / "checkpoints").exists() and store.verify() == []


def test_unfinished_files_go(store: Store, line: dict[str, Artifact]):
    """Wherever a killed process may leave them, but in a run that somebody holds."""
    fill(
        store.path,
        {
            f"{place}/.tmp-1-a": b"x"
            for place in ("objects", "objects/ab", "artifacts", "refs", "refs/q", "asked", "places")
        },
    )
    fill(
        store.path,
        {"cache/.tmp-1-folder/deep/file": b"x", f"runs/{KEY}/.tmp-1-scratch/out/file": b"x", "cache/hashes": b"kept"},
    )
    with store.run(OTHER) as run:
        fill(run.path, {".tmp-scratch/out/file": b"at work"})
        store.collect(delete=True)
        assert [path.parent.name for path in store.path.rglob(".tmp-*")] == [OTHER]
        assert (run.path / ".tmp-scratch/out/file").read_bytes() == b"at work" and run.checkpoints.is_dir()
    store.collect(delete=True)
    assert not list(store.path.rglob(".tmp-*")) and (store.path / "cache/hashes").exists()


def test_what_a_running_stage_holds_stays(store: Store, line: dict[str, Artifact]):
    """Another process reads `child` and the pairs; no name reaches them any more. Once it is killed, nothing keeps them
    (the control)."""
    read = line["pairs"].files["data.jsonl"]["sha256"]
    stage = start(HOLDS, store.path, KEY, line["child"].digest, read)
    assert lines(stage, 1) == ["holds"]
    store.untag("reward")
    garbage = store.collect(delete=True)
    assert there(store, line) == {"base", "sft", "pairs", "junk", "child"} and garbage.artifacts == [
        line["reward"].digest
    ]
    assert len(garbage.held) == 5 and (store.path / "runs" / KEY / ".tmp-scratch").is_dir() and store.verify() == []
    stage.kill()
    finish(stage)
    store.collect(delete=True)
    assert there(store, line) == set() and not (store.path / "runs" / KEY).exists()


def test_one_that_waits_for_the_key_holds_too(store: Store, line: dict[str, Artifact]):
    with store.run(KEY, Inputs((line["child"].digest,))):
        stage = start(HOLDS, store.path, KEY, line["child"].digest, "0" * 64)
        time.sleep(0.3)  # it waits for the lock now
    assert lines(stage, 1) == ["holds"]
    store.collect(delete=True)
    assert "junk" in there(store, line) and (store.path / "runs" / KEY / "lock").exists()
    go(stage)
    finish(stage)


def test_inputs_that_are_gone_are_refused(store: Store, line: dict[str, Artifact]):
    """Between finding an input and holding it a collector may have been there; the stage says so and does not begin."""
    store.collect(delete=True)
    with (
        pytest.raises(AlignError, match=f"has no artifact {line['child'].digest}"),
        store.run(KEY, Inputs((line["child"].digest,))),
    ):
        pytest.fail("must not begin")


@pytest.mark.parametrize("writing", [True, False])
def test_a_commit_without_its_name_yet(writing: bool, store: Store, line: dict[str, Artifact], tmp_path: Path):
    """Inside `writing` the collector waits until the artifact has its name. Outside (the control) it takes the artifact
    away."""
    writer = start(PUTS, store.path, tmp_path / "new", "writing" if writing else "bare")
    (digest,) = lines(writer, 1)
    sweeper = start(COLLECTS, store.path)
    if writing:
        with pytest.raises(subprocess.TimeoutExpired):
            sweeper.wait(0.5)
    else:
        finish(sweeper)
    go(writer)
    out, err = finish(writer)
    assert (out == "named") == writing and (writing or "has no artifact" in err)
    finish(sweeper)
    assert store.manifest_path(digest).exists() == writing and store.verify() == [] and "junk" not in there(store, line)


def test_writers_wait_for_the_collector_and_say_so(store: Store, line: dict[str, Artifact], tmp_path: Path):
    with access_to(store.path).alone():
        program = (
            "import sys; from align.store import Store; print('ready', flush=True); "
            "Store(sys.argv[1]).tag('late', sys.argv[2])"
        )
        writer = start(program, store.path, line["junk"].digest)
        with pytest.raises(subprocess.TimeoutExpired):
            writer.wait(0.5)
        assert "late" not in store.refs()
    _, err = finish(writer)
    assert "`align gc` is at work" in err and store.refs()["late"] == line["junk"].digest


def test_a_stream_of_writers_does_not_keep_the_collector_out(store: Store, tmp_path: Path):
    """Two writers whose locks overlap all the time; the gate lets the collector in between."""
    program = (
        "import sys, time; from align.store import Store; store = Store(sys.argv[1]); print('ready', flush=True)\n"
    )
    program += "while True:\n    with store.writing(): time.sleep(0.05)"
    fill(store.path, {"objects/.tmp-1-a": b"x"})
    writers = [start(program, store.path) for _ in range(2)]
    begun = time.monotonic()
    for _ in range(5):
        store.collect(delete=True)
    assert time.monotonic() - begun < 10 and not (store.path / "objects/.tmp-1-a").exists()
    for writer in writers:
        writer.kill()
        finish(writer)


def test_a_stopped_run_can_go_on(store: Store, line: dict[str, Artifact]):
    """Its checkpoints stay, and what it reads; `checkpoints` gives both up. A run that left none keeps nothing."""
    for key, left in ((KEY, True), (OTHER, False)):
        with pytest.raises(KeyboardInterrupt), store.run(key, Inputs((line["child"].digest,))) as run:
            if left:
                fill(run.checkpoints, {"checkpoint-3/state": b"state"})
            else:
                (run.checkpoints / "unfinished").mkdir(parents=True)
            raise KeyboardInterrupt
    garbage = store.collect(delete=True)
    assert garbage.stopped == [store.path / "runs" / KEY] and len(garbage.held) == 2
    assert there(store, line) == set(line) and not (store.path / "runs" / OTHER).exists()
    with store.run(KEY, Inputs((line["child"].digest,))) as run:
        assert (run.checkpoints / "checkpoint-3/state").read_bytes() == b"state"
    store.collect(delete=True, checkpoints=True)
    assert there(store, line) == {"base", "sft", "pairs", "reward"} and not (store.path / "runs" / KEY).exists()


def test_holding_from_python(store: Store, line: dict[str, Artifact]):
    """What a recipe at work has made stays when its name moves."""
    with store.hold() as hold:
        assert not (store.path / "holds").exists()
        hold.add(line["child"])
        store.collect(delete=True)
        assert there(store, line) == set(line)
    assert list((store.path / "holds").iterdir()) == []
    fill(store.path, {"holds/1-killed": store.manifest_path(line["child"].digest).name.encode()})
    store.collect(delete=True)
    assert "child" not in there(store, line) and list((store.path / "holds").iterdir()) == []


def test_a_recipe_holds_what_its_names_stood_for(store: Store, line: dict[str, Artifact]):
    from align.pipeline.pinned import Pinned

    for held in (True, False):
        with store.hold() as hold:
            recipe = Pinned(store, hold if held else None)
            recipe.tag("r/sft", line["junk"])
            store.tag("r/sft", line["reward"])  # another run of the recipe, with other settings
            store.collect(delete=True)
            assert ("junk" in there(store, line)) == held


def test_a_stage_holds_its_parent(store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch):
    """A whole stage: while it works its parent loses its name and another process collects; what it makes keeps the
    parent afterwards."""
    from align.recipe import Ref, StageConfig
    from align.stage.describe import Outcome, Stage
    from align.stage.execute import execute
    from align.stage.workbench import Workbench

    class Config(StageConfig):
        parent: Ref

    def work(bench: Workbench) -> Outcome:
        store.untag("mine")
        finish(start(COLLECTS, store.path))
        return Outcome(
            fill(bench.folder, {"data.jsonl": store.read(bench.parents["parent"], "data.jsonl")}), "data", None, {}
        )

    monkeypatch.delenv("RANK", raising=False)
    store.untag("reward")
    store.tag("mine", line["pairs"])
    made = execute(Stage("toy", 1, Config, {"parent": ("data",)}, work), Config(parent="mine", name="made"), store)
    finish(start(COLLECTS, store.path))
    assert there(store, line) == {"base", "sft", "pairs"} and store.resolve("made") == made and store.verify() == []


def test_nothing_goes_while_something_reached_is_damaged(store: Store, line: dict[str, Artifact]):
    """What a lost manifest reaches cannot be known. One that nothing reaches does not matter."""
    path = store.manifest_path(line["junk"].digest)
    path.chmod(0o644)
    path.write_bytes(b"{}")
    assert store.collect().artifacts[0] == line["junk"].digest
    for harm, message in (
        (lambda: store.manifest_path(line["sft"].digest).unlink(), f"artifact {line['sft'].digest} is not there"),
        (lambda: fill(store.path, {"refs/reward": b"?\n"}), "holds no digest"),
    ):
        harm()
        before = contents(store.path)
        with pytest.raises(AlignError, match=message) as error:
            store.collect(delete=True)
        assert "Nothing was removed" in str(error.value) and contents(store.path) == before


def test_names_that_cannot_be_read_are_not_passed_over(
    store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
):
    """A folder of names that belongs to another user: a collector that left it out would remove what they stand for."""
    store.tag("private/name", line["junk"])
    scan = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("private"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", refuse)
        with pytest.raises(AlignError, match="private: Permission denied"):
            store.collect(delete=True)
    assert there(store, line) == set(line)


def test_nothing_goes_when_runs_cannot_be_read(
    store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
):
    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    with store.run(KEY):
        pass
    monkeypatch.setattr(collector, "read_cost", refuse)
    with pytest.raises(AlignError, match=r"cannot be read, .* Nothing was removed. Collect as its user"):
        store.collect(delete=True)
    assert there(store, line) == set(line)


@pytest.mark.parametrize("inside_out", [False, True])
def test_a_collector_killed_between_any_two_removals_leaves_a_sound_store(
    inside_out: bool, store: Store, line: dict[str, Artifact], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Stopped before its n-th removal for every n, and run again. The other way round (the control) the store would be
    damaged."""
    for key, name in ((KEY, "junk"), (OTHER, "child")):
        store.remember(key, line[name])
    removed = 0

    def unlink(path: Path, missing_ok: bool = False) -> None:
        nonlocal removed
        if removed:
            raise KeyboardInterrupt
        removed += 1
        delete(path, missing_ok=missing_ok)

    delete = Path.unlink
    garbage = store.collect()
    damaged = rounds = 0
    while garbage.answers or garbage.artifacts or garbage.objects:
        removed, rounds = 0, rounds + 1
        if inside_out:
            garbage.artifacts.reverse()
        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            with pytest.raises(KeyboardInterrupt) if rounds < 6 else nullcontext():
                garbage.remove(store)
        damaged += len(store.verify())
        garbage = store.collect()
    assert rounds == 6 and there(store, line) == {"base", "sft", "pairs", "reward"}, (
        "2 answers, 2 manifests, 2 objects, one at a time"
    )
    assert (damaged > 0) == inside_out and store.verify() == []


def test_verify_beside_a_collector_finds_no_damage(
    store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
):
    """The collector comes when verify has read the manifests and not yet the objects. A store that really lost one is
    the control."""
    graph = verify.Graph

    def read(layout: Store) -> object:
        found = graph(layout)
        store.collect(delete=True)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(verify, "Graph", read)
        assert store.verify() == [] and there(store, line) == {"base", "sft", "pairs", "reward"}
    store.object_path(line["reward"].files["weights"]["sha256"]).unlink()
    assert len(store.verify()) == 1


def test_a_name_that_moves_while_it_is_resolved(
    store: Store, line: dict[str, Artifact], monkeypatch: pytest.MonkeyPatch
):
    """It pointed at junk; before its manifest is read the name moves on and junk is collected."""
    store.tag("moving", line["junk"])
    pointer = Store.pointer

    def slow(self: Store, path: Path) -> str | None:
        found = pointer(self, path)
        if path.name == "moving" and found == line["junk"].digest:
            monkeypatch.undo()
            store.tag("moving", line["reward"])
            store.collect(delete=True)
        return found

    monkeypatch.setattr(Store, "pointer", slow)
    assert store.resolve("moving") == line["reward"] and "junk" not in there(store, line)


def test_untag(store: Store, line: dict[str, Artifact]):
    store.tag("deep/er/name", line["junk"])
    store.tag("deep/other", line["junk"])
    assert store.untag("deep/er/name") == line["junk"].digest
    assert not (store.path / "refs/deep/er").exists() and store.refs().keys() == {"deep/other", "reward"}
    for wrong in ("deep", "deep/er/name", "../lock", ""):
        with pytest.raises(InputError, match="is no name"):
            store.untag(wrong)
    assert store.resolve(line["junk"].digest) == line["junk"], "the artifact stays"


def test_a_program_without_torch_collects(store: Store, line: dict[str, Artifact]):
    program = (
        "import sys; from align.store import Store; Store(sys.argv[1]).collect(delete=True); assert 'torch' "
        "not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program, store.path], cwd=ROOT, check=True)
    assert "junk" not in there(store, line)
