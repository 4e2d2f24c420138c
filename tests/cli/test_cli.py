"""The `align` command: listing without torch, adapters in and out, and one clear message for every mistake."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import align
from align.cli import command
from align.exchange.transfer import check_folder, import_adapter
from align.ground.errors import InputError
from align.ground.terminal import ANEW, GOES_ON
from align.recipe import Base
from align.stage import catalogue
from align.store import Store
from tests.conftest import ROOT, Pipeline, run_align

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


# ---- listing ---------------------------------------------------------------------------------------------------------


def test_listing_loads_no_torch(trained: Pipeline):
    """ls, compare, show, lineage, verify, a dry run and every --help in one process: no tensor library, and at most 2 s
    of CPU for all of them."""
    store = ["--store", str(trained.store.path)]
    lines = [
        ["ls", *store],
        ["ls", "--json", *store],
        ["ls", "--show", "beta,parent", "--sort", "size", *store],
        ["compare", "tiny/dpo", "tiny/sft", *store],
        ["show", "tiny/ppo", *store],
        ["show", "tiny/ppo", "--json", *store],
        ["lineage", "tiny/ppo", *store],
        ["verify", *store],
        ["run", str(trained.recipe), "--dry-run", *store],
        ["--help"],
        ["run", "--help"],
        *([name, "--help"] for name in catalogue.commands()),
    ]
    program = f"""
import contextlib, io, json, resource, sys
from align.cli import dispatch
for line in {lines!r}:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        dispatch(line)
    assert printed.getvalue().strip(), line
used = resource.getrusage(resource.RUSAGE_SELF)
heavy = {{"torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes"}}
print(json.dumps([sorted(heavy & set(sys.modules)), used.ru_utime + used.ru_stime]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    heavy, seconds = json.loads(done.stdout)
    assert heavy == [] and seconds <= 2.0


def test_show_and_ls_for_programs(trained: Pipeline):
    """Manifest, digest and cost as JSON; the manifest's hash is the digest."""
    flags = ["--json", "--store", trained.store.path]
    shown = json.loads(run_align("show", "tiny/ppo", *flags).stdout)
    artifact = trained.made["ppo"]
    cost = shown.pop("cost")
    assert shown == {**artifact.manifest, "digest": artifact.digest}
    assert {"reward/first", "reward/last", "kl", "entropy", "eos_rate", "length"} <= set(shown["metrics"])
    assert cost["seconds"] > 0 and cost["peak_memory_bytes"] > 2**20 and cost["tokens_per_second"] > 0
    listed = json.loads(run_align("ls", *flags).stdout)
    assert {row["name"]: row["digest"] for row in listed} == trained.store.refs()


def test_verify_names_the_damaged(pipeline: Pipeline):
    assert run_align("verify", "--store", pipeline.store.path).stdout.endswith("5 artifacts, every byte is right.\n")
    digest = pipeline.made["reward"].files["head.safetensors"]["sha256"]
    path = pipeline.store.object_path(digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    found = run_align("verify", "--store", pipeline.store.path, code=1).stderr
    assert digest in found and "reward" in found and "run tiny/reward" in found


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sho", "x"], "align has no command 'sho'; did you mean show?"),
        (["quux"], "align has no command 'quux'; `align --help` lists them."),
        (
            ["show"],
            "align show: the following arguments are required: REF\nusage: align show [-h] [--store DIR] [--json] "
            "[--settings] REF",
        ),
        (["show", "tiny/pp"], "'tiny/pp' is no name and no digest in {store}; did you mean tiny/ppo"),
        (["run", "gone.yaml"], "there is no file gone.yaml. Check the path."),
        (
            ["chat", "tiny/reward"],
            "parent: tiny/reward is a reward artifact (stage reward), but chat needs adapter or model there.",
        ),
        (
            ["merge", "tiny/pretrain"],
            "parent: tiny/pretrain is a model artifact (stage pretrain), but merge needs adapter or reward",
        ),
        (["locate", "tests"], "tests has no config.json. Expected a model folder in the Hugging Face layout."),
    ],
)
def test_mistakes_are_one_message(trained: Pipeline, words: list[str], message: str):
    """Exit code 2, the message alone on stderr, no traceback."""
    store = (
        ["--store", str(trained.store.path)]
        if words[0] in ("chat", "merge", "show", "locate") and len(words) > 1
        else []
    )
    done = run_align(*words, *store, code=2)
    assert (
        done.stdout == ""
        and done.stderr.startswith(message.format(store=trained.store.path))
        and "Traceback" not in done.stderr
    )


def test_a_stage_by_either_name(trained: Pipeline):
    """`align sft` is `python -m align.sft`."""
    flags = [
        "--parent",
        "tiny/pretrain",
        "--data",
        str(trained.recipe.parent / "sft.jsonl"),
        "--store",
        str(trained.store.path),
        "--dry-run",
    ]
    one = run_align("sft", *flags).stdout
    other = subprocess.run(
        [sys.executable, "-m", "align.sft", *flags], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert one == other and one.startswith("sft: run")


# ---- adapters from elsewhere -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(trained: Pipeline, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A base folder, an adapter that PEFT itself made and saved for it, and the model's logits."""
    folder = tmp_path_factory.mktemp("saved")
    trained.store.materialise(trained.made["pretrain"], folder / "base", "model")
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_pretrained(folder / "base")
    model = get_peft_model(
        base, LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
        logits = model(input_ids=torch.arange(5, 25)[None]).logits
    model.save_pretrained(folder / "my-lora")
    return {"base": folder / "base", "adapter": folder / "my-lora", "logits": logits}


def test_import_what_peft_saved(saved: dict[str, Any], tmp_path: Path):
    """In through the command: the tensors that PEFT saved, bit for bit, and by `align.load` its logits (in bf16 where
    that is native)."""
    store = Store(tmp_path / "store")
    done = run_align("import", saved["adapter"], "--base", saved["base"], "--store", store.path)
    artifact = store.resolve("my-lora")
    assert done.stdout == f"my-lora {artifact.digest}\n"
    assert (
        artifact.kind == "adapter" and artifact.stage == "import" and artifact.base and artifact.base["model"] == "base"
    )
    assert {
        "adapters/0/adapter_config.json",
        "adapters/0/adapter_model.safetensors",
        "tokenizer/tokenizer.json",
    } <= set(artifact.files)
    written = load_file(store.folder(artifact) / "adapters/0/adapter_model.safetensors")
    given = load_file(saved["adapter"] / "adapter_model.safetensors")
    assert written.keys() == given.keys() and all(torch.equal(written[key], given[key]) for key in given)
    model, _ = align.load("my-lora", store)
    with torch.no_grad():
        found = model(input_ids=torch.arange(5, 25)[None]).logits.float()
        with model.disable_adapter():
            bare = model(input_ids=torch.arange(5, 25)[None]).logits.float()
    assert (found - saved["logits"]).abs().max() < 0.1 * (bare - saved["logits"]).abs().max()
    # The same again is done already; the base's folder is not touched.
    assert "done before" in run_align("import", saved["adapter"], "--base", saved["base"], "--store", store.path).stderr


def rewritten(saved: dict[str, Any], folder: Path, *, shape: dict[str, Any] | None = None, weights: Any = None) -> Path:
    """A copy of the saved adapter with its config or its tensors changed."""
    shutil.copytree(saved["adapter"], folder)
    if shape is not None:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | shape))
    if weights is not None:
        path = folder / "adapter_model.safetensors"
        save_file(weights(load_file(path)), path)
    return folder


def test_import_refuses_broken_folders(saved: dict[str, Any], tmp_path: Path):
    """Each with its reason, found without torch."""

    def refused(folder: Path) -> str:
        with pytest.raises(InputError) as error:
            check_folder(folder)
        return str(error.value)

    assert refused(tmp_path / "gone").startswith(f"there is no folder {tmp_path / 'gone'}.")
    (tmp_path / "empty").mkdir()
    assert (
        refused(tmp_path / "empty")
        == f"{tmp_path / 'empty'} has no adapter_config.json. Expected a folder that PEFT saved."
    )
    below = tmp_path / "checked-out/adapters/0"
    below.mkdir(parents=True)
    (below / "adapter_config.json").write_text("{}")
    there = f"There is one in {below}: name that folder."
    assert refused(tmp_path / "checked-out") == f"{tmp_path / 'checked-out'} has no adapter_config.json. {there}"

    pickled = rewritten(saved, tmp_path / "pickled")
    (pickled / "adapter_model.safetensors").rename(pickled / "adapter_model.bin")
    assert "Its weights are a pickle, adapter_model.bin" in refused(pickled)

    cut = rewritten(saved, tmp_path / "cut")
    whole = (cut / "adapter_model.safetensors").read_bytes()
    (cut / "adapter_model.safetensors").write_bytes(whole[:-100])
    assert f"({len(whole) - 100:,} bytes) is no complete safetensors file" in refused(cut)

    hollow = rewritten(saved, tmp_path / "hollow", weights=lambda tensors: {})
    assert "it holds no tensor. It was saved without its weights" in refused(hollow)
    empty = rewritten(saved, tmp_path / "zero", weights=lambda tensors: {k: torch.zeros(0) for k in tensors})
    assert "is empty. It was saved without its weights" in refused(empty)

    other = rewritten(saved, tmp_path / "xlora", shape={"peft_type": "XLORA"})
    assert "peft_type is 'XLORA'; adapters that can be loaded are LORA, IA3" in refused(other)
    heads = rewritten(saved, tmp_path / "heads", shape={"modules_to_save": ["lm_head"]})
    assert "modules_to_save is ['lm_head'], which changes more than LoRA's two factors" in refused(heads)
    check_folder(saved["adapter"])  # negative control


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"weights": lambda tensors: dict(list(tensors.items())[1:])},
            "the adapter does not fit this base; 1 tensors differ",
        ),
        ({"shape": {"r": 7}}, "gives this layer rank 7. The two files do not belong together."),
        (
            {"shape": {"target_modules": ["c_attn"]}},
            "target_modules does not name. The two files do not belong together",
        ),
        ({"shape": {"layers_to_transform": [10**30]}}, "numbers of layers, below 16,384"),
        ({"shape": {"target_modules": [".."]}}, "at most 16,384 plain names of layers"),
        ({"shape": {"layers_to_transform": [99]}}, "the adapter does not fit"),
        ({"weights": lambda tensors: {k: v * torch.nan for k, v in tensors.items()}}, "holds NaN or infinity"),
    ],
)
def test_import_refuses_what_does_not_fit(saved: dict[str, Any], tmp_path: Path, change: dict[str, Any], message: str):
    """Loading on the base finds it, and nothing is stored."""
    store = Store(tmp_path / "store")
    with pytest.raises(InputError) as error:
        import_adapter(rewritten(saved, tmp_path / "adapter", **change), Base(model=str(saved["base"])), store)
    assert message in str(error.value)
    assert list(store.artifacts()) == [] and store.refs() == {}


def test_locate_a_moved_base(saved: dict[str, Any], tmp_path: Path):
    """A base that moved is asked for by name and found again; another model is not taken for it."""
    store, here, there = Store(tmp_path / "store"), tmp_path / "here", tmp_path / "there"
    shutil.copytree(saved["base"], here)
    artifact = import_adapter(saved["adapter"], Base(model=str(here)), store, name="mine")
    here.rename(there)
    with pytest.raises(InputError, match=r"the base here .* is not where it was .*align locate DIR"):
        align.load(artifact, store)
    assert run_align("locate", there, "--store", store.path).stdout == f"{there} is the base of mine.\n"
    model, _ = align.load(artifact, store)
    assert isinstance(model, torch.nn.Module)
    (there / "config.json").write_text((there / "config.json").read_text() + "\n")
    with pytest.raises(InputError, match=f"the base at {there} has changed"):
        align.load(artifact, store)
    assert "no artifact in" in run_align("locate", there, "--store", store.path, code=2).stderr


@pytest.mark.parametrize(
    ("words", "promised"),
    [(["data", "show", "x"], ANEW), (["run", "x"], GOES_ON), (["pull", "x"], GOES_ON), ([], ANEW)],
)
def test_what_ctrl_c_promises(words: list[str], promised: str, monkeypatch: pytest.MonkeyPatch):
    """That a command goes on is said of those that do."""
    said: list[str] = []
    monkeypatch.setattr(sys, "argv", ["align", *words])
    monkeypatch.setattr(command, "guarded", lambda body, stopped: said.append(stopped))
    command.main()
    assert said == [promised]
