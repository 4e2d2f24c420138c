"""Notebooks run from their first cell to their last, and store what they showed.

`python -m tests.notebooks own-reward` runs notebooks/own-reward.ipynb in a kernel of its own and writes its outputs
back, without a path of this machine; `python -m tests.notebooks your-data BASE=/models/qwen STEPS=12` does so with
other parameters than the file's.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tests.conftest import ROOT

FOLDER = ROOT / "notebooks"
SECONDS = 1800
"""A cell's longest time."""
Parameters = Mapping[str, str | int]


def read(name: str) -> NotebookNode:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def with_parameters(notebook: NotebookNode, parameters: Parameters) -> NotebookNode:
    """The notebook with other values in the cell that is tagged `parameters`, which papermill knows by that tag too."""
    given = "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    for cell in notebook.cells:
        if given and "parameters" in cell.metadata.get("tags", []):
            cell.source += given
    return notebook


def execute(notebook: NotebookNode, folder: Path) -> NotebookNode:
    """Run it in a kernel of its own whose working folder is `folder`, as a notebook server would.

    Raises: CellExecutionError.
    """
    return NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}).execute()


def outputs(notebook: NotebookNode, kind: str) -> list[str]:
    """Everything of one MIME type, or of a stream, that the cells gave."""
    cells = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return [o.text for o in cells if o.get("name") == kind] + [o.data[kind] for o in cells if kind in o.get("data", {})]


def without_paths(text: str, parameters: Parameters, folder: Path) -> str:
    """What a notebook showed, with a folder that a parameter names shown by its last part, and those that it ran in by
    none."""
    for value in map(str, parameters.values()):
        text = text.replace(value, Path(value).name) if value.startswith("/") else text
    for place in (folder, ROOT, Path(sys.prefix)):
        text = re.sub(rf"{re.escape(str(place))}/?", "", text)
    return text


def store_outputs(name: str, parameters: Parameters) -> None:
    """Run a notebook in a folder that goes away, and write its outputs into the file."""
    notebook = read(name)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place).resolve() / "notebooks"
        folder.mkdir()
        (folder.parent / "data").symlink_to(ROOT / "data")
        (folder.parent / "recipes").symlink_to(ROOT / "recipes")
        ran = execute(with_parameters(read(name), parameters), folder)
        for cell, done in zip(notebook.cells, ran.cells, strict=True):
            if cell.cell_type == "code":
                text = nbformat.from_dict(done.outputs)
                cell.outputs = [_cleaned(output, parameters, folder.parent) for output in text]
                cell.execution_count = done.execution_count
    nbformat.write(notebook, FOLDER / f"{name}.ipynb")


def _cleaned(output: NotebookNode, parameters: Parameters, folder: Path) -> NotebookNode:
    if "text" in output:
        output.text = without_paths(output.text, parameters, folder)
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            output.data[kind] = without_paths(value, parameters, folder)
    return output


if __name__ == "__main__":
    os.environ.setdefault("PYTHONPATH", str(ROOT))
    os.environ.setdefault("PYTHONWARNINGS", "ignore:IProgress not found")  # tqdm's, of each import, without ipywidgets
    notebook_name, *given = sys.argv[1:]
    pairs = [word.partition("=")[::2] for word in given]
    store_outputs(notebook_name, {key: int(value) if value.isdigit() else value for key, value in pairs})
