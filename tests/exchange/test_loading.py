"""`align.load` and a checked-out folder give what the stage trained: the logits of the policy role in the core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

import align
from align import models, packed
from align.data.examples import Example
from align.ground.errors import InputError
from align.inputs.bases import locate_base
from align.stage.on_base import adapter_folders
from align.store import Artifact, Store
from tests.conftest import Pipeline, run_align

IDS = list(range(5, 29))


def role_of(artifact: Artifact, store: Store, keep: slice = slice(None)) -> models.roles.Roles:
    """The artifact as role "policy" on its base, as stages load it; `keep` leaves out adapters."""
    assert artifact.base
    base = locate_base(artifact.base, store)
    roles = models.roles.Roles(models.base.load_base(base.path, quantize=None, dtype=torch.float32))
    folders = adapter_folders(store.folder(artifact))[keep]
    for i, folder in enumerate(folders):
        roles.load_adapter(f"a{i}", folder)
    roles.assign("policy", [f"a{i}" for i in range(len(folders))])
    return roles


@torch.no_grad()
def hidden_of(roles: models.roles.Roles) -> Tensor:
    batch = packed.pack.pack([Example((IDS,), ([False] + [True] * (len(IDS) - 1),))])
    return roles.hidden_as("policy", batch)


@torch.no_grad()
def logits_of(roles: models.roles.Roles) -> Tensor:
    return roles.base.get_output_embeddings()(hidden_of(roles))


@torch.no_grad()
def logits(model: torch.nn.Module) -> Tensor:
    return model(input_ids=torch.tensor([IDS])).logits[0]


@pytest.mark.parametrize("name", ["sft", "dpo", "ppo"])
def test_load_gives_the_policys_logits(trained: Pipeline, name: str):
    """Through packed attention and roles, or through plain PEFT: the same model. dpo stacks two adapters, both of which
    count."""
    artifact, store = trained.made[name], trained.store
    model, _ = align.load(f"tiny/{name}", store)
    assert isinstance(model, PeftModel) and model.config._attn_implementation != packed.attention.NAME
    expected = logits_of(role_of(artifact, store))
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    # Negative controls: without the last adapter, and for a stack without the first, it is another model.
    without_last = logits_of(role_of(artifact, store, slice(0, -1)))
    assert (expected - without_last).abs().max() > 1e-3
    if name == "dpo":
        assert (expected - logits_of(role_of(artifact, store, slice(1, None)))).abs().max() > 1e-3


def test_load_a_model(trained: Pipeline):
    """A full model comes as transformers' own class, trainable, equal to the base that its children stand on."""
    model, tokenizer = align.load(trained.made["pretrain"], trained.store)
    assert type(model).__name__ == "LlamaForCausalLM" and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(
        logits(model), logits_of(role_of(trained.made["sft"], trained.store, slice(0))), atol=1e-5, rtol=0
    )
    assert tokenizer.decode(tokenizer("The cup is red.")["input_ids"]) == "The cup is red."


def test_generate_stops_at_the_end_of_turn(trained: Pipeline):
    """Chat template in, `generate`, text out; every stop id of the text contract ends the answer."""
    artifact = trained.made["sft"]
    model, tokenizer = align.load(artifact, trained.store)
    assert artifact.text and model.generation_config.eos_token_id == artifact.text["stop_ids"]
    chat = [{"role": "user", "content": "Which colour is the cup?"}]
    inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    assert tokenizer.decode(inputs["input_ids"][0]).endswith("Assistant:\n")
    bias = {(artifact.text["eos_token_id"],): 100.0}
    answer = model.generate(**inputs, max_new_tokens=5, sequence_bias=bias)[0, inputs["input_ids"].shape[1] :]
    assert answer.tolist() == [artifact.text["eos_token_id"]]
    assert len(model.generate(**inputs, max_new_tokens=5, min_new_tokens=5)[0]) == inputs["input_ids"].shape[1] + 5


def test_load_a_reward_with_its_head(trained: Pipeline):
    """Scores of the loaded model equal weight · hidden + bias of the stored head, computed by hand on the core's hidden
    states."""
    artifact = trained.made["reward"]
    model, _ = align.load(artifact, trained.store)
    with torch.no_grad():
        hidden = model(input_ids=torch.tensor([IDS]), output_hidden_states=True).hidden_states[-1][0]
    from safetensors.torch import load

    head = load(trained.store.read(artifact, "head.safetensors"))
    expected = hidden_of(role_of(artifact, trained.store)) @ head["weight"] + head["bias"]
    assert head["weight"].abs().max() > 0
    torch.testing.assert_close(model.score_head(hidden), expected, atol=1e-5, rtol=0)


def test_what_holds_no_model_is_refused(pipeline: Pipeline, tmp_path: Path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files/data.jsonl").write_text("{}\n")
    settings = {"version": 1, "config": {}, "parents": {}, "base": None, "text": None, "data": {}, "metrics": {}}
    artifact = pipeline.store.put(tmp_path / "files", kind="data", stage="pairs", **settings)  # type: ignore[arg-type]
    with pytest.raises(
        InputError, match=f"pairs {artifact.short} is a data artifact \\(stage pairs\\), which holds no model"
    ):
        align.load(artifact, pipeline.store)


def test_checkout_loads_with_plain_peft(trained: Pipeline, tmp_path: Path):
    """The code that `align checkout` prints, run where Align cannot be imported, gives the policy's logits."""
    base, folder = tmp_path / "base", tmp_path / "dpo"
    run_align("checkout", "tiny/pretrain", base, "--store", trained.store.path)
    printed = run_align("checkout", "tiny/dpo", folder, "--store", trained.store.path).stdout
    code = [line.strip() for line in printed[printed.index("  from peft") :].splitlines()]
    code = [
        "import sys; sys.modules['align'] = None",
        *code,
        "import torch",
        f"logits = model(input_ids=torch.tensor([{IDS}])).logits[0]",
    ]
    program = "\n".join([*code, f"torch.save(logits.detach(), {str(tmp_path / 'logits')!r})"]).replace(
        "BASE/model", str(base / "model")
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True)
    found = torch.load(tmp_path / "logits", weights_only=True)
    torch.testing.assert_close(found, logits_of(role_of(trained.made["dpo"], trained.store)), atol=1e-5, rtol=0)


def test_checked_out_files_are_copies(trained: Pipeline, tmp_path: Path):
    """A checked-out model may be edited; the store's bytes stay."""
    run_align("checkout", "tiny/pretrain", tmp_path / "model", "--store", trained.store.path)
    (tmp_path / "model/model/config.json").write_text("{}")
    assert trained.store.verify() == []
    again = run_align("checkout", "tiny/pretrain", tmp_path / "model", "--store", trained.store.path, code=2)
    assert str(tmp_path / "model") in again.stderr


def test_tokenizer_alone_reproduces_the_prompt(trained: Pipeline):
    """Template and special tokens travel with every adapter; ids fit the base's embeddings."""
    tokenizer = AutoTokenizer.from_pretrained(trained.store.folder(trained.made["ppo"]) / "tokenizer")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert text == "<|begin|>User:\nHi\n\nAssistant:\n"
    base = AutoModelForCausalLM.from_pretrained(trained.store.folder(trained.made["pretrain"]) / "model")
    assert base.config.vocab_size == len(tokenizer)


def test_a_manifest_says_what_was_asked(trained: Pipeline):
    """Every answer of a pipeline lies under the key that its artifact's manifest gives: so a puller can work it out."""
    answers = {key: trained.store.pointer(path) for key, path in trained.store.pointers("asked").items()}
    assert {artifact.key: artifact.digest for artifact in trained.made.values()} == answers and len(answers) >= 5
