"""The notebooks run from first cell to last on a small base, and what is stored in them names no machine."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import nbformat
import pytest
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from align.store import Store
from tests.conftest import ROOT, Pipeline
from tests.notebooks import FOLDER, execute, outputs, read, with_parameters, without_paths

NAMES = ["quickstart", "your-data", "own-reward"]
TINY = {"BASE": str(ROOT / "data/tiny-base"), "STEPS": 2}
MACHINE = re.compile(r"(?<![\w.])/(?:work|home|root|tmp|opt|usr|var|Users)/")
"""How a path of somebody's machine begins."""


@pytest.fixture(autouse=True)
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / ".ipython"))


@pytest.fixture
def folder(quick_store: Pipeline, tmp_path: Path) -> Path:
    """notebooks/ in a copy of the finished quickstart."""
    shutil.copytree(quick_store.recipe.parents[1], tmp_path / "project")
    (tmp_path / "project/notebooks").mkdir()
    return tmp_path / "project/notebooks"


def test_the_tour_runs(quick_store: Pipeline, folder: Path):
    """Every stage is found done, every plot is drawn, and the table is the report's."""
    notebook = execute(read("quickstart"), folder)
    told = "".join(outputs(notebook, "stderr")).splitlines()  # a slow machine's have lines of progress, too
    said = [line for line in told if line.startswith("quickstart/") and ": done" in line]
    assert said == [f"quickstart/{name}: done before, skipped -> {a.short}" for name, a in quick_store.made.items()]
    drawn = sum("plot" in cell.source for cell in notebook.cells if cell.cell_type == "code") - 1  # the imports
    assert len(outputs(notebook, "image/png")) == drawn == 5
    printed = "".join(outputs(notebook, "stdout"))
    assert quick_store.store.read(quick_store.made["report"], "table.txt").decode() in printed
    assert all(name in outputs(notebook, "text/html")[0] for name in quick_store.made)


@pytest.mark.slow
def test_your_data_runs(tmp_path: Path):
    """An adapter on the base that the parameters name, in as many steps; the dry run speaks of the same."""
    notebook = execute(with_parameters(read("your-data"), {**TINY, "LAYERS": 1}), tmp_path)
    made = Store(tmp_path / "your-data/.align").resolve("shop")
    assert (made.stage, made.config["max_steps"], made.config["adapter"]["layers"]) == ("sft", 2, 1)
    assert "2 optimizer steps of 6 records" in "".join(outputs(notebook, "stdout"))
    assert "Are you open on Mondays?" in outputs(notebook, "text/html")[-1]


@pytest.mark.slow
def test_own_reward_runs(tmp_path: Path):
    """The judge in the folder is the one that is trained on; the other only watches."""
    notebook = execute(with_parameters(read("own-reward"), TINY), tmp_path)
    store = Store(tmp_path / "own-reward/.align")
    made = store.resolve("brief")
    history = [json.loads(line) for line in store.read(made, "history.jsonl").decode().splitlines()]
    assert made.stage == "grpo" and made.config["weights"] == {"right": 0.0}
    assert all({"reward/brief", "reward/right"} <= row.keys() for row in history)
    assert len(outputs(notebook, "image/png")) == 1 and "What is 6 plus 5?" in outputs(notebook, "text/html")[-1]


def test_a_broken_cell_is_found(folder: Path):
    """Negative control: a stage that the recipe does not have stops the notebook at its cell."""
    notebook = read("quickstart")
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    notebook.cells[1].source += '\ncurve("ppoo")'
    with pytest.raises(CellExecutionError, match="ppoo"):
        execute(notebook, folder)


# ---- what is stored --------------------------------------------------------------------------------------------------


def shown(notebook: NotebookNode) -> str:
    """All text in the outputs."""
    return json.dumps([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])


@pytest.mark.parametrize("name", NAMES)
def test_no_machine_is_stored(name: str):
    """Outputs hold no path, no error, and are those of one run from the first cell to the last."""
    notebook = read(name)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    counts = [cell.execution_count for cell in cells]
    assert counts in ([None] * len(cells), list(range(1, len(cells) + 1)))
    assert not MACHINE.search(shown(notebook)) and "Traceback" not in shown(notebook)
    assert all(any(cell.outputs for cell in cells) == (count is not None) for count in counts)


@pytest.mark.parametrize("name", ["your-data", "own-reward"])
def test_outputs_are_stored(name: str):
    assert outputs(read(name), "image/png") and outputs(read(name), "text/html")


def test_paths_are_found_and_taken_away(tmp_path: Path):
    """Negative control of the above."""
    text = f"base /home/me/qwen at {tmp_path}/notebooks/x, https://host/usr/ and 3/usr/"
    assert MACHINE.search(text)
    cleaned = without_paths(text, {"BASE": "/home/me/qwen"}, tmp_path)
    assert cleaned == "base qwen at notebooks/x, https://host/usr/ and 3/usr/"
    assert not MACHINE.search(cleaned)


def test_make_notebook_installs_what_it_opens():
    """`make notebook` would install the extra and open the folder; every notebook is there."""
    asked = subprocess.run(["make", "--dry-run", "notebook"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert ".[notebook]" in asked.stdout and "jupyter lab notebooks\n" in asked.stdout
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == {*NAMES}
