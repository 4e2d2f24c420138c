"""A process that lives and does not come where the others wait for it ends the run, named with its line. The truth is
written by hand, and two processes of this file run as a script, of which one sleeps."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from align.cli.command import dispatch
from align.ground import ranks
from align.ground.errors import InputError
from align.ground.ranks import LATE, STRAGGLER_TIMEOUT
from align.parallel.late import Late
from tests.conftest import ROOT
from tests.training.test_distributed import two_ranks

LIMIT = 5.0
ASLEEP = 15.0


def test_who_is_behind_and_stays_there() -> None:
    """Three looks in a row at a lower number that does not move; who moves, or is behind nobody, is waited for."""
    late = Late(3)
    looks = [[1, 1], [5, 1], [5, 1], [5, 2], [5, 2], [5, 2], [5, 2]]
    assert [late.look(numbers) for numbers in looks] == [None] * 6 + [1]
    assert [Late(3).look([4, 4]) for _ in range(9)] == [None] * 9
    all_work = Late(3)
    assert [all_work.look([4, 4, 4]) for _ in range(9)] == [None] * 9


CASES = {
    "the second sleeps": f"{LATE} 1 of 2 for 5 seconds",
    "the first sleeps": f"{LATE} 0 of 2 for 5 seconds",
    "the second never comes": "It has not come to where all meet",
    "the first works for all": "",
    "one loads after the other": "",
}


@pytest.mark.parametrize("case", [pytest.param(c, marks=[pytest.mark.slow] * bool(i)) for i, c in enumerate(CASES)])
def test_a_late_process_is_named(case: str, tmp_path: Path) -> None:
    """The last two are the controls: work that one does while the others wait for it, for three times as long as
    they may wait, ends well."""
    words = [sys.executable, "-m", "tests.parallel.test_late", case, str(tmp_path)]
    shared = {**os.environ, STRAGGLER_TIMEOUT: str(LIMIT), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    both = [subprocess.Popen(words, env=shared | told, text=True, stderr=subprocess.PIPE) for told in two_ranks()]
    try:
        _, said = both[0].communicate(timeout=120)
        assert (both[0].returncode == 0) is not bool(CASES[case]) and CASES[case] in said, said
        if case.endswith("sleeps"):  # where, too
            assert "test_late.py" in said and "time.sleep(ASLEEP * 100)" in said, said
        if not CASES[case]:
            assert both[1].wait(60) == 0
    finally:
        for process in both:
            process.kill()
            process.communicate()


@pytest.mark.parametrize("given", ["-1", "nan", "abc", "0.1"])
def test_mistakes(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"--straggler-timeout .*expected at least 3 seconds, or 0 to wait for ever"):
        dispatch(["launch", "none.yaml", "--processes", "2", f"--straggler-timeout={given}"])
    monkeypatch.setenv(STRAGGLER_TIMEOUT, given)
    with pytest.raises(InputError, match=f"^{STRAGGLER_TIMEOUT} {given}: expected"):
        ranks.straggler_timeout()


def work(case: str, folder: Path) -> None:
    from align.parallel import late
    from align.training import processes

    late.LOOK, late.AFTER = 0.1, 1000
    first = os.environ["RANK"] == "0"
    (folder / os.environ["RANK"]).touch()
    while len(list(folder.iterdir())) < 2:  # what loads torch slowly is not late
        time.sleep(0.05)
    if case == "the second never comes" and not first:
        time.sleep(ASLEEP * 100)
    if case == "the first works for all" and first:
        time.sleep(ASLEEP)  # before they meet
    processes.from_first(True)
    if case == "the first works for all":
        time.sleep(ASLEEP * first)
        processes.from_first(True)
    if case == "one loads after the other":
        for turn in processes.turns():
            time.sleep(ASLEEP * turn)
    if case == f"the {'first' if first else 'second'} sleeps":
        time.sleep(ASLEEP * 100)
    processes.barrier()


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
