"""A packed row over two gloo processes against the same row in one: gradients of every kind of loss, families, and what
the backward keeps. The worker is this file run as a script; the truth is computed in each process by itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from align import dpo, sft
from align.adapters.targets import lora_config
from align.data.examples import Example
from align.ground.errors import InputError
from align.ground.ranks import world
from align.models.base import prepare
from align.models.roles import Roles
from align.packed import context
from align.packed.pack import Batch, pack
from align.store import Store
from tests.conftest import ROOT, write_world
from tests.models.models import CONFIGS, PADDED, SIZES, make_base, pairs
from tests.training.test_distributed import start, two_ranks

AGAIN, SHORT, ALONE = "sft, activation_checkpointing", "a row of three tokens", "nothing gathered"


def work(out: Path) -> None:
    from align.training.processes import from_first, rank_and_world
    from tests.training.test_invariants import all_stages, two_roles

    from_first(True)
    found: dict[str, Any] = {}
    for case in all_stages():
        loss, examples = case.values
        roles = two_roles()
        found[str(case.id)] = apart(roles, loss, pack(examples))
    found[AGAIN] = apart(two_roles(), sft.loss, pack(pairs(3)), again=True)
    found[SHORT] = apart(two_roles(), sft.loss, pack([Example(((5, 6, 7),), ((False, True, True),))]))
    gathered, context.Gathered.apply = context.Gathered.apply, lambda part, alike: part.repeat_interleave(2, -2)
    found[ALONE] = apart(two_roles(), sft.loss, pack(pairs(3)))
    context.Gathered.apply = gathered
    found["families"] = {name: differs(name) for name in (*CONFIGS, *PADDED)}
    found["kept"] = kept()
    rank, _ = rank_and_world()
    (out / f"{rank}.json").write_text(json.dumps(found))
    torch.distributed.barrier()


def stages(out: Path) -> None:
    """Whole stages of two steps, in fp32."""
    store = Store(out / f"store-{world()}")
    common = {"precision": "fp32", "threads": 1, "max_steps": 2, "batch_size": 4, "parallel": "context"}
    base = str(ROOT / "data/tiny-base")
    for module, inputs in ((sft, {"base": base, "data": "sft"}), (dpo, {"parent": "sft", "data": "pairs"})):
        name, data = module.__name__.split(".")[1], str(out / f"{inputs['data']}.jsonl")
        module.run(module.Config(**{**common, **inputs, "data": data, "name": name}), store)


def apart(roles: Roles, loss: Any, batch: Batch, again: bool = False) -> float:
    """By how much gradients differ, relative, between a row over the processes and one that each computes whole."""
    if again:
        roles.enable_activation_checkpointing()
    want = gradients(roles, loss, batch)
    roles.rows_cut = True
    return float((gradients(roles, loss, batch) - want).norm() / want.norm())


def gradients(roles: Roles, loss: Any, batch: Batch) -> Tensor:
    from align.training.processes import average_gradients

    parameters = list(roles.trainable().values())
    roles.zero_grad()
    loss(roles, batch).scalar(batch.counts).backward()
    average_gradients(parameters)
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters])


def differs(name: str) -> str:
    """What is said of a family."""
    try:
        Roles(make_base(name, torch.float32)).cut_rows("stage")
    except InputError as error:
        return str(error)
    return ""


def kept() -> list[int]:
    """Bytes that the backward of a row of 1,024 tokens needs: of a whole one, and of this process's part."""
    base = LlamaForCausalLM(LlamaConfig(**{**SIZES, "hidden_size": 256, "intermediate_size": 1024}))
    roles = Roles(prepare(base))
    roles.add_adapter("policy", lora_config(8, 8, "all-linear", 0.0, roles.base))
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    tokens = tuple(torch.randint(97, (1024,), generator=torch.Generator().manual_seed(0)).tolist())
    batch = pack([Example((tokens,), ((False, *(True,) * 1023),))])
    return [saved(roles, batch, cut) for cut in (False, True)]


def saved(roles: Roles, batch: Batch, cut: bool) -> int:
    """Bytes that the backward keeps, but for weights."""
    seen: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    roles.rows_cut = cut
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        hidden = roles.hidden_as("policy", batch)
    weights = {p.untyped_storage().data_ptr() for p in roles.parameters()}
    del hidden
    return sum(size for place, size in seen.items() if place not in weights)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    out = tmp_path_factory.mktemp("context")
    start("tests.packed.test_context", out, *two_ranks())
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(2)]


def test_gradients_are_those_of_whole_rows(found: list[dict[str, Any]]) -> None:
    """In fp64. The control has each process look at its own keys alone."""
    for of in found:
        cases = {name: value for name, value in of.items() if isinstance(value, float) and name != ALONE}
        assert len(cases) >= 9 and max(cases.values()) < 1e-12, cases
        assert of[ALONE] > 1e-3


def test_families_compute_parts_or_are_refused(found: list[dict[str, Any]]) -> None:
    """Sliding windows and soft caps too; what takes the padded path is refused."""
    for of in found:
        assert {name for name, why in of["families"].items() if why} == set(PADDED), of["families"]
        assert "but this base cannot compute a row in parts (packed rows" in of["families"]["bloom"]


def test_a_process_keeps_half_of_what_the_backward_needs(found: list[dict[str, Any]]) -> None:
    print([of["kept"] for of in found])
    for of in found:
        whole, part = of["kept"]
        assert 0.45 < part / whole < 0.65, (whole, part)


@pytest.mark.slow
def test_whole_stages_end_where_one_process_does(tmp_path: Path) -> None:
    """Within rounding of fp32, and not where they began: LoRA's B starts at 0."""
    write_world(tmp_path)
    (tmp_path / "stages").touch()
    for ranks in (two_ranks(), [{}]):
        start("tests.packed.test_context", tmp_path, *ranks)
    for name in ("sft", "dpo"):
        two, one = (adapter(Store(tmp_path / f"store-{n}"), name) for n in (2, 1))
        assert two.keys() == one.keys() and any("lora_B" in key and value.any() for key, value in one.items())
        for key, value in one.items():
            torch.testing.assert_close(two[key], value, rtol=1e-4, atol=1e-6)


def adapter(store: Store, name: str) -> dict[str, Tensor]:
    """The weights of the adapter on top."""
    folder = store.folder(store.resolve(name))
    return load_file(sorted((folder / "adapters").glob("*/adapter_model.safetensors"))[-1])


if __name__ == "__main__":
    given = Path(sys.argv[1])
    (stages if (given / "stages").exists() else work)(given)
