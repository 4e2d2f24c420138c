"""What tests of data files share."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Writes rows as JSON lines into a file of a folder of its own, where the test then stands, and gives its name."""
    monkeypatch.chdir(tmp_path)

    def write(*rows: Any, name: str = "rows.jsonl") -> str:
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return name

    return write
