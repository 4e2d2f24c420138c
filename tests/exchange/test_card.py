"""Model cards: read by the hub's own parser, with code that runs and hashes that `sha256sum` proves, and the same on
every machine."""

from __future__ import annotations

import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

from align import merge
from align.exchange.card import card
from align.exchange.card_figures import MARK
from align.exchange.transfer import checkout
from align.store import Artifact, Store
from tests.conftest import Pipeline, run_align

# PEFT 0.21 reads the old name
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

HEADINGS = [
    "How to load it",
    "Where it came from",
    "What was measured",
    "How it reads and ends text",
    "Limits",
    "How to verify it",
]
IDS = torch.arange(5, 29)[None]


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def loaded(text: str, folder: Path, base: Path | None = None) -> dict[str, Any]:
    """What the card's first block of Python defines."""
    code = text.split("```python\n")[1].split("\n```")[0].replace("DIR", str(folder)).replace("BASE", str(base))
    found: dict[str, Any] = {}
    exec(code, found)
    return found


def verified(folder: Path, text: str) -> int:
    """The exit code of the card's own command."""
    command = text.split("```sh\n")[1].split("\n```")[0]
    return subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], cwd=folder, capture_output=True).returncode


@pytest.mark.parametrize(
    ("name", "library", "pipeline_tag", "tags"),
    [
        ("pretrain", "transformers", "text-generation", ["align"]),
        ("sft", "peft", "text-generation", ["align", "lora", "sft"]),
        ("reward", "peft", "text-classification", ["align", "lora", "reward-model", "sft"]),
        ("ppo", "peft", "text-generation", ["align", "lora", "sft", "ppo", "rlhf"]),
    ],
)
def test_a_checkout_has_a_card(
    name: str, library: str, pipeline_tag: str, tags: list[str], trained: Pipeline, tmp_path: Path
) -> None:
    """The hub's parser reads it; its files are those of the manifest; nothing in it tells of this machine."""
    artifact = trained.made[name]
    checkout(artifact, tmp_path / "out", trained.store, f"tiny/{name}")
    text = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    data = ModelCard(text).data
    assert (data.library_name, data.pipeline_tag, data.tags, data.base_model) == (library, pipeline_tag, tags, None)
    assert list(sections(text)) == HEADINGS and text.startswith("---\n") and f"\n# tiny/{name}\n" in text
    assert text == card(trained.store, artifact, f"tiny/{name}")
    assert str(trained.store.path) not in text and str(tmp_path) not in text and not re.search(r"\b20\d\d-\d\d", text)
    assert verified(tmp_path / "out", text) == 0
    path = next(iter(artifact.files))
    (tmp_path / "out" / path).write_bytes((tmp_path / "out" / path).read_bytes() + b" ")
    assert verified(tmp_path / "out", text) == 1  # negative control
    assert "README.md" not in artifact.files


def test_what_a_card_says(trained: Pipeline) -> None:
    """Lineage with data and settings, metrics with intervals, text contract: against the manifests."""
    made = trained.made
    text = card(trained.store, made["ppo"], "tiny/ppo")
    parts = sections(text)
    rows = [line for line in parts["Where it came from"].splitlines() if line.startswith("| ")][1:]
    assert [row.split("`")[0].strip("| ") for row in rows] == ["pretrain", "sft", "reward", "ppo"]
    assert [
        made[stage].short in row and made[stage].data["data"][:12] in row
        for stage, row in zip(("pretrain", "sft", "reward", "ppo"), rows, strict=True)
    ] == [True] * 4
    assert (
        "kl_coef 0.05" in rows[3]
        and "learning_rate 0.01" in rows[3]
        and "adapter.rank" not in rows[3]
        and "adapter.rank 4" in rows[1]
        and "adapter" not in rows[0]
        and f"reward: reward `{made['reward'].short}`" in rows[3]
    )
    low, high = made["reward"].metrics["eval/accuracy_ci95"]
    accuracy = made["reward"].metrics["eval/accuracy"]
    assert (
        f"| reward `{made['reward'].short}` | `eval/accuracy` | {accuracy:.4g} | {low:.4g} to {high:.4g} |"
        in parts["What was measured"]
    )
    contract = made["ppo"].text
    assert contract is not None
    assert (
        f"token ids {', '.join(map(str, contract['stop_ids']))}; BOS is {contract['bos_token_id']}"
        in parts["How it reads and ends text"]
    )
    assert "It marks answers with `{% generation %}`" in parts["How it reads and ends text"]
    assert not MARK.search("{% if add_generation_prompt %}{{ generation }}{% endif %}"), "the control"
    assert made["ppo"].digest in parts["How to verify it"]
    assert f"`align checkout {made['pretrain'].short} BASE` gives its base" in parts["How to load it"]


def test_the_code_of_a_card_runs(trained: Pipeline, tmp_path: Path) -> None:
    import align

    base = checkout(trained.made["pretrain"], tmp_path / "base", trained.store)
    folder = checkout(trained.made["reward"], tmp_path / "out", trained.store)
    found = loaded((folder / "README.md").read_text(), folder, base)
    model, _ = align.load(trained.made["reward"], trained.store)
    with torch.no_grad():
        output = model(input_ids=IDS, output_hidden_states=True)
        assert torch.allclose(found["model"](input_ids=IDS).logits, output.logits, atol=1e-5)
        assert torch.allclose(found["score"](IDS), model.score_head(output.hidden_states[-1][:, -1]), atol=1e-5)


def test_a_merged_model(pipeline: Pipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The export's card has the verdict and loads the folder; a second run takes an export whose card was edited for
    done."""
    out = tmp_path / "exported"
    config = merge.Config(parent="tiny/dpo", out=out, precision="fp32", threads=1, name="merged")  # type: ignore[arg-type]
    made = merge.run(config, pipeline.store)
    text = (out / "README.md").read_text()
    data = ModelCard(text).data
    assert (data.library_name, data.tags) == ("transformers", ["align", "sft", "dpo"])
    assert "\n# merged\n" in text and "\n# tiny/dpo, merged\n" in card(pipeline.store, made, "merge", "")
    parts = sections(text)
    assert parts["How it differs from its adapters"].startswith("\n**equal**: against the adapters on their base, ")
    assert verified(out, text) == 0 and "model/" not in parts["How to verify it"]
    model, other = loaded(text, out)["model"], pipeline.store.folder(made) / "model"
    assert model.config.vocab_size == 300 and other.is_dir()
    edited = text + "\nMine.\n"
    (out / "README.md").write_text(edited)
    merge.run(config, pipeline.store)
    assert (out / "README.md").read_text() == edited
    (out / "config.json").unlink()
    with pytest.raises(Exception, match="is not empty"):
        merge.run(config, pipeline.store)


def test_a_base_from_the_hub_is_named(trained: Pipeline, tmp_path: Path) -> None:
    """By id and commit; an adapter on a model that was made from it, and the merged model too, name it as their
    root."""
    store, sft = Store(tmp_path / "store"), trained.made["sft"]
    files = trained.store.materialise(sft, tmp_path / "files")
    base: dict[str, Any] = {
        "model": "Qwen/Qwen2.5-0.5B-Instruct",
        "revision": "7" * 40,
        "digest": "1" * 64,
        "quantize": "nf4",
    }
    common: dict[str, Any] = {
        "stage": "sft",
        "version": 1,
        "config": sft.config,
        "parents": {},
        "text": sft.text,
        "data": {},
        "metrics": {},
    }
    adapter = store.put(files, kind="adapter", base=base, **common)
    text = card(store, adapter, "mine")
    data = ModelCard(text).data
    assert data.base_model == base["model"] and data.to_dict()["base_model_relation"] == "adapter"
    assert (
        f'from_pretrained("Qwen/Qwen2.5-0.5B-Instruct", revision="{"7" * 40}"' in text and "load_in_4bit=True" in text
    )
    model = store.put(
        trained.store.materialise(trained.made["pretrain"], tmp_path / "model"),
        kind="model",
        base=base,
        **{**common, "stage": "merge", "metrics": METRICS},
    )
    assert ModelCard(card(store, model, "merged")).data.to_dict()["base_model_relation"] == "finetune"
    assert "Against the nf4 model as it was trained: KL 0.5 nats per token" in card(store, model, "merged")
    on_it = {**base, "model": f"artifact:{model.digest}", "revision": None, "digest": model.digest}
    assert (
        ModelCard(card(store, store.put(files, kind="adapter", base=on_it, **common), "stacked")).data.base_model
        == base["model"]
    )
    lost = replace(adapter, parents={"parent": "5" * 64})
    assert "parent: `555555555555`" in card(store, lost, "lost")  # an ancestor that this store does not have


METRICS = {
    **{"verdict": "equal", "kl": 0.0, "logit_max_abs_diff": 0.0, "greedy_agreement": 1.0},
    **{"quantised/kl": 0.5, "quantised/greedy_agreement": 0.9, "quantised/logit_max_abs_diff": 0.1},
}


def test_data_has_no_card(pipeline: Pipeline, tmp_path: Path) -> None:
    (tmp_path / "files").mkdir()
    (tmp_path / "files/data.jsonl").write_text("{}\n")
    settings: dict[str, Any] = {
        "version": 1,
        "config": {},
        "parents": {},
        "base": None,
        "text": None,
        "data": {},
        "metrics": {},
    }
    artifact: Artifact = pipeline.store.put(tmp_path / "files", kind="data", stage="pairs", **settings)
    run_align("checkout", artifact.short, tmp_path / "out", "--store", pipeline.store.path)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["data.jsonl"]
