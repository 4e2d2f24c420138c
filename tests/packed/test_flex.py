"""FlexAttention's path: on a CPU its mask and values can be tested without a backward; its kernels need CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

from align.packed import flex, probe
from align.packed.attention import NAME, grouped_attention
from align.packed.forward import hidden_states
from align.packed.pack import Layout, pack
from tests.models.models import CONFIGS, make_base, pairs

pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile.*:UserWarning")


@pytest.mark.parametrize("name", sorted(CONFIGS))
def test_it_equals_the_grouped_path(name: str) -> None:
    model, batch = make_base(name, torch.float32), pack(pairs())
    with torch.no_grad():
        wanted = hidden_states(model, batch)
        model.config._attn_implementation = flex.NAME
        torch.testing.assert_close(hidden_states(model, batch), wanted, atol=2e-5, rtol=2e-5)


def test_one_branch_that_saw_another_would_be_found(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = make_base(dtype=torch.float32), pack(pairs())
    with torch.no_grad():
        wanted = hidden_states(model, batch)
        model.config._attn_implementation = flex.NAME
        causal = lambda layout, window, device: lambda b, h, q, k: q >= k  # noqa: E731
        monkeypatch.setattr(flex, "visible", causal)
        assert (hidden_states(model, pack(pairs())) - wanted).abs().max() > 1e-2


LAYOUTS = {
    "one branch": Layout(((0, (300,)),)),
    "pairs": Layout(((150, (130, 40)), (3, (7, 260)), (128, (128, 256)))),
    "groups": Layout(((500, (60, 70, 1, 90)), (0, (129,)), (17, (5,) * 8))),
    "short": Layout(((4, (3, 2)),)),
}


@pytest.mark.parametrize("window", [None, 1, 33, 128, 200])
@pytest.mark.parametrize("name", LAYOUTS)
def test_blocks_are_those_that_torch_finds(name: str, window: int | None) -> None:
    """`create_block_mask` asks the mask function for every pair of positions; ours knows intervals."""
    layout, like = LAYOUTS[name], torch.zeros(1)
    rows = sum(prefix + sum(branches) for prefix, branches in layout.groups)
    wanted = create_block_mask(flex.visible(layout, window, like.device), None, None, rows, rows, device="cpu")
    found = flex.block_mask(Layout(layout.groups), window, like)
    assert found.seq_lengths == wanted.seq_lengths
    for counts, indices in (
        ("kv_num_blocks", "kv_indices"),
        ("full_kv_num_blocks", "full_kv_indices"),
        ("q_num_blocks", "q_indices"),
    ):
        assert torch.equal(getattr(found, counts), getattr(wanted, counts))
        for row, n in enumerate(getattr(wanted, counts)[0, 0].tolist()):
            assert set(getattr(found, indices)[0, 0, row, :n].tolist()) == set(
                getattr(wanted, indices)[0, 0, row, :n].tolist()
            )


@pytest.mark.parametrize("window", [None, 1, 33, 200])
@pytest.mark.parametrize("name", LAYOUTS)
def test_intervals_are_what_the_mask_function_says(name: str, window: int | None) -> None:
    layout = LAYOUTS[name]
    seen = torch.from_numpy(flex.intervals(layout, window))
    at = torch.arange(len(seen))
    wanted = flex.visible(layout, window, torch.device("cpu"))(None, None, at[:, None], at[None])
    inside = ((at >= seen[:, :, :1]) & (at < seen[:, :, 1:])).any(1)
    assert torch.equal(inside, wanted)
    # negative control: not plain causal attention
    assert not torch.equal(inside, at[:, None] >= at[None]) or name == "one branch"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_the_kernel_skips_blocks_and_is_not_compiled_for_every_row() -> None:
    """The compiled forward, on a CPU: equal to the grouped path for rows of many lengths, compiled a few times and not
    for each of them."""
    torch._dynamo.reset()
    draw, lengths = torch.Generator().manual_seed(0), [(40 * i + 90, (30 + 7 * i, 150 - i)) for i in range(8)]
    with torch.no_grad():
        for i, group in enumerate(lengths):
            layout = Layout((group, (5, (60, 70))))
            rows = sum(prefix + sum(branches) for prefix, branches in layout.groups)
            q, k, v = (torch.randn(1, 2, rows, 16, generator=draw) for _ in range(3))
            mask = flex.block_mask(layout, None, q)
            found = flex._kernel(True)(q, k, v, score_mod=None, block_mask=mask, scale=None, enable_gqa=False)
            wanted = grouped_attention(torch.nn.Module(), q, k, v, None, layout=layout)[0].transpose(1, 2)
            torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
            if i == 3:
                settled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == settled <= 3


def prefer(model: Any) -> str:
    with torch.no_grad():
        tried = probe.trial(model)
        probe._prefer_flex(tried)
    return str(model.config._attn_implementation)


def test_the_probe_takes_it_only_with_equal_gradients(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = make_base(dtype=torch.float32)
    assert prefer(model) == NAME  # no backward on a CPU, and it says so
    assert "does not support backward on CPU" in capsys.readouterr().err
    monkeypatch.setattr(probe, "_gradient", lambda model, batch: torch.ones(3))
    assert prefer(model) == flex.NAME
