"""Adapters from elsewhere: what PEFT made is computed as PEFT computes it, or refused by name, at every door."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from align import sft
from align.exchange import foreign
from align.exchange.transfer import check_folder, import_adapter
from align.folders import adapter, adapter_settings, adapter_tensors
from align.ground.errors import InputError
from align.models import base
from align.models.roles import Roles
from align.recipe import Base
from align.report.text import show_text
from align.store import Artifact, Store
from tests.conftest import ROOT, write_rows
from tests.stages.helpers import committed

pytestmark = [  # PEFT's, about its own settings
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

BASE = ROOT / "data/tiny-base"
IDS = torch.arange(5, 29)[None]


def plain_base() -> Any:
    return AutoModelForCausalLM.from_pretrained(BASE, dtype=torch.float32)


def saved(
    folder: Path, settings: dict[str, Any] | None = None, change: dict[str, Any] | None = None, **save: Any
) -> Path:
    """What PEFT makes of a random adapter; `change` is written into its settings afterwards."""
    torch.manual_seed(0)
    config = {
        "r": 4,
        "lora_alpha": 6,
        "target_modules": ["q_proj", "down_proj"],
        "task_type": "CAUSAL_LM",
        **(settings or {}),
    }
    model = get_peft_model(plain_base(), LoraConfig(**config))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    if change:
        path = folder / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def with_tensors(folder: Path, change: Any) -> Path:
    path = folder / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    return folder


def taken(folder: Path, store: Path) -> tuple[Artifact, Path]:
    """The artifact of an import, and its adapter's folder."""
    made = Store(store)
    artifact = import_adapter(folder, Base(model=str(BASE)), made, name="mine")
    return artifact, made.folder(artifact) / "adapters/0"


@torch.no_grad()
def by_peft(folder: Path) -> torch.Tensor:
    return PeftModel.from_pretrained(plain_base(), folder)(input_ids=IDS).logits[0]


SOUND: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "rslora": ({"use_rslora": True}, {}),
    "dora": ({"use_dora": True}, {}),
    "patterns": ({"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"^model.layers.1.mlp.down_proj": 9}}, {}),
    "some layers": ({"layers_to_transform": [1, 2], "layers_pattern": "layers"}, {}),
    "regex": ({"target_modules": r".*\.(q_proj|down_proj)"}, {}),
    "all-linear": ({"target_modules": "all-linear"}, {"target_modules": "all-linear"}),
    "hangs as a pattern": ({}, {"target_modules": "(.*)*(.*)*(.*)*(.*)*z"}),
    "without a task": ({"task_type": None}, {}),
    "dropout": ({"lora_dropout": 0.3}, {}),
    **{init: ({"init_lora_weights": init}, {}) for init in ("gaussian", "orthogonal", "mica")},
    "eva": ({}, {"init_lora_weights": "eva", "eva_config": {"rho": 2.0}}),
}


@pytest.mark.parametrize("kind", SOUND)
def test_what_is_taken_is_what_peft_computes(kind: str, tmp_path: Path) -> None:
    """Loaded for two roles, which share a base that neither changes; what is stored gives PEFT the same logits and
    starts as plain LoRA."""
    made, changed = SOUND[kind]
    folder = saved(tmp_path / "adapter", made)
    expected = by_peft(folder)
    if changed:
        saved(tmp_path / "adapter", made, changed)
    _, stored = taken(folder, tmp_path / "store")
    assert torch.allclose(by_peft(stored), expected, atol=1e-5)
    settings = json.loads((stored / "adapter_config.json").read_text())
    assert settings["init_lora_weights"] is True and settings["auto_mapping"] is None
    assert adapter_settings.fault(settings) is None
    roles = Roles(base.load_base(BASE, quantize=None, dtype=torch.float32))
    before = {name: p.clone() for name, p in roles.base_parameters()}
    for role in ("policy", "reference"):
        roles.load_adapter(role, stored)
        roles.assign(role, [role])
    assert all(torch.equal(p, before[name]) for name, p in roles.base_parameters())
    bare = foreign._of_role(roles, "base", IDS.tolist())
    wanted = torch.log_softmax(expected[:-1], -1).gather(1, IDS[0, 1:, None])[:, 0]
    for role in ("policy", "reference"):
        assert torch.allclose(foreign._of_role(roles, role, IDS.tolist()), wanted, atol=1e-5)
    assert not torch.allclose(bare, wanted, atol=1e-2)  # negative control


REFUSED: dict[str, Any] = {
    "init_lora_weights": ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "../../x"],
    "target_modules": [["(.*)*z"], ["q_proj"] * 20_000],
    "rank_pattern": [{"([a-z_.0-9]+)+!": 8}, {"q_proj": 10**9}, {"q_proj": "4"}],
    "alpha_pattern": [{"q_proj": float("nan")}, {"(a|a)*": 2}],
    "r": [0, -4, 10**9, "4", True],
    "lora_alpha": [0, 1e308, float("nan"), "8"],
    "use_dora": ["yes"],
    "bias": ["all", "lora_only"],
    "lora_bias": [True],
    "modules_to_save": [["lm_head"]],
    "trainable_token_indices": [[1, 1], [-1], {"embed_tokens": 1}, {".*": [1]}],
    "target_parameters": ["mlp.experts.gate_up_proj", [".*"]],
    "layer_replication": [[[0, 4], [0, 4]]],
    "alora_invocation_tokens": [[1, 2]],
    "megatron_config": [{"a": 1}],
    "megatron_core": ["os"],
    "use_qalora": [True],
    "task_type": ["SEQ_CLS"],
    "peft_type": ["XLORA", "lora"],
    **{
        key: [{"a": 1}]
        for key in (
            "corda_config",
            "lora_ga_config",
            "velora_config",
            "monteclora_config",
            "kasa_config",
            "arrow_config",
        )
    },
    "use_bdlora": [{"nblocks": 2}],
    "of_tomorrow": [1],
}


def test_every_other_setting_is_refused_by_name(tmp_path: Path) -> None:
    """The same reason at import, at a pull's door and at a load. Negative control: the settings that PEFT wrote."""
    folder = saved(tmp_path / "adapter")
    path = folder / "adapter_config.json"
    sound = json.loads(path.read_text())
    assert adapter_settings.fault(sound) is None
    adapter.check_folder(folder)
    for key, values in REFUSED.items():
        for value in values:
            path.write_text(json.dumps(sound | {key: value}))
            for door in (check_folder, adapter.check_folder):
                with pytest.raises(InputError, match=rf"adapter_config.json: {key} is "):
                    door(folder)
            assert (adapter_settings.fault(sound | {key: value}) or "").startswith(f"{key} is ")


def test_the_list_knows_every_setting_of_peft() -> None:
    """A default of the installed PEFT is never refused, and what is refused unless it is empty is empty by default."""
    defaults = LoraConfig().to_dict()
    assert adapter_settings.fault(defaults) is None
    assert all(not defaults[key] for key in defaults if key not in adapter_settings.KNOWN)
    assert adapter_settings.fault(defaults | {"lora_bias": True}) is not None  # negative control


OTHERS: dict[str, Any] = {
    "IA3": peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "LoKr": peft.LoKrConfig(r=4, alpha=6, target_modules=["q_proj", "down_proj"]),
    "OFT": peft.OFTConfig(r=0, oft_block_size=16, target_modules=["q_proj", "down_proj"]),
    "RoAd": peft.RoadConfig(variant="road_2", group_size=16, target_modules=["q_proj", "down_proj"]),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_methods_are_taken_as_peft_computes_them(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = get_peft_model(plain_base(), OTHERS[kind])
    with torch.no_grad():
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
        wanted = model.eval()(input_ids=IDS).logits[0]
    model.save_pretrained(tmp_path / "a")
    _, stored = taken(tmp_path / "a", tmp_path / "store")
    assert torch.allclose(by_peft(stored), wanted, atol=1e-5)
    with torch.no_grad():
        assert not torch.allclose(plain_base()(input_ids=IDS).logits[0], wanted, atol=1e-2)  # negative control


@pytest.mark.parametrize("dtype", ["int8", "bool", "float8_e4m3fn"])
def test_tensors_of_other_types_are_refused(dtype: str, tmp_path: Path) -> None:
    folder = with_tensors(
        saved(tmp_path / "a"), lambda tensors: {k: (v * 100).to(getattr(torch, dtype)) for k, v in tensors.items()}
    )
    with pytest.raises(InputError, match=r"lora_A.weight is (I8|BOOL|F8_E4M3); expected F32, F16, BF16, F64"):
        check_folder(folder)


def test_a_narrower_type_is_kept_in_fp32_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = with_tensors(saved(tmp_path / "a"), lambda tensors: {k: v.to(torch.bfloat16) for k, v in tensors.items()})
    _, stored = taken(folder, tmp_path / "store")
    given, kept = (load_file(f / "adapter_model.safetensors") for f in (folder, stored))
    assert all(kept[k].dtype == torch.float32 and torch.equal(kept[k], given[k].float()) for k in given)
    assert "its tensors are BF16 and are kept in fp32" in capsys.readouterr().err


def merged(base: Any, adapter: Path, folder: Path) -> torch.Tensor:
    """Logits of what PEFT merges, as transformers loads it."""
    PeftModel.from_pretrained(base, adapter).merge_and_unload().save_pretrained(folder)
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(input_ids=IDS).logits[0]


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("beside", [False, True])
def test_the_remedy_for_head_and_embedding(target: str, beside: bool, tmp_path: Path) -> None:
    """As the refusal says it: on a tied base, untied first. Negative control: PEFT's merge alone gives another
    model."""
    folder = saved(tmp_path / "a", {"target_modules": ["q_proj", target]}, save_embedding_layers=beside)
    with pytest.raises(InputError) as error:
        import_adapter(folder, Base(model=str(BASE)), Store(tmp_path / "store"))
    assert "set model.config.tie_word_embeddings = False and model.lm_head.weight = torch.nn.Parameter(" in str(
        error.value
    )
    model, expected = plain_base(), by_peft(folder)
    assert model.config.tie_word_embeddings and not torch.allclose(
        merged(plain_base(), folder, tmp_path / "tied"), expected, atol=0.1
    )
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.clone())
    model.save_pretrained(tmp_path / "untied")
    untied = AutoModelForCausalLM.from_pretrained(tmp_path / "untied")
    assert torch.allclose(merged(untied, folder, tmp_path / "merged"), expected, atol=1e-4)


def test_what_peft_cannot_merge_has_another_remedy(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a", {"lora_bias": True, "target_modules": ["q_proj"]})
    with pytest.raises(
        InputError, match=r"lora_bias is True.* PEFT merges no such adapter either: train it again without that"
    ) as error:
        check_folder(folder)
    assert "merge_and_unload" not in str(error.value)
    with pytest.raises(RuntimeError, match="Impossible to merge"):
        merged(plain_base(), folder, tmp_path / "merged")
    plain = saved(tmp_path / "b", change={"kasa_config": {"a": 1}})  # negative control
    with pytest.raises(InputError, match=r"kasa_config is .*merge_and_unload"):
        check_folder(plain)


@pytest.mark.parametrize("target", ["lm_head", "embed_tokens"])
@pytest.mark.parametrize("beside", [False, True])
def test_head_and_embedding_are_refused(target: str, beside: bool, tmp_path: Path) -> None:
    """Whether PEFT saved the whole matrix beside the factors or not; nothing is stored."""
    folder = saved(tmp_path / "a", {"target_modules": ["q_proj", target]}, save_embedding_layers=beside)
    store = Store(tmp_path / "store")
    with pytest.raises(
        InputError, match=r"a whole tensor of the model|changes the model's output head|LoRA on an embedding"
    ):
        import_adapter(folder, Base(model=str(BASE)), store)
    assert list(store.artifacts()) == []


def test_what_peft_computes_otherwise_is_never_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the list taken away, the comparison finds it: a bias that the fused layers do not know."""
    folder = saved(tmp_path / "a", {"lora_bias": True, "target_modules": ["q_proj"]})
    monkeypatch.setattr(adapter, "fault", lambda settings: None)
    monkeypatch.setattr(adapter_tensors, "fault_of_tensors", lambda settings, tensors: None)
    store = Store(tmp_path / "store")
    with pytest.raises(
        InputError, match=r"the layers that train would compute another model than PEFT does, by .*Nothing was stored"
    ):
        import_adapter(folder, Base(model=str(BASE)), store)
    assert committed(store) == {}


def test_a_converted_pissa_is_taken(tmp_path: Path) -> None:
    """The remedy that its refusal names: PEFT's own conversion, whose factors nearly cancel and so round more than
    others. Trained by hand; PEFT's logits of the trained model, before the conversion, are what is stored. Negative
    control: its first state."""
    torch.manual_seed(0)
    settings = LoraConfig(
        r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], init_lora_weights="pissa", task_type="CAUSAL_LM"
    )
    model = get_peft_model(plain_base(), settings)
    model.peft_config["default"].init_lora_weights = True
    model.save_pretrained(tmp_path / "first")
    model.peft_config["default"].init_lora_weights = "pissa"
    with torch.no_grad():
        before = model(input_ids=IDS).logits[0]
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.add_(0.05 * torch.randn_like(parameter))
        trained = model(input_ids=IDS).logits[0]
    model.save_pretrained(tmp_path / "converted", path_initial_model_for_weight_conversion=str(tmp_path / "first"))
    _, stored = taken(tmp_path / "converted", tmp_path / "store")
    assert torch.allclose(by_peft(stored), trained, atol=1e-4) and not torch.allclose(before, trained, atol=1e-1)


def test_every_tokenizer_file_is_in_the_key(tmp_path: Path) -> None:
    """Another template, or another setting of the tokenizer, is another import; the same again is done already."""
    folder, store = saved(tmp_path / "a"), tmp_path / "store"
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(BASE / file, folder / file)
    template = "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    found = []
    for start in ("ONE ", "TWO ", "TWO "):
        (folder / "chat_template.jinja").write_text(start + template)
        artifact, _ = taken(folder, store)
        found.append(artifact.digest)
        assert Store(store).read(artifact, "tokenizer/chat_template.jinja").startswith(start.encode())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"model_max_length": 99}))
    found.append(taken(folder, store)[0].digest)
    assert found[1] == found[2] and len(set(found)) == 3


def test_tokens_without_a_row_in_the_embedding_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "a")
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_tokens(["<tool>", "</tool>"])
    tokenizer.save_pretrained(folder)
    with pytest.raises(
        InputError, match=r"2 tokens without a row in the base's embedding \(887 rows\), the first '<tool>' with id 887"
    ):
        taken(folder, tmp_path / "store")


@pytest.mark.parametrize("named", ["other/model-7b", str(BASE)])
def test_another_base_than_the_adapters_is_said_first(
    named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer with more rows than the base: of another base, no tokens were added. The control names this base."""
    folder = saved(tmp_path / "adapter", change={"base_model_name_or_path": named})
    tokenizer = AutoTokenizer.from_pretrained(BASE)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(folder)
    capsys.readouterr()
    with pytest.raises(InputError) as error:
        import_adapter(folder, Base(model=str(BASE)), Store(tmp_path / "store"))
    other = f"{folder}: it was trained on {named}; --base is {BASE}"
    is_other = named != str(BASE)
    assert str(error.value).startswith(f"{other}. The two do not fit together: ") is is_other
    assert ("Import it on the base that it was trained on." in str(error.value)) is is_other
    assert ("Tokens were added in its training" in str(error.value)) is not is_other
    assert capsys.readouterr().err.startswith(other) is is_other  # before any work


def test_the_manifest_records_the_precision_of_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """fp32, also where `precision: auto` means bf16. Negative control: a stage that trains in bf16."""
    monkeypatch.setattr("align.models.precision.name_of", lambda dtype: "bf16")
    artifact, _ = taken(saved(tmp_path / "given"), tmp_path / "store")
    assert artifact.config["precision"] == "fp32"
    assert 'dtype="float32"' in show_text(Store(tmp_path / "store"), "mine")
    rows = write_rows(tmp_path / "rows.jsonl", [{"prompt": f"{i}?", "completion": "Yes."} for i in range(4)])
    sft.run(
        sft.Config(parent="mine", data=str(rows), max_steps=1, precision="bf16", name="narrow"),
        Store(tmp_path / "store"),
    )
    assert 'dtype="bfloat16"' in show_text(Store(tmp_path / "store"), "narrow")


def test_tensors_of_another_size(tmp_path: Path) -> None:
    """Told in sizes, at the import and where an artifact's folder is loaded. Negative control: the right ones load."""
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    right = saved(tmp_path / "right")
    wrong = with_tensors(saved(tmp_path / "wrong"), lambda held: held | {key: held[key][:, :10].contiguous()})
    store, said = (
        Store(tmp_path / "store"),
        r"lora_A\.(default\.)?weight has sizes 4 x 10, where this base takes 4 x 160\. It",
    )
    with pytest.raises(InputError, match=said):
        import_adapter(wrong, base=Base(model=str(BASE)), store=store)
    roles = Roles(base.prepare(plain_base()))
    with pytest.raises(InputError, match=said):
        roles.load_adapter("wrong", wrong)
    roles.load_adapter("right", right)
