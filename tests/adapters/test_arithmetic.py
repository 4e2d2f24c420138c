"""Blends against PEFT's own `add_weighted_adapter` on a whole model, and against the matrices that they stand for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor

from align import blend
from align.adapters import arithmetic
from align.adapters.methods import config_of
from align.ground.errors import InputError
from align.models.roles import Roles
from align.recipe import Adapter
from tests.models.models import make_base, randomise

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
WEIGHTS = (0.7, -0.4)
HOWS: list[tuple[str, int | None, float | None]] = [
    ("cat", None, None),
    ("linear", None, None),
    ("svd", 3, None),
    ("ties", None, 0.5),
    ("ties_svd", 3, 0.5),
    ("dare_linear", None, 0.5),
    ("dare_ties", None, 0.5),
    ("dare_linear_svd", 3, 0.5),
    ("dare_ties_svd", 3, 0.5),
]


def folders(path: Path, *settings: dict[str, Any]) -> list[Path]:
    """Trained adapters in PEFT's layout."""
    roles = Roles(make_base(dtype=torch.float32))
    for i, more in enumerate(settings):
        roles.add_adapter(f"a{i}", config_of(Adapter(**{"rank": 4, "alpha": 8.0, **more}), roles.base))
        randomise(roles, f"a{i}", seed=i)
        roles.save_adapter(f"a{i}", path / str(i), "base")
    return [path / str(i) for i in range(len(settings))]


def deltas(config: Any, tensors: Any) -> dict[str, Tensor]:
    """What an adapter adds to each matrix."""
    part = arithmetic.Weighed(config, tensors, 1.0)
    scale = config.lora_alpha / (config.r**0.5 if config.use_rslora else config.r)
    return {name: scale * b @ a for name, (a, b) in part.layers.items()}


@pytest.mark.parametrize(("how", "rank", "density"), HOWS)
def test_it_is_pefts(how: Any, rank: int | None, density: float | None, tmp_path: Path) -> None:
    """On a whole base of its own; draws of DARE from the same seed."""
    paths = folders(tmp_path, {}, {})
    parts = [arithmetic.part(path, weight) for path, weight in zip(paths, WEIGHTS, strict=True)]
    order = [name for name, _ in make_base().named_modules()]
    config, ours = arithmetic.blend(parts, how, rank, density, seed=5, order=order)
    theirs = PeftModel.from_pretrained(make_base(dtype=torch.float32), str(paths[0]), adapter_name="one")
    theirs.load_adapter(str(paths[1]), adapter_name="two")
    torch.manual_seed(5)
    theirs.add_weighted_adapter(["one", "two"], list(WEIGHTS), "made", how, svd_rank=rank, density=density)
    want = get_peft_model_state_dict(theirs, adapter_name="made", save_embedding_layers=False)
    assert config.r == theirs.peft_config["made"].r and ours.keys() == want.keys()
    got, expected = deltas(config, ours), deltas(theirs.peft_config["made"], want)
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=1e-5)
    if not how.endswith("svd"):
        assert all(torch.equal(ours[key], want[key]) for key in ours)
    other = arithmetic.blend(parts[:1], "cat")[1]  # negative control
    assert not any(torch.equal(ours[key], other.get(key, torch.zeros(1))) for key in ours)


def test_a_sum_is_exact_whatever_the_scales(tmp_path: Path) -> None:
    """rsLoRA, other ranks and other layers: cat is the weighted sum of the matrices, and svd of a full rank too."""
    first, second = folders(tmp_path, {"rank": 4, "method": "rslora"}, {"rank": 2, "layers": 1})
    parts = [arithmetic.part(first, 0.5), arithmetic.part(second, 2.0)]
    one, two = (deltas(p.config, p.tensors) for p in parts)
    assert len(two) * 2 == len(one)
    for how, rank in (("cat", None), ("svd", 6)):
        config, tensors = arithmetic.blend(parts, how, rank)  # type: ignore[arg-type]
        got = deltas(config, tensors)
        for name, delta in got.items():
            wanted = 0.5 * one[name] + (2.0 * two[name] if name in two else 0.0)
            torch.testing.assert_close(delta, wanted, rtol=0, atol=1e-5)
        roles = Roles(make_base(dtype=torch.float32))
        roles.add_adapter("made", config)
        assert {f"base_model.model.{key}" for key in roles.adapter_state("made")} == tensors.keys()


def test_energy_is_that_of_the_singular_values(tmp_path: Path) -> None:
    """Against numpy's, of the whole matrices."""
    paths = folders(tmp_path, {}, {})
    parts = [arithmetic.part(path, weight) for path, weight in zip(paths, WEIGHTS, strict=True)]
    found = [deltas(p.config, p.tensors) for p in parts]
    values = []
    for name in sorted(found[0]):
        values.append(np.linalg.svd((0.7 * found[0][name] - 0.4 * found[1][name]).double().numpy())[1])
    ours = arithmetic.singular_values(parts)
    for got, want in zip(ours, values, strict=True):
        np.testing.assert_allclose(got.numpy(), want[: len(got)], atol=1e-5)
    whole = sum((s**2).sum() for s in values)
    share = sum((s[:3] ** 2).sum() for s in values) / whole
    assert arithmetic.kept(ours, 3) == pytest.approx(share, abs=1e-6)
    assert arithmetic.rank_for(ours, share - 1e-4) == 3 and arithmetic.rank_for(ours, share + 1e-4) == 4
    assert arithmetic.rank_for(ours, 1.0) == 8


def test_factors_of_other_ranks_are_not_added_one_by_one(tmp_path: Path) -> None:
    parts = [arithmetic.part(path, 1.0) for path in folders(tmp_path, {}, {"rank": 2})]
    with pytest.raises(InputError, match=r"method linear: .* same r"):
        arithmetic.blend(parts, "linear")
    arithmetic.blend(parts, "cat")  # negative control


def test_a_rank_that_a_matrix_has_not_is_refused(tmp_path: Path) -> None:
    parts = [arithmetic.part(path, 1.0) for path in folders(tmp_path, {}, {"rank": 2})]
    least = min(min(down.shape[1], up.shape[0]) for p in parts for down, up in p.layers.values())
    arithmetic.blend(parts, "svd", least)  # negative control
    with pytest.raises(InputError, match=rf"the rank is {least + 1}, and \S+ of .* has no more than {least}. Take a l"):
        arithmetic.blend(parts, "svd", least + 1)


def test_parts_of_a_sum_are_no_adapters_of_their_own(tmp_path: Path) -> None:
    """What began as PiSSA is two adapters, one of which takes the other's start off; pruned each by itself they are not
    what was trained."""
    for method in ("cat", "svd"):
        blend.check_apart("mine", 2, method)  # negative control
    blend.check_apart("mine", 1, "ties")
    with pytest.raises(InputError, match="mine has 2 adapters that act as their sum, and method ties would take each"):
        blend.check_apart("mine", 2, "ties")
    first, second = (arithmetic.part(path, 1.0) for path in folders(tmp_path, {}, {}))
    same = arithmetic.Weighed(first.config, first.tensors, -1.0)  # what takes the whole of the first off
    for how, nothing in (("cat", True), ("linear", False)):
        found = deltas(*arithmetic.blend([first, same, second], how))  # type: ignore[arg-type]
        alone = deltas(*arithmetic.blend([second], how))  # type: ignore[arg-type]
        assert all(torch.allclose(found[name], alone[name], atol=1e-5) for name in found) == nothing


def test_what_is_no_lora_of_linear_layers_is_refused() -> None:
    plain = {"peft_type": "LORA", "use_rslora": True, "target_parameters": []}
    blend.check_plain("mine", plain)  # negative control
    for more, said in (
        ({"use_dora": True}, "mine is an adapter of dora, and LoRA's factors"),
        ({"target_parameters": ["experts.down_proj"]}, "of rslora with routed experts, and"),
        ({"trainable_token_indices": [7]}, "of rslora with rows of tokens, and"),
        ({"peft_type": "IA3"}, "mine is an adapter of ia3, and"),
    ):
        with pytest.raises(InputError, match=said):
            blend.check_plain("mine", plain | more)


def test_one_alone_is_cut_to_a_rank(tmp_path: Path) -> None:
    """By the largest singular values of each matrix, as numpy has them; PEFT leaves one adapter alone as it is."""
    (folder,) = folders(tmp_path, {})
    part = arithmetic.part(folder, 0.5)
    before = deltas(part.config, part.tensors)
    config, tensors = arithmetic.blend([part], "svd", 2)
    after = deltas(config, tensors)
    assert config.r == 2 < part.config.r
    for name, whole in before.items():
        u, s, v = np.linalg.svd(0.5 * whole.double().numpy(), full_matrices=False)
        np.testing.assert_allclose(after[name].double().numpy(), (u[:, :2] * s[:2]) @ v[:2], atol=1e-5)
        assert s[2] > 1e-3  # negative control: something is cut
