"""Judges as files: what they may be, what they may give back, what their digest covers, and what is said where they
fail."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
import torch

from align import judges
from align.data.records import Message, Prompt
from align.ground.errors import AlignError, InputError
from align.judges import program

PROMPTS = [
    Prompt((Message("user", f"question {i}"),), {"answer": str(i), "nested": {"l": [i]}}, f"rows.jsonl:{i + 1}")
    for i in range(2)
]
TEXTS = ["one", "three"]
ENDED = "it called os._exit, which would have ended Align"


def write(folder: Path, text: str, name: str = "judge.py") -> str:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return f"{folder / name}:score"


def scores(name: str) -> list[float | None]:
    return judges.load(name, PROMPTS)(PROMPTS, TEXTS, [[1], [2, 3]])


def said(name: str) -> str:
    with pytest.raises(AlignError) as error:
        scores(name)
    assert "\n" not in str(error.value)
    return str(error.value).replace(str(Path(name).parent) + "/", "")


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ("None", "gave None. Expected a list of 2 numbers, or None for no score: one for each answer."),
        ("1.0", "gave 1.0. Expected a list of 2 numbers"),
        ("'12'", "gave '12'. Expected a list of 2 numbers"),
        ("{1: 2, 3: 4}", "gave {1: 2, 3: 4}. Expected a list"),
        ("{1, 2}", "gave {1, 2}. Expected a list"),
        ("np.array(1.0)", "gave array(1.). Expected a list"),
        ("[1.0]", "gave 1 scores for 2 answers: [1.0]. Expected a list"),
        ("np.ones((1, 2))", "gave 1 scores for 2 answers: array([[1., 1.]])."),
        (
            "np.ones((2, 2))",
            "gave answer 1 of 2, to the prompt 'question 0' (rows.jsonl:1), array([1., 1.]). Expected a finite number, "
            "or None",
        ),
        (
            "[1.0, float('nan')]",
            "gave answer 2 of 2, to the prompt 'question 1' (rows.jsonl:2), nan. Expected a finite number, or None",
        ),
        ("[1.0, -float('inf')]", "gave answer 2 of 2, to the prompt 'question 1' (rows.jsonl:2), -inf."),
        ("['1', 2]", "gave answer 1 of 2, to the prompt 'question 0' (rows.jsonl:1), '1'."),
        ("[[1], [2]]", "(rows.jsonl:1), [1]."),
        ("[1j, 2]", "(rows.jsonl:1), 1j."),
        ("[10**400, 2]", "(rows.jsonl:1), 1000"),
        (
            "[-1e308, 2]",
            "(rows.jsonl:1), -1e+308. Expected a finite number, or None for no score, of at most 1e+18 either way.",
        ),
    ],
)
def test_wrong_scores_are_named(returned: str, message: str, tmp_path: Path) -> None:
    found = said(write(tmp_path, f"import numpy as np\ndef score(completions, **kwargs):\n    return {returned}\n"))
    assert found.startswith("judge: judge.py:score gave ") and message in found


def test_right_scores(tmp_path: Path) -> None:
    forms = {
        "[True, None]": [1.0, None],
        "np.array([1, 2])": [1.0, 2.0],
        "(x for x in (1, 2.5))": [1.0, 2.5],
        "[np.float32(0.5), 2]": [0.5, 2.0],
        "np.ma.array([1.0, 2.0], mask=[1, 0])": [None, 2.0],
    }
    forms |= {"torch.ones(2, requires_grad=True)": [1.0, 1.0], "(torch.tensor(3), None)": [3.0, None]}
    for returned, expected in forms.items():
        text = f"import numpy as np, torch\ndef score(completions, **kwargs):\n    return {returned}\n"
        assert scores(write(tmp_path, text)) == expected


@pytest.mark.parametrize(
    ("signature", "message"),
    [
        (
            "completions, answr, **kw",
            "needs 'answr', which it does not get. It gets prompts, completions, completion_ids, and of the data the ",
        ),
        ("completions, answr, **kw", "the columns answer, nested."),
        ("completions, *, answr, **kw", "needs 'answr'"),
        (
            "completions, trainer_state, **kw",
            "needs 'trainer_state', which exists only inside TRL's trainer; give it a default, such as",
        ),
        ("completions, log_metric, **kw", "needs 'log_metric', which exists only inside TRL's trainer"),
        (
            "completions, completion, **kw",
            "needs 'completion', a column that TRL keeps from reward functions; rename it in data and judge.",
        ),
        (
            "prompts, completions",
            "takes no 'completion_ids'. As in TRL, it is called by keyword with all there is: add **kwargs.",
        ),
        ("completions, /, **kw", "takes 'completions' by position alone"),
    ],
)
def test_signatures_are_refused_before_a_call(signature: str, message: str, tmp_path: Path) -> None:
    name = write(tmp_path, f"def score({signature}):\n    return [0.0] * len(completions)\n")
    with pytest.raises(InputError) as error:
        judges.load(name, PROMPTS)
    assert str(error.value).startswith(f"judge: {name} ({tmp_path}/judge.py:1) ") and message in str(error.value)


def test_signatures_that_will_do(tmp_path: Path) -> None:
    """Negative controls: defaults, keyword-only, a class with __call__; a column that only a later row has is None
    elsewhere."""
    for signature in (
        "completions, trainer_state=None, **kw",
        "prompts, completions, completion_ids, answer, nested",
        "*, completions, **kw",
    ):
        assert scores(write(tmp_path, f"def score({signature}):\n    return [1] * len(completions)\n")) == [1.0, 1.0]
    rows = [PROMPTS[0], Prompt(PROMPTS[1].messages, {"late": 5}, "rows.jsonl:2")]
    loaded = judges.load(write(tmp_path, "def score(late, **kw):\n    return late\n"), rows)
    assert loaded(rows, TEXTS) == [None, 5.0] and loaded(rows[:1], TEXTS[:1]) == [None]
    taken = [Prompt(PROMPTS[0].messages, {"prompts": "x"}, "rows.jsonl:7")]
    with pytest.raises(
        InputError, match=r'rows.jsonl:7: the column "prompts" is what a judge gets its prompts as\. Rename it'
    ):
        judges.load(write(tmp_path, "def score(**kw):\n    return []\n"), taken)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import sys\ndef score(**kw):\n    sys.exit(0)\n", "judge: judge.py:score failed: sys.exit(0) (judge.py:3)."),
        ("def score(**kw):\n    return 1 / 0\n", "failed: ZeroDivisionError: division by zero (judge.py:2)."),
        ("def score(**kw):\n    raise KeyboardInterrupt\n", "failed: KeyboardInterrupt (judge.py:2)."),
        ("async def score(**kw):\n    raise SystemExit(0)\n", "failed: sys.exit(0) (judge.py:2)."),
        (
            "async def score(**kw):\n    import asyncio\n    raise asyncio.CancelledError\n",
            "failed: CancelledError (judge.py:3).",
        ),
        ("def score(**kw):\n    yield 1\n    raise OSError('gone')\n", "failed: OSError: gone (judge.py:3)."),
        (
            "class Odd(Exception):\n    def __str__(self):\n        1 / 0\ndef score(**kw):\n    raise Odd\n",
            "failed: Odd (judge.py:5).",
        ),
        ("def score(**kw):\n    raise GeneratorExit\n", "failed: GeneratorExit (judge.py:2)."),
        ("async def score(**kw):\n    raise GeneratorExit\n", "failed: GeneratorExit (judge.py:2)."),
        (
            "def score(**kw):\n    return kw['solution']\n",
            "KeyError: 'solution' (judge.py:2). It gets prompts, completions, completion_ids, and of",
        ),
        ("import json\ndef score(**kw):\n    json.loads('{')\n", "(judge.py:3)."),
        (
            "import re\ndef score(completions, **kw):\n    re.match('x', completions[0])\n",
            "so is the completion: completion[0]['content'].",
        ),
        (
            "import sys\ndef score(**kw):\n    return []\nsys.exit(0)\n",
            "judge: judge.py does not run: sys.exit(0) (judge.py:4). Put what is not",
        ),
        ("import os\ndef score(**kw):\n    os._exit(0)\n", f"judge: judge.py:score failed: {ENDED} (judge.py:3)."),
        (
            "from os import _exit\ndef score(**kw):\n    _exit(status=3)\n",
            f"judge: judge.py:score failed: {ENDED} (judge.py:3).",
        ),
        (
            "import os\nasync def score(**kw):\n    os._exit(0)\n",
            f"judge: judge.py:score failed: {ENDED} (judge.py:3).",
        ),
        (
            "import os\ndef score(**kw):\n    os.execlp('true', 'true')\n",
            "it called os.execv, which would have ended Align (judge.py:3).",
        ),
        ("import os\nos._exit(0)\n", f"judge: judge.py does not run: {ENDED} (judge.py:2). Put what is not"),
        ("import nowhere\n", "does not run: ModuleNotFoundError: No module named 'nowhere' (judge.py:1)."),
        ("x = 1\ndef score(:\n", "judge: judge.py:2 is no Python: invalid syntax."),
        ("def rate(**kw):\n    return []\n", "judge: judge.py has no function 'score'; it has rate."),
    ],
)
def test_failures_name_judge_and_line(text: str, message: str, tmp_path: Path) -> None:
    assert message in said(write(tmp_path, text))


def test_a_judge_ends_the_processes_that_it_forks(tmp_path: Path) -> None:
    """The control of `os._exit` above; and once the judge is done, it is Python's own again."""
    original = os._exit
    text = "import os\ndef score(**kw):\n    if not (child := os.fork()):\n        os._exit(7)\n"
    assert scores(write(tmp_path, text + "    return 2 * [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])]\n")) == [
        7.0,
        7.0,
    ]
    assert os._exit is original


@pytest.mark.parametrize("kind", ["", "async "])
def test_a_judge_that_takes_long_is_told_of(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Time and again, while it goes on and no longer. The control: one that takes no time, beside it."""
    monkeypatch.setattr(program, "PATIENCE", 0.2)
    name = write(tmp_path, f"import time\n{kind}def score(**kw):\n    time.sleep(1.1)\n    return [1, 2]\n")
    assert scores(name) == [1.0, 2.0]
    scores(write(tmp_path, f"{kind}def score(**kw):\n    return [1, 2]\n", "quick.py"))
    time.sleep(0.5)
    lines = capsys.readouterr().err.splitlines()
    line = f"judge: {tmp_path}/judge.py is still scoring 2 answers, for 0:0{{}} now"
    assert 3 <= len(lines) <= 5 and set(lines) <= {line.format(n) for n in (0, 1)}


def test_ctrl_c_is_no_failure_of_the_judge(tmp_path: Path) -> None:
    """An interrupt that arrives while the judge runs stays one; its own `raise KeyboardInterrupt`, above, does not."""
    name = write(
        tmp_path,
        "import os, signal\ndef score(**kw):\n    os.kill(os.getpid(), signal.SIGINT)\n    for i in range(10**7): "
        "pass\n",
    )
    with pytest.raises(KeyboardInterrupt):
        scores(name)


def test_a_judge_sees_copies(tmp_path: Path) -> None:
    text = """
def score(prompts, completions, completion_ids, answer, nested, **kw):
    prompts[0][0]["content"] = "evil"; completions.clear(); completion_ids[0].append(9)
    answer[0] = "evil"; nested[0]["l"].append(9)
    return [1, 2]
def second(prompts, completions, completion_ids, answer, nested, **kw):
    return [len(prompts[0][0]["content"]) + nested[0]["l"][-1], len(completions) + len(completion_ids[0])]
"""
    name, ids = write(tmp_path, text), [[1], [2, 3]]
    loaded = judges.load_all({"first": name, "second": name.replace("score", "second")}, PROMPTS)
    assert judges.call(loaded, PROMPTS, TEXTS, ids)["second"] == [len("question 0") + 0, 3]
    assert PROMPTS[0].columns == {"answer": "0", "nested": {"l": [0]}} and ids == [[1], [2, 3]]


def test_the_digest_covers_what_is_imported_from_the_folder(tmp_path: Path) -> None:
    """Helpers of helpers, packages, imports inside functions; what lies beside and is not imported does not count, nor
    does the place."""
    text = "import rubric\ndef score(**kw):\n    from lib.deep import two\n    return [rubric.RATE, two()]\n"
    files = {
        "rubric.py": "from limits import RATE\n",
        "limits.py": "RATE = 1\n",
        "lib/deep/__init__.py": "from .more import two\n",
    }
    files |= {"lib/deep/more.py": "def two(): return 2\n", "stray.py": "RATE = 3\n"}
    for place in ("here", "there"):
        for name, content in {**files, "judge.py": text}.items():
            write(tmp_path / place, content, name)
    name = f"{tmp_path}/here/judge.py:score"
    before = judges.digest(name)
    assert scores(name) == [1.0, 2.0] and judges.digest(f"{tmp_path}/there/judge.py:score") == before
    write(tmp_path / "here", "RATE = 4\n", "stray.py")
    assert judges.digest(name) == before
    for changed in ("judge.py", "rubric.py", "limits.py", "lib/deep/__init__.py", "lib/deep/more.py"):
        path = tmp_path / "here" / changed
        kept = path.read_text()
        path.write_text(kept + "# changed\n")
        assert judges.digest(name) != before, changed
        path.write_text(kept)
    assert judges.digest(name) == before


def test_what_was_hashed_is_what_runs(tmp_path: Path) -> None:
    """A helper of the same size and time is read anew; a file that changed since the stage was asked for is refused."""
    name = write(tmp_path, "import rubric\ndef score(**kw):\n    return [rubric.RATE] * 2\n")
    for rate in (1, 2):
        write(tmp_path, f"RATE = {rate}\n", "rubric.py")
        os.utime(tmp_path / "rubric.py", (1e9, 1e9))
        held = judges.digest(name)
        assert scores(name) == [rate, rate]
    assert "rubric" not in sys.modules and not list(tmp_path.rglob("*.pyc"))
    assert judges.load(name, PROMPTS, held)
    write(tmp_path, "RATE = 3\n", "rubric.py")
    with pytest.raises(InputError, match="or a file that it imports, changed after this run had begun"):
        judges.load(name, PROMPTS, held)


def test_imports_that_cannot_be_seen_beforehand_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hidden = "import importlib\ndef score(**kw):\n    return [importlib.import_module('hidden_rubric').RATE] * 2\n"
    name = write(tmp_path, hidden)
    write(tmp_path, "RATE = 1\n", "hidden_rubric.py")
    assert "loaded hidden_rubric.py, which no import statement names, so its digest does not cover that file." in said(
        name
    )
    sys.modules.pop("hidden_rubric")
    outside = write(tmp_path / "lib", "RATE = 1\n", "outside_rubric.py").removesuffix(":score")
    text = (
        f"import sys\nsys.path.insert(0, {str(tmp_path / 'lib')!r})\nimport outside_rubric\ndef score(**kw):\n    "
        "return [1, 2]\n"
    )
    assert scores(write(tmp_path / "other", text)) == [1.0, 2.0] and str(tmp_path / "lib") not in sys.path
    assert f"other/judge.py also runs {outside}, which lies outside its folder" in capsys.readouterr().err
    sys.modules.pop("outside_rubric")


def test_a_helper_named_as_an_installed_module_is_refused(tmp_path: Path) -> None:
    """Unless it is not imported, or is a folder without __init__.py, which Python itself puts last."""
    name = write(
        tmp_path, "import random, yaml\ndef score(**kw):\n    return [random.random() < 2, bool(yaml.safe_load('1'))]\n"
    )
    (tmp_path / "yaml").mkdir()
    write(tmp_path, "x = 1\n", "yaml/part.py")
    write(tmp_path, "raise RuntimeError\n", "json.py")
    assert scores(name) == [1.0, 1.0]
    write(tmp_path, "x = 1\n", "random.py")
    assert "imports random, which is random.py and an installed module too. Rename the file." in said(name)


def test_judges_of_one_name_do_not_meet(tmp_path: Path) -> None:
    """Nor do their helpers; a judge may be called as a module of Python's is."""
    names = {}
    for i, folder in enumerate(("a", "b")):
        names[folder] = write(
            tmp_path / folder, "async def score(**kw):\n    import rubric\n    return [rubric.RATE] * 2\n"
        )
        write(tmp_path / folder, f"RATE = {i}\n", "rubric.py")
    names["math"] = write(tmp_path, "import math\ndef score(**kw):\n    return [math.floor(7.5)] * 2\n", "math.py")
    found = judges.call(judges.load_all(names, PROMPTS), PROMPTS, TEXTS)
    assert found == {"a": [0.0, 0.0], "b": [1.0, 1.0], "math": [7.0, 7.0]}
    assert not {"judge", "rubric"} & sys.modules.keys() and sys.modules["math"].__name__ == "math"


def test_asynchronous_judges_wait_side_by_side(tmp_path: Path) -> None:
    """Each waits for the other, which only works at once; a lock made in the first call belongs to the loop of the
    second."""
    text = """
import asyncio
here, there, lock = asyncio.Event(), asyncio.Event(), asyncio.Lock()
async def score(**kw):
    here.set(); await asyncio.wait_for(there.wait(), 5)
    async with lock: await asyncio.sleep(0)
    return [1, 2]
async def other(**kw):
    there.set(); await asyncio.wait_for(here.wait(), 5)
    return [3, None]
"""
    name = write(tmp_path, text)
    loaded = judges.load_all({"a": name, "b": name.replace("score", "other")}, PROMPTS)
    for _ in range(2):
        assert judges.call(loaded, PROMPTS, TEXTS) == {"a": [1.0, 2.0], "b": [3.0, None]}


PARALLEL = """
from __future__ import annotations
import multiprocessing, pickle
from dataclasses import dataclass
from rubric import Rubric

@dataclass
class Answer:
    text: str
    rubric: Rubric

def rate(answer: Answer) -> float:
    print("from a child")
    return answer.rubric.per_letter * len(answer.text)

def score(completions, **kwargs):
    answers = [Answer(c[0]["content"], Rubric(2.0)) for c in completions]
    assert pickle.loads(pickle.dumps(answers)) == answers
    with multiprocessing.get_context(METHOD).Pool(2) as pool:
        return pool.map(rate, answers)
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_dataclasses_pickling_and_processes(method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """And what the children print goes where the judge's own prints go: not to stdout, which is for what Align
    answers."""
    name = write(tmp_path, f"METHOD = {method!r}\n" + PARALLEL.split("import annotations\n")[1], "fast_judge.py")
    (tmp_path / "fast_judge.py").write_text(
        "from __future__ import annotations\n" + (tmp_path / "fast_judge.py").read_text()
    )
    write(
        tmp_path, "from dataclasses import dataclass\n@dataclass\nclass Rubric:\n    per_letter: float\n", "rubric.py"
    )
    assert scores(name) == [6.0, 10.0]
    out, err = capfd.readouterr()
    assert out == "" and err.count("from a child") == 2


def test_what_a_judge_prints_is_not_an_answer(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    text = (
        "import os\nprint('loading')\ndef score(**kw):\n    print('judging'); os.system('echo by hand'); "
        "os.chdir('/')\n    return [1, 2]\n"
    )
    where = os.getcwd()
    scores(write(tmp_path, text))
    print("an answer", flush=True)  # negative control: stdout is whole again
    out, err = capfd.readouterr()
    assert (
        out == "an answer\n" and all(line in err for line in ("loading", "judging", "by hand")) and os.getcwd() == where
    )


def test_a_module_of_a_package_is_no_judge(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is imported in such a file: from trl\.rewards import think_format_reward\."):
        judges.load("trl.rewards:think_format_reward")


@pytest.mark.parametrize(
    "change", ["set_grad_enabled(False)", "set_default_dtype(torch.float64)", "set_default_device('meta')"]
)
def test_a_judge_leaves_torch_as_it_was(change: str, tmp_path: Path) -> None:
    """Negative control: within the judge it holds. Also where it is called without gradients, and set while the file is
    loaded."""
    does = f"torch.{change}"
    state = (
        "(torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_default_dtype(), "
        "torch.get_default_device())"
    )
    for at_load in (False, True):
        text = f"""
import torch
{does if at_load else ""}
def score(completions, **kw):
    before = {state}
    {"pass" if at_load else does}
    assert {at_load} or before != {state} or not before[0]
    return [float(before[0])] * len(completions)
"""
        for grad in (True, False):
            with torch.set_grad_enabled(grad):
                before = eval(state)
                assert scores(write(tmp_path, text)) == [float(grad)] * 2 and eval(state) == before


def test_an_event_loop_that_is_stopped_goes_on(tmp_path: Path) -> None:
    """Its own answer still comes, and so do those of every later judge."""
    for act in ("asyncio.get_running_loop().stop()", "asyncio.get_running_loop().call_soon(sys.exit)"):
        text = (
            f"import asyncio, sys\nasync def score(**kw):\n    {act}\n    await asyncio.sleep(0.01)\n    return "
            "[1, 2]\n"
        )
        assert scores(write(tmp_path, text)) == [1.0, 2.0]


def test_what_a_judge_prints_commands_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Negative control: line breaks, and the carriage returns of bars, stay."""
    text = (
        "import sys\ndef score(**kw):\n    print('\\x1b]0;OWNED\\x07')\n    sys.stderr.writelines(['\\r50 %\\n', "
        "'\\x1b[2J'])\n"
        "    return [1, 2]\n"
    )
    scores(write(tmp_path, text))
    out, err = capsys.readouterr()
    assert not out and err == "\\u001b]0;OWNED\\u0007\n\r50 %\n\\u001b[2J"
