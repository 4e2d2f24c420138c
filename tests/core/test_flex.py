"""FlexAttention's path: on a CPU its mask and values can be tested without a backward; its kernels need CUDA."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from align.core import flex, probe
from align.core.attention import NAME
from align.core.forward import hidden_states
from align.core.pack import pack
from tests.core.models import CONFIGS, make_base, pairs

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


def prefer(model: Any, batch: Any) -> str:
    with torch.no_grad():
        probe._prefer_flex(model, batch, batch.split(hidden_states(model, batch)), 1e-4)
    return str(model.config._attn_implementation)


def test_the_probe_takes_it_only_with_equal_gradients(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model, batch = make_base(dtype=torch.float32), pack(pairs())
    assert prefer(model, batch) == NAME  # no backward on a CPU, and it says so
    assert "does not support backward on CPU" in capsys.readouterr().err
    monkeypatch.setattr(probe, "_gradient", lambda model, batch: torch.ones(3))
    assert prefer(model, batch) == flex.NAME
