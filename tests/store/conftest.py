"""A store with three artifacts, and the smallest folder that makes one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from align.store import Artifact, Store


def fill(folder: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def put(store: Store, folder: Path, **changes: Any) -> Artifact:
    """Commit `folder` as a plain adapter, but for `changes`."""
    settings: dict[str, Any] = {
        **{"kind": "adapter", "stage": "sft", "version": 1, "config": {"learning_rate": 2e-4}, "parents": {}},
        **{
            "base": {"model": "tiny", "revision": None, "digest": "0" * 64, "quantize": None},
            "text": {"eos": 2},
            "data": {},
            "metrics": {},
        },
    }
    return store.put(folder, **(settings | changes))


def make_family(store: Store, folder: Path) -> dict[str, Artifact]:
    """sft -> reward, and dpo from both, each with a ref; all three hold the same tokenizer file."""
    files = {
        name: fill(folder / name, {"weights": f"{name} weights".encode(), "tokenizer/vocab": b"shared"})
        for name in ("sft", "reward", "dpo")
    }
    sft = put(store, files["sft"])
    reward = put(
        store, fill(files["reward"], {"head": b"score"}), kind="reward", stage="reward", parents={"parent": sft}
    )
    dpo = put(
        store, files["dpo"], stage="dpo", parents={"parent": sft, "reward": reward}, metrics={"eval/accuracy": 0.75}
    )
    family = {"sft": sft, "reward": reward, "dpo": dpo}
    for name, artifact in family.items():
        store.tag(f"quickstart/{name}", artifact)
    return family


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def family(store: Store, tmp_path: Path) -> dict[str, Artifact]:
    return make_family(store, tmp_path)
