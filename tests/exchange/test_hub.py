"""`align push hf://user/name`: a model repository of the hub, against a hub on this machine (tests/hub.py); what comes
back by huggingface_hub's own client is what PEFT and transformers load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import HfApi, ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import Pipeline, run_align
from tests.hub import Hub, running

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running() as hub:
        for key, value in {**hub.environment("hf_writes"), "HF_HOME": str(tmp_path / "hf")}.items():
            monkeypatch.setenv(key, value)
        yield hub


def fetched(hub: Hub, repo: str, folder: Path) -> Path:
    return Path(HfApi(hub.url, "hf_writes").snapshot_download(repo, local_dir=folder))


def files(folder: Path) -> dict[str, bytes]:
    paths = (path for path in folder.rglob("*") if path.is_file() and ".cache" not in path.parts)
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(5, 25)[None]).logits
    return found


def test_an_adapter_on_the_hub(trained: Pipeline, hub: Hub, tmp_path: Path):
    """As `align checkout` writes it, and at the root, where PEFT finds it; private, its token nowhere. A second push
    takes away what the first had and it has not, and nothing else."""
    store = ["--store", trained.store.path]
    for stage in ("dpo", "sft"):  # dpo has two adapters
        done = run_align("push", "hf://writer/mine", f"tiny/{stage}", *store)
        repository = hub.repositories["models/writer/mine"]
        assert done.stdout == f"{hub.url}/writer/mine/commit/{repository.head}\n" and repository.private
        assert ("adapters/1/adapter_model.safetensors" in repository.files) == (stage == "dpo")
        if stage == "dpo":
            assert "adapter_config.json" not in repository.files  # the root holds no half of it
            repository.commit({**repository.files, "LICENSE": b"MIT"})
    assert "hf_writes" not in done.stdout + done.stderr and b"hf_writes" not in b"".join(repository.files.values())
    there = files(fetched(hub, "writer/mine", tmp_path / "there"))
    run_align("checkout", "tiny/sft", tmp_path / "here", *store)
    here = files(tmp_path / "here")
    card, plain = there["README.md"].decode(), here.pop("README.md").decode()
    assert card.startswith(plain) and 'PeftModel.from_pretrained(base, "writer/mine")' in card
    assert ModelCard(card).data.to_dict()["library_name"] == "peft" and there["LICENSE"] == b"MIT"
    assert here.items() <= there.items()
    trained.store.materialise(trained.made["pretrain"], tmp_path / "base", "model")

    def on_base(folder: Path) -> torch.Tensor:
        base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype="float32")
        return logits(PeftModel.from_pretrained(base, folder))

    assert on_base(tmp_path / "there").equal(on_base(tmp_path / "here/adapters/0"))
    assert AutoTokenizer.from_pretrained(tmp_path / "there").chat_template


def test_a_model_on_the_hub(trained: Pipeline, hub: Hub, tmp_path: Path):
    """At the root, public because that was said; transformers loads what it was."""
    done = run_align("push", "hf://writer/model", "tiny/pretrain", "--public", "--store", trained.store.path)
    repository = hub.repositories["models/writer/model"]
    assert repository.private is False and done.stdout.endswith(f"/commit/{repository.head}\n")
    found = AutoModelForCausalLM.from_pretrained(fetched(hub, "writer/model", tmp_path / "there"), dtype="float32")
    trained.store.materialise(trained.made["pretrain"], tmp_path / "here", "model")
    assert logits(found).equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "here", dtype="float32")))
    refused = run_align("push", "hf://writer/model", "tiny/sft", "--store", trained.store.path, code=2).stderr
    assert refused.startswith("hf://writer/model is there and public") and len(repository.commits) == 2


@pytest.mark.parametrize(
    ("words", "environment", "code", "message"),
    [
        (["hf://writer/x", "tiny/sft"], {"HF_TOKEN": "hf_wrong"}, 2, "the hub does not know the token (401)"),
        (["hf://writer/x", "tiny/sft"], {"HF_TOKEN": "hf_reads"}, 2, "the token may not write there (403)"),
        (["hf://writer/x", "tiny/sft"], {"HF_TOKEN": ""}, 2, "there is no token for the hub"),
        (["hf://nobody/x", "tiny/sft"], {}, 2, "the hub has no such user or organisation (404)"),
        (["hf://writer/x", "tiny/sft"], {"HF_HUB_OFFLINE": "1"}, 2, "HF_HUB_OFFLINE is set"),
        (["hf://writer/x", "tiny/sft"], {"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "the hub cannot be reached (Conn"),
        (["hf://writer", "tiny/sft"], {}, 2, "names no model repository of the hub; expected hf://user/name."),
        (["hf://writer/x"], {}, 2, "holds one artifact; 0 refs were given"),
        (["writer/x", "tiny/sft"], {}, 2, "Write hf://writer/x for the one, ./writer/x for the other."),
        (["./writer/x", "tiny/sft", "--public"], {}, 2, "--public is for hf://user/name"),
    ],
)
def test_what_goes_wrong_is_one_line(
    words: list[str],
    environment: dict[str, str],
    code: int,
    message: str,
    trained: Pipeline,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    """And nothing is written, there or here."""
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    done = run_align("push", *words, "--store", trained.store.path.resolve(), code=code, cwd=tmp_path)
    assert message in done.stderr and done.stderr.count("\n") == 1 and "hf_" not in done.stderr
    assert hub.repositories == {} and {path.name for path in tmp_path.iterdir()} <= {"hf"}


def test_a_folder_that_is_there_is_a_folder(trained: Pipeline, tmp_path: Path):
    """Though its name looks like a repository's: only a new one is asked about."""
    (tmp_path / "user/name").mkdir(parents=True)
    run_align("push", "user/name", "tiny/sft", "--store", trained.store.path.resolve(), cwd=tmp_path)
    assert (tmp_path / "user/name/refs/tiny/sft").exists()
