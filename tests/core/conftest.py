"""What the tests of tensors share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def all_fp64(monkeypatch: pytest.MonkeyPatch) -> None:
    """Modelling code computes norms and softmax in fp32 whatever the model's dtype; here it computes them in fp64 too."""
    monkeypatch.setattr(torch, "float32", torch.float64)
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
