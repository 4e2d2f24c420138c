"""One process of a run that `tests.benchmarks.cluster` is checked against: SFT of a small Llama, a copy on each process
or in shards, counted and timed. `python -m tests.benchmarks.cluster_worker OUT`, in torchrun's environment.

Times are process CPU time, so that other work on the machine does not count.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp._fully_shard import _fsdp_param_group
from transformers import LlamaConfig, LlamaForCausalLM, TrainerCallback
from transformers.trainer import DEFAULT_CALLBACKS

from align import losses, training
from align.adapters.targets import lora_config
from align.data.examples import Example
from align.models.base import prepare
from align.models.roles import Roles
from align.recipe import TrainConfig
from align.training.processes import barrier, from_first, rank_and_world
from tests.benchmarks.clock import WARM_UP

SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 700,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 4001,
}
"""4,001 rows do not divide by 2 or 4: shards are filled up."""
ROW, MICRO_BATCHES, STEPS, RANK, REPEATS = 384, 2, 6, 8, 8


class Counter(TrainerCallback):
    """CPU seconds and bytes from the end of the warm-up to the last step."""

    def __init__(self) -> None:
        self.gathered = self.averaged = 0
        self.start: tuple[float, int, int] = (0.0, 0, 0)
        self.spent: dict[str, float] = {}

    def install(self) -> None:
        gather, average, reduce = (
            _fsdp_param_group.foreach_all_gather,
            training.trainer.average_gradients,
            torch.distributed.all_reduce,
        )

        def counting(params: Any, *args: Any, **kwargs: Any) -> Any:
            here = sum(p._sharded_param_data.numel() * p._sharded_param_data.element_size() for p in params)
            self.gathered += here * (rank_and_world()[1] - 1)
            return gather(params, *args, **kwargs)

        def reducing(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.averaged += tensor.numel() * tensor.element_size()
            return reduce(tensor, *args, **kwargs)

        def averaging(parameters: Any) -> None:
            torch.distributed.all_reduce = reducing
            average(parameters)
            torch.distributed.all_reduce = reduce

        vars(_fsdp_param_group)["foreach_all_gather"] = counting
        training.trainer.average_gradients = averaging
        DEFAULT_CALLBACKS.append(self)  # type: ignore[arg-type]

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == WARM_UP:
            self.start = (time.process_time(), self.gathered, self.averaged)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends = (time.process_time(), self.gathered, self.averaged)
        cpu, gathered, averaged = ((b - a) / (STEPS - WARM_UP) for a, b in zip(self.start, ends, strict=True))
        self.spent = {"cpu": cpu, "gathered": gathered, "averaged": averaged}


def rows(count: int) -> list[Example]:
    draw = torch.Generator().manual_seed(0)
    out = []
    for _ in range(count):
        ids = torch.randint(3, SIZES["vocab_size"], (ROW,), generator=draw).tolist()
        out.append(Example((ids,), ([False] * (ROW // 2) + [True] * (ROW // 2),), shared=0))
    return out


def timed(work: Callable[[], object]) -> float:
    """CPU seconds of one of several rounds that all processes make together."""
    barrier()
    start = time.process_time()
    for _ in range(REPEATS):
        work()
    return (time.process_time() - start) / REPEATS


def main(out: Path) -> None:
    from_first("")
    rank, world = rank_and_world()
    torch.manual_seed(0)
    model: Any = LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=False))
    roles = Roles(prepare(model))
    if world > 1:
        roles.shard()
    roles.add_adapter("policy", lora_config(RANK, 2 * RANK, "all-linear", 0.0, roles.base))
    roles.assign("policy", ["policy"])
    roles.train_only("policy")
    counter = Counter()
    counter.install()
    batch = MICRO_BATCHES * world
    more: Any = {"base": "none", "data": "none", "logging_steps": 10_000, "checkpoint_steps": 0, "max_steps": STEPS}
    config = TrainConfig(precision="fp32", batch_size=batch, tokens_per_microbatch=ROW, **more)
    plan = training.plan.Plan(
        rows(STEPS * batch), batch_size=batch, epochs=1, max_steps=STEPS, tokens_per_microbatch=ROW, seed=0
    )
    with tempfile.TemporaryDirectory() as folder:
        loss = lambda r, b: losses.tokens.next_token(r.logprobs("policy", b))  # noqa: E731
        training.trainer.fit(roles, loss, plan, config, title="cluster", checkpoints=Path(folder))
    found: dict[str, Any] = {**counter.spent, "trained": sum(p.numel() for p in roles.trainable().values())}
    found["tensors"] = len(roles.trainable())
    if roles.shards:
        layer, embed, head = roles.shards.units[0], roles.shards.embed, roles.shards.head
        for name, unit in (("layer", layer), ("embed", embed), ("head", head)):
            found[name] = timed(lambda unit=unit: (unit.unshard(), unit.reshard()))  # type: ignore[misc]
        flat = torch.zeros(found["trained"])
        found["average"] = timed(lambda: torch.distributed.all_reduce(flat))
    if rank == 0:
        out.write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
