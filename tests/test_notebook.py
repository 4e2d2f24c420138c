"""The notebook runs from its first cell to its last on a finished quickstart, and shows what the store holds."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tests.conftest import ROOT, Pipeline

NOTEBOOK = ROOT / "notebooks/quickstart.ipynb"


def execute(notebook: NotebookNode, folder: Path, monkeypatch: pytest.MonkeyPatch) -> NotebookNode:
    """Run it in a kernel of its own whose working folder is `folder`, as a notebook server would."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("ALIGN_STORE", raising=False)
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    return NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()


def outputs(notebook: NotebookNode, kind: str) -> list[str]:
    """Everything of one MIME type, or of a stream, that the cells gave."""
    cells = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [o.text for o in cells if o.get("name") == kind] + [o.data[kind] for o in cells if kind in o.get("data", {})]


@pytest.fixture
def folder(quick_store: Pipeline, tmp_path: Path) -> Path:
    """notebooks/ in a copy of the finished quickstart."""
    shutil.copytree(quick_store.recipe.parents[1], tmp_path / "project")
    (tmp_path / "project/notebooks").mkdir()
    return tmp_path / "project/notebooks"


def test_the_notebook_runs(quick_store: Pipeline, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Every stage is found done, every plot is drawn, and the table is the report's."""
    notebook = execute(nbformat.read(NOTEBOOK, as_version=4), folder, monkeypatch)
    said = [line for line in "".join(outputs(notebook, "stderr")).splitlines() if line.startswith("quickstart/")]
    assert said == [f"quickstart/{name}: done before, skipped -> {a.short}" for name, a in quick_store.made.items()]
    drawn = sum("plot" in cell.source for cell in notebook.cells if cell.cell_type == "code") - 1  # the imports
    assert len(outputs(notebook, "image/png")) == drawn == 5
    printed = "".join(outputs(notebook, "stdout"))
    assert quick_store.store.read(quick_store.made["report"], "table.txt").decode() in printed
    assert all(name in outputs(notebook, "text/html")[0] for name in quick_store.made)


def test_a_broken_cell_is_found(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Negative control: a stage that the recipe does not have stops the notebook at its cell."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.cell_type == "code"][:2]
    notebook.cells[1].source += '\ncurve("ppoo")'
    with pytest.raises(CellExecutionError, match="ppoo"):
        execute(notebook, folder, monkeypatch)


def test_no_outputs_are_stored():
    """The file holds what people wrote and nothing that a run made."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
