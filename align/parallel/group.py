"""The group of a run's processes, and of one that is alone."""

from __future__ import annotations

import atexit

import torch
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh


def mesh_of_all(device: torch.device) -> DeviceMesh:
    """All processes of the run; one that is alone makes a group of itself first."""
    if not torch.distributed.is_initialized():
        backend = torch.distributed.get_default_backend_for_device(device)
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
        atexit.register(leave)
    return init_device_mesh(device.type, (torch.distributed.get_world_size(),))


def leave() -> None:
    """End the group: its threads, still there when a process ends, abort it ("terminate called without an active
    exception")."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
