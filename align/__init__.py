"""Align: language models aligned with LoRA, from pretraining to PPO, on one frozen base. `import align` loads no torch.

store = align.Store()
sft = align.sft.run(align.sft.Config(base="path/or/hub-id", data="sft.jsonl"), store)
model, tokenizer = align.load(sft, store)
artifacts = align.run("recipes/helpful.yaml", store)
"""

import importlib
import logging
import os
from typing import TYPE_CHECKING, Any

from align.stage.catalogue import in_recipes

if TYPE_CHECKING:
    # What the catalogue has beside these works too, as `Any`.
    from align import dpo, evaluate, generate, grpo, merge, pairs, ppo, pretrain, reinforce_pp, reward, rloo, sft
    from align.exchange.loading import load
    from align.ground.errors import AlignError, InputError, Stopped
    from align.pipeline import run
    from align.store import Artifact, Store

# torch reads these once. oneDNN, and ideep before it, keep what they compile for every shape of a product in bf16:
# 0.6 MiB for each of up to 1,024, and packed rows have another length in every step (pytorch issue 27971). The products
# of a layer, forward and backward, have about 45 shapes.
for cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(cache, "64")

# So does libgomp, whose threads torch computes with. One that waits for another asks 300,000 times before it sleeps:
# beside other programs that is time of the thread it waits for. Two threads on two cores with three busy programs, the
# quickstart's SFT: 1.5 steps a second, 3.0 with 2,000 times; on a machine of their own 14 with either.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

# It reports optional kernels that are missing at every start.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

__all__ = ["AlignError", "Artifact", "InputError", "Stopped", "Store", *in_recipes(), "generate", "load", "run"]

_HOMES = {
    **dict.fromkeys(("AlignError", "InputError", "Stopped"), "align.ground.errors"),
    **dict.fromkeys(("Artifact", "Store"), "align.store"),
    "load": "align.exchange.loading",
    "run": "align.pipeline",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'align' has no attribute {name!r}")
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    return importlib.import_module(f"align.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
