"""PPO with its rollouts on two gloo processes: each samples its share, both train on the union, and a stop in a rollout
changes nothing.

The worker is this file run as a script; under torchrun's environment variables `StageTrainer` is DDP.
"""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.ground.errors import AlignError
from tests.training.test_distributed import start, two_ranks

pytestmark = pytest.mark.slow
STEPS, STOP = 6, 3
"""Four steps a rollout: the stop is inside the first one, whose fourth step is still to come."""


def work(out: Path) -> None:
    """Train, then train again with a Ctrl-C that one rank alone gets, and go on: what was sampled, and the weights at
    the end of both."""
    from align import ppo
    from align.ground.errors import Stopped
    from align.rl.collect import Rollouts
    from align.sampling.rollout import Sampler
    from align.training.processes import barrier, rank_and_world
    from align.training.trainer import StageTrainer, fit
    from tests.training.test_invariants import PPO, rollouts

    more = {
        "max_steps": STEPS,
        "kl_target": 0.5,
        "kl_horizon": 20,
        "normalise_rewards": "running",
        "learning_rate": 0.01,
    }
    config = PPO.model_copy(update=more | {"logging_steps": 2})
    shares: list[Any] = []
    unions: list[Any] = []
    sample, collect, step = Sampler.__call__, Rollouts.collect, StageTrainer.training_step

    def noting(self: Sampler, prompts: Any, **kwargs: Any) -> Any:
        answers = sample(self, prompts, **kwargs)
        shares.append([[*p, *a.ids] for p, several in zip(prompts, answers, strict=True) for a in several])
        return answers

    def noting_union(self: Rollouts, index: int) -> Any:
        made = collect(self, index)
        unions.append([list(s) for e in made[0] for s in e.sequences])
        return made

    Sampler.__call__, Rollouts.collect = noting, noting_union  # type: ignore[method-assign]

    def train(
        folder: str, steps: int = STEPS, loss: Any = ppo.loss
    ) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        roles, source = rollouts(True, config.model_copy(update={"max_steps": steps}))
        roles.train_only("policy", "value", heads=["value"])
        if steps == 0:
            return {k: p.detach().clone() for k, p in roles.trainable().items()}, []
        more: Any = {"title": "ppo", "checkpoints": out / folder, "sometimes_idle": loss is ppo.warmup_loss}
        if loss is ppo.warmup_loss:
            # a run that is all warm-up is refused at its end
            with pytest.raises(AlignError, match=r"policy.* gets no gradient"):
                fit(roles, lambda r, b: loss(r, b, config), source, config, **more)
            return {k: p.detach().clone() for k, p in roles.trainable().items()}, []
        history, _ = fit(roles, lambda r, b: loss(r, b, config), source, config, **more)
        return {k: p.detach().clone() for k, p in roles.trainable().items()}, history

    untrained, _ = train("untrained", steps=0)
    warm, _ = train("warm", steps=2, loss=ppo.warmup_loss)
    shares.clear()
    unions.clear()
    whole, history = train("whole")
    rank, world = rank_and_world()
    in_one_go = len(shares)

    def interrupted(self: StageTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == STOP - 1 and rank == world - 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args, **kwargs)

    StageTrainer.training_step = interrupted  # type: ignore[method-assign]
    try:
        train("stopped")
        raise AssertionError("it was not stopped")
    except Stopped:
        StageTrainer.training_step = step  # type: ignore[method-assign]
    barrier()
    again, history_again = train("stopped")
    weights = {"untrained": untrained, "warm": warm, "whole": whole, "again": again}
    save_file({f"{name}/{k}": v for name, tensors in weights.items() for k, v in tensors.items()}, out / f"{rank}.st")
    sampled = {"in_one_go": in_one_go, "shares": shares, "unions": unions, "histories": [history, history_again]}
    (out / f"{rank}.json").write_text(json.dumps(sampled))
    if world > 1:
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    out = tmp_path_factory.mktemp("rollouts")
    start("tests.rl.test_rollouts_on_ranks", out, *two_ranks())
    return [(load_file(out / f"{r}.st"), json.loads((out / f"{r}.json").read_text())) for r in range(2)]


def test_the_experience_is_the_union_of_both_shares(ranks: Any) -> None:
    """Rank 0's samples, then rank 1's, on both ranks; no share is the other's, so nothing was sampled twice."""
    (_, zero), (_, one) = ranks
    assert zero["unions"] == one["unions"] and len(zero["unions"]) == zero["in_one_go"] * 2 == 4
    for i, union in enumerate(zero["unions"]):
        assert union == zero["shares"][i] + one["shares"][i]
        assert zero["shares"][i] != one["shares"][i] and len(union) == 8  # negative control: neither share is the union


def test_both_ranks_hold_the_same_policy(ranks: Any) -> None:
    (zero, _), (one, _) = ranks
    assert zero.keys() == one.keys() and all(torch.equal(zero[k], one[k]) for k in zero)
    assert any(k.startswith("whole/") and "lora_B.policy" in k for k in zero)


def test_a_stop_inside_a_rollout_changes_nothing(ranks: Any) -> None:
    """Six steps are three and three: weights bit for bit, and the lines of metrics, one of which was half gathered over
    both ranks."""
    for tensors, sampled in ranks:
        assert all(torch.equal(tensors[k], tensors[k.replace("whole/", "again/")]) for k in tensors)
        assert sampled["histories"][0] == sampled["histories"][1] and len(sampled["histories"][0]) == 4
        # each rollout sampled once
        assert sampled["shares"][: sampled["in_one_go"]] == sampled["shares"][sampled["in_one_go"] :]


def test_in_the_warm_up_no_rank_touches_the_policy(ranks: Any) -> None:
    """Two steps in which the policy's tensors are in no graph: DDP waits for none of them, and they stay bit for bit;
    the value's move."""
    for tensors, _ in ranks:
        moved = {
            k
            for k in tensors
            if k.startswith("warm/") and not torch.equal(tensors[k], tensors[k.replace("warm/", "untrained/")])
        }
        assert moved and not any(".policy." in k for k in moved)
        trained = [k for k in tensors if k.startswith("whole/") and ".policy." in k]
        # negative control
        assert any(not torch.equal(tensors[k], tensors[k.replace("whole/", "untrained/")]) for k in trained)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
