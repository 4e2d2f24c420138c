"""`align launch`: what its processes are told, how it ends when one of them dies or it is asked to stop, and typical
mistakes. The truth is the processes' own exit codes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from align.cli.command import dispatch
from align.ground.errors import AlignError, InputError
from align.ground.ranks import GONE, LAUNCHER
from align.parallel import launch
from align.store import Store, live_runs
from tests.conftest import ROOT, Pipeline


def test_environments_are_torchruns() -> None:
    """Two machines of two processes: ranks 2 and 3 are on the second."""
    told = launch.environments(2, 2, 1, "gpu01:29500")
    assert [(t["RANK"], t["LOCAL_RANK"], t["WORLD_SIZE"], t["LOCAL_WORLD_SIZE"]) for t in told.values()] == [
        ("2", "0", "4", "2"),
        ("3", "1", "4", "2"),
    ]
    assert {(t["MASTER_ADDR"], t["MASTER_PORT"]) for t in told.values()} == {("gpu01", "29500")}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--nproc_per_node", "2"], "did you mean --processes"),
        (["--processes", "0"], "expected at least 1 process"),
        (["--processes", "2", "--nodes", "2"], "--head HOST:PORT go together"),
        (["--processes", "2", "--head", "gpu01:29500"], "--head HOST:PORT go together"),
        (["--processes", "2", "--nodes", "2", "--node", "2", "--head", "gpu01:1"], "a node from 0 to nodes - 1"),
    ],
)
def test_mistakes(words: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        dispatch(["launch", "none.yaml", *words])


def test_a_recipe_is_read_before_processes_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "launch", lambda *_: pytest.fail("processes started"))
    with pytest.raises(InputError, match=r"there is no file none\.yaml"):
        dispatch(["launch", "none.yaml", "--processes", "2"])


@pytest.mark.parametrize("launched", [True, False])
def test_a_process_whose_launcher_is_killed_is_asked_to_stop(launched: bool) -> None:
    """Its parent, a shell, is killed; the control is a process that nobody launched, which goes on."""
    code = "import time; from align.ground import ranks; ranks.follow_launcher(); print(1, flush=True); time.sleep(60)"
    variable = f"{LAUNCHER}=$$" if launched else "OTHER=1"
    shell = ["/bin/sh", "-c", f"{variable} {sys.executable} -c '{code}' & echo $!; wait"]
    parent = subprocess.Popen(shell, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    child, _ = int(parent.stdout.readline()), parent.stdout.readline()
    assert ends(child, 2.5) is False
    parent.kill()
    parent.wait()
    try:
        assert ends(child, 20 if launched else 2.5) is launched
    finally:
        parent.stdout.close()
        with suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def ends(pid: int, within: float) -> bool:
    begun = time.monotonic()
    while time.monotonic() - begun < within:
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().rsplit(")")[-1][:3]:
            return True
        time.sleep(0.05)
    return False


SCRIPTS = {
    "the second fails, and the first misses it": ("0", "the judge is away", 1),
    "the first fails, and the second misses it": ("1", f"{GONE}; see its message", 1),
    "the first says what is wrong with all": ("1", "", 2),
}


@pytest.mark.parametrize("case", SCRIPTS)
def test_who_is_named(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They end within one look at them, nearly always, so that the order of their ends tells nothing."""
    later, words, code = SCRIPTS[case]
    script = tmp_path / "script"
    script.write_text(f'[ $RANK = 0 ] || echo "{words}" >&2; [ $RANK = {later} ] && sleep 0.2; exit {code}')
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(launch, "command", lambda words: (str(script),))
    with pytest.raises((AlignError, SystemExit)) as ended:
        launch.launch([], launch.environments(2, 1, 0, None), str(tmp_path / "logs"))
    if later == "0":
        assert "process 1 of 2 ended with 1" in str(ended.value) and "the judge is away" in str(ended.value)
    else:
        assert isinstance(ended.value, SystemExit) and ended.value.code == code


def test_a_process_that_waits_in_vain_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process is killed; the first, as in a call that waits for it, hears no signal."""
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(launch, "IN_VAIN", 0.5)
    script = tmp_path / "script"
    script.write_text('[ "$RANK" = 1 ] && kill -9 $$; trap "" TERM; while :; do sleep 0.1; done')
    monkeypatch.setattr(launch, "command", lambda words: (str(script),))
    begun = time.monotonic()
    with pytest.raises(AlignError, match="process 1 of 2 was ended by SIGKILL"):
        launch.launch([], launch.environments(2, 1, 0, None), str(tmp_path / "logs"))
    assert time.monotonic() - begun < 15


FIRSTS = {
    "waits": "while :; do sleep 0.1; done",
    "wakes the second": "sleep 0.4; kill -CONT $(cat SECOND)",
    "is suspended too": "kill -STOP $$",
}


@pytest.mark.parametrize("first", FIRSTS)
def test_a_process_that_stands_still_is_ended(first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process is suspended, and the first waits for it; the controls are one that goes on after a while, and
    two that are suspended together, for longer than one may be."""
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(launch, "STILL", 1.0)
    script, second = tmp_path / "script", tmp_path / "second"
    script.write_text(
        f'[ "$RANK" = 1 ] && {{ echo $$ > {second}.new; mv {second}.new {second}; kill -STOP $$; exit 0; }}\n'
        f"while [ ! -e {second} ]; do sleep 0.05; done; echo $$ > {tmp_path}/first; "
        + FIRSTS[first].replace("SECOND", str(second))
    )
    monkeypatch.setattr(launch, "command", lambda words: (str(script),))
    told = launch.environments(2, 1, 0, None)
    if first == "is suspended too":

        def wake() -> None:
            time.sleep(1.5)
            for name in ("first", "second"):
                os.kill(int((tmp_path / name).read_text()), signal.SIGCONT)
                time.sleep(0.3)

        threading.Thread(target=wake, daemon=True).start()
    if first != "waits":
        launch.launch([], told, str(tmp_path / "logs"))
        return
    with pytest.raises(AlignError, match="process 1 of 2 was suspended by SIGSTOP and did not go on for 1 seconds"):
        launch.launch([], told, str(tmp_path / "logs"))
    assert not ends(os.getpid(), 0.1) and ends(int(second.read_text()), 1)


def test_who_only_waits_loads_no_torch(tmp_path: Path) -> None:
    """A launcher of two processes that end at once: what it has loaded then."""
    script = tmp_path / "script"
    script.write_text("")
    code = (
        "import sys; from align.parallel import launch; sys.executable = '/bin/sh'; "
        f"launch.command = lambda words: ({str(script)!r},); "
        f"launch.launch([], launch.environments(2, 1, 0, None), {str(tmp_path)!r}); print('torch' in sys.modules)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    assert subprocess.check_output([sys.executable, "-c", code], env=environment, text=True) == "False\n"


def test_a_process_that_fails_is_named_with_its_last_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second process gets a command that is none; the first waits for longer than this test."""
    told = launch.environments(2, 1, 0, None)
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    script = tmp_path / "script"
    script.write_text('[ "$RANK" = 1 ] && { echo "no such thing" >&2; exit 3; }; sleep 60')
    monkeypatch.setattr(launch, "command", lambda words: (str(script),))
    begun = time.monotonic()
    with pytest.raises(AlignError, match=r"(?s)process 1 of 2 ended with 3.*no such thing"):
        launch.launch([], told, str(tmp_path / "logs"))
    assert time.monotonic() - begun < 20


ASKED = {
    "both answer": ("trap 'exit 75' TERM", 1, True),
    "the second was about to begin": ("[ $RANK = 1 ] || trap 'exit 75' TERM", 1, True),
    "asked twice": ("trap '[ $asked ] && exit 75; asked=1' TERM", 2, True),
    "the second ends as Python does": ("trap 'if [ $RANK = 1 ]; then kill -INT $$; else exit 75; fi' TERM", 1, True),
    "the second is killed": ("trap 'if [ $RANK = 1 ]; then kill -KILL $$; else exit 75; fi' TERM", 1, False),
    "the second does not end": ("trap 'if [ $RANK = 0 ]; then exit 75; fi' TERM", 1, True),
    "the second fails": ("trap 'exit $((RANK ? 3 : 75))' TERM", 1, False),
}


@pytest.mark.parametrize("case", ASKED)
def test_a_stop_that_one_did_not_answer_names_it(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Both processes are asked to stop; the last two cases are the controls, in which not all of them did."""
    answer, times, all_did = ASKED[case]
    script = tmp_path / "script"
    script.write_text(f"{answer}; touch {tmp_path}/$RANK; while :; do sleep 0.05; done")
    monkeypatch.setattr(sys, "executable", "/bin/sh")
    monkeypatch.setattr(launch, "command", lambda words: (str(script),))
    monkeypatch.setattr(launch, "SECONDS", 2)

    def stop() -> None:
        while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
            time.sleep(0.05)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(0.5)

    def unheard(*_: object) -> None:
        """What comes too late does not end the tests."""

    before = signal.signal(signal.SIGTERM, unheard)
    asking = threading.Thread(target=stop, daemon=True)
    asking.start()
    try:
        with pytest.raises((AlignError, SystemExit)) as ended:
            launch.launch([], launch.environments(2, 1, 0, None), str(tmp_path / "logs"))
        asking.join()
        assert signal.getsignal(signal.SIGTERM) is unheard
    finally:
        signal.signal(signal.SIGTERM, before)
    other = "was ended by SIGKILL" if case == "the second is killed" else "ended with 3"
    assert (f"stopped, but process 1 {other}:" in str(ended.value)) is not all_did
    assert (isinstance(ended.value, SystemExit) and ended.value.code == 75) is all_did
    told = capfd.readouterr().err
    assert "stopping: the processes are asked to end, and have 2 seconds\n" in told
    assert ("process 1 did not end within 2 seconds and was killed" in told) is (case == "the second does not end")


def launched(recipe: Path, store: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "align", "launch", str(recipe), "--processes", "2", "--store", str(store), *words]
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def seen(process: subprocess.Popen[str], what: Callable[[], bool]) -> None:
    while process.poll() is None and not what():
        time.sleep(0.05)


@pytest.mark.slow
def test_a_stop_leaves_a_checkpoint_and_a_death_ends_all(trained: Pipeline, tmp_path: Path) -> None:
    """SIGTERM: 75, a checkpoint, and the same command goes on from it. SIGKILL of a process: 1, which one, in 20 s."""
    recipe, store = tmp_path / "r.yaml", tmp_path / "store"
    data = trained.recipe.parent / "sft.jsonl"
    base = ROOT / "data/tiny-base"
    recipe.write_text(
        f"precision: fp32\nparallel: shard\nstages:\n  sft: {{base: {base}, data: {data}, max_steps: 100000, "
        "batch_size: 2, logging_steps: 1}\n"
    )

    def trains(after: int = 0) -> bool:
        return any(step > after for run in live_runs(Store(store)) for step, _ in run.rows)

    process = launched(recipe, store)
    seen(process, trains)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    (kept,) = store.glob("runs/*/checkpoints/checkpoint-*")
    step = int(kept.name.split("-")[1])

    process = launched(recipe, store, "--logs", str(tmp_path / "logs"))
    seen(process, lambda: trains(step))
    found = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout
    begun = time.monotonic()
    os.kill(max(map(int, found.split())), signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and time.monotonic() - begun < 20
    assert "process 1 of 2 was ended by SIGKILL" in errors and (tmp_path / "logs").is_dir(), errors


@pytest.mark.parametrize(("code", "ended", "runs"), [("0", 0, 1), ("1", 1, 3), ("2", 2, 1), ("wait", 75, 1)])
def test_the_recipe_for_one_machine(code: str, ended: int, runs: int, tmp_path: Path) -> None:
    """recipes/launch/one-node.sh beside a stand-in for `align` that ends with `code`, or waits to be asked to stop."""
    align = tmp_path / "align"
    align.write_text(
        f'#!/bin/sh\ntrap "exit 75" TERM\necho "$@" >> {tmp_path}/runs\n'
        f"[ {code} = wait ] || exit {code}\nwhile :; do sleep 0.02; done\n"
    )
    align.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = subprocess.Popen([ROOT / "recipes/launch/one-node.sh", "r.yaml", "--processes", "2"], env=environment)
    while not (tmp_path / "runs").exists():
        time.sleep(0.01)
    if code == "wait":
        process.terminate()
    assert process.wait(20) == ended
    assert (tmp_path / "runs").read_text() == "launch r.yaml --processes 2\n" * runs
