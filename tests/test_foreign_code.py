"""Nothing that is loaded brings code with it: no code of models, no pickles, and loaders that say so."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from align.ground.errors import InputError
from align.models.base import load_base
from align.models.save import save_model
from align.rendering.render import load_renderer
from align.rendering.tokenizer import train_tokenizer
from align.store import Store
from tests.models.models import make_base
from tests.store.conftest import put

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "align").rglob("*.py"), *(ROOT / "data").rglob("*.py")]
PICKLING = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve"}


def unsafe(source: str) -> Iterator[str]:
    """Loads that could run code: auto classes that do not switch it off, torch.load of anything but weights,
    pickles."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if (
                name.startswith("Auto")
                and name.endswith(".from_pretrained")
                and given.get("trust_remote_code") != "False"
            ):
                yield f"{name} without trust_remote_code=False"
            elif given.get("trust_remote_code", "False") != "False":
                yield f"{name} with trust_remote_code={given['trust_remote_code']}"
            elif name in ("torch.load", "load_checkpoint") and given.get("weights_only") != "True":
                yield f"{name} without weights_only=True"
            elif name in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
                yield f"{name} with allow_pickle"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"import {name}" for name in names if name.split(".")[0] in PICKLING)


def test_no_loader_runs_foreign_code():
    """But for a file without a name, which nobody but the process that wrote it can read."""
    found = [f"{path.name}: {what}" for path in SOURCES for what in unsafe(path.read_text(encoding="utf-8"))]
    assert found == ["filed.py: import pickle"]
    loads = [
        line for path in SOURCES for line in path.read_text(encoding="utf-8").splitlines() if "torch.load(" in line
    ]
    assert loads and all("weights_only=True" in line for line in loads)


@pytest.mark.parametrize(
    "line",
    [
        "AutoModelForCausalLM.from_pretrained(x)",
        "AutoConfig.from_pretrained(x, trust_remote_code=allowed)",
        "LlamaConfig.from_pretrained(x, trust_remote_code=True)",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "np.load(x, allow_pickle=True)",
        "import pickle",
        "from joblib import load",
    ],
)
def test_what_runs_foreign_code_is_found(line: str):
    """Negative control."""
    assert list(unsafe(line))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A Llama with its tokenizer, and code beside it that leaves a mark when it is imported."""
    folder = tmp_path / "base"
    folder.mkdir()
    make_base("llama", torch.float32).save_pretrained(folder)
    train_tokenizer(["a b c d e f g"] * 20, 80, 128).save_pretrained(folder)
    mark = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
    (folder / "evil.py").write_text(f"{mark}class Config: ...\nclass Model: ...\nclass Tokenizer: ...\n")
    return folder


def set_in(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}


def test_a_base_that_brings_code_is_loaded_without_it(base: Path, tmp_path: Path, store: Store):
    """transformers has a Llama of its own; what is stored from it names no code any more."""
    set_in(base / "config.json", auto_map=CODE)
    set_in(base / "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})
    model = load_base(base, quantize=None, dtype=torch.float32)
    renderer = load_renderer(base, "plain", 64)
    assert type(model).__name__ == "LlamaForCausalLM" and type(model).__module__.startswith("transformers.")
    save_model(model, tmp_path / "out/model", "fp32", {"stop_ids": [1], "pad_token_id": 2})
    renderer.save(tmp_path / "out/model")
    assert not (tmp_path / "ran").exists()
    assert all("auto_map" not in path.read_text() for path in (tmp_path / "out/model").glob("*.json"))
    store.tag("model", put(store, tmp_path / "out", kind="model", base=None, text=renderer.contract()))
    assert store.push(tmp_path / "far").files


def test_a_base_that_only_its_code_can_load_is_refused(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    set_in(base / "config.json", auto_map=CODE, model_type="evil")
    with pytest.raises(
        InputError, match=r"base: its config.json names code that comes with the model \(auto_map\).*Align runs no code"
    ):
        load_base(base, quantize=None, dtype=torch.float32)
    set_in(
        base / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
        tokenizer_class="EvilTokenizer",
    )
    with pytest.raises(InputError, match="auto_map"):
        load_renderer(base, "plain", 64)
    assert not (tmp_path / "ran").exists() and "[y/N]" not in capsys.readouterr().out


def test_the_code_would_run_if_it_were_trusted(base: Path, tmp_path: Path):
    """Negative control: the same folders do run it where a loader trusts them."""
    set_in(base / "config.json", auto_map=CODE, model_type="evil")
    with pytest.raises(Exception):  # noqa: B017 (what it raises is its own affair)
        AutoModelForCausalLM.from_pretrained(base, trust_remote_code=True)
    assert (tmp_path / "ran").exists()
    (tmp_path / "ran").unlink()
    set_in(
        base / "tokenizer_config.json",
        auto_map={"AutoTokenizer": ["evil.Tokenizer", None]},
        tokenizer_class="EvilTokenizer",
    )
    with pytest.raises(Exception):  # noqa: B017
        AutoTokenizer.from_pretrained(base, trust_remote_code=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_checkpoint_that_holds_a_pickle_is_not_loaded(tmp_path: Path):
    """What trainer.py reads with weights_only=True raises before an object of another class is made."""

    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str, str]]:
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state": Evil()}, tmp_path / "source.pt")
    with pytest.raises(Exception, match=r"weights_only|Weights only"):
        torch.load(tmp_path / "source.pt", weights_only=True)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "source.pt", weights_only=False)["state"].close()
    assert (tmp_path / "ran").exists(), "negative control"
