"""A recipe on a Ray cluster, by Ray Train: `python recipes/launch/ray_train.py recipe.yaml --workers 2 [--gpus]`

Needs `pip install 'align-rlhf[ray]'` on every machine, and a recipe, data and store ($ALIGN_STORE or --store) on a disk
that all of them see. Ray places a worker for each process and starts the group anew, at most `--failures` times, where
one is lost: the run goes on from its last checkpoint. Each worker starts `align run` as torchrun would, in a process of
its own, where a signal to stop leaves a checkpoint.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import ray.train
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch.distributed.elastic.utils.distributed import get_free_port

from align.ground.ranks import LAUNCHER


def work(config: dict[str, list[str]]) -> None:
    """`align WORDS` as one of the processes of a run. Raises: RuntimeError where it fails."""
    context = ray.train.get_context()
    meeting = [(ray.util.get_node_ip_address(), get_free_port())]
    torch.distributed.broadcast_object_list(meeting, src=0)  # by Ray's group, which has the port that it says
    torch.distributed.destroy_process_group()
    address, port = meeting[0]
    told = {
        "RANK": context.get_world_rank(),
        "LOCAL_RANK": context.get_local_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
        "GROUP_RANK": context.get_node_rank(),
        "MASTER_ADDR": address,
        "MASTER_PORT": port,
        LAUNCHER: os.getpid(),
    }
    environment = os.environ | {name: str(value) for name, value in told.items()}
    done = subprocess.run([sys.executable, "-m", "align", *config["words"]], env=environment)
    if done.returncode:
        raise RuntimeError(f"process {context.get_world_rank()} ended with exit code {done.returncode}; see its lines.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--workers", type=int, required=True, help="processes, over all machines")
    parser.add_argument("--gpus", action="store_true", help="a GPU for each")
    parser.add_argument("--store", type=Path, help="the store; without it $ALIGN_STORE")
    parser.add_argument("--failures", type=int, default=3, help="how often the group is started anew")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as `align run` takes it")
    args = parser.parse_args()
    store = args.store or Path(os.environ.get("ALIGN_STORE", ".align"))
    words = ["run", str(args.recipe.resolve()), "--store", str(store.resolve())]
    words += [word for value in args.set for word in ("--set", value)]
    scaling = ScalingConfig(num_workers=args.workers, use_gpu=args.gpus)
    running = RunConfig(storage_path=str(store.resolve().parent / "ray"), failure_config=FailureConfig(args.failures))
    TorchTrainer(work, train_loop_config={"words": words}, scaling_config=scaling, run_config=running).fit()


if __name__ == "__main__":
    main()
