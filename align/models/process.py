"""This process: its threads and seeds, its device, and the memory that it gives back."""

from __future__ import annotations

import ctypes
import os
import sys

import torch
import transformers
from transformers import set_seed

from align.ground import ranks


def set_up_process(threads: int | None, seed: int) -> None:
    """Threads, and every seed, before anything is drawn: PEFT's first LoRA matrices come from the global generator."""
    if threads is not None:
        torch.set_num_threads(threads)
    set_seed(seed)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def give_back_freed_memory() -> None:
    """Have glibc give tensors of 1 MiB and more pages of their own, which go back to the system when they are freed
    (Linux).

    Its heap would keep up to 32 MiB each, with gaps that later tensors do not fit: with activation checkpointing, up to
    four times what is alive. The system's time for fresh pages makes a training step on a CPU about a quarter slower,
    so this is for runs that ask for memory.
    """
    mmap_threshold = -3  # M_MMAP_THRESHOLD in malloc.h
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(mmap_threshold, 1 << 20)


def trim_heap() -> None:
    """Give the free pages of glibc's heap back to the system (Linux): between phases whose tensors differ in size, such
    as sampling and training, the gaps of the one are of no use to the other."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "malloc_trim"):
        library.malloc_trim(0)


def room() -> int:
    """Bytes of memory that this process may take: its GPU's, or its share of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(device()).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.on_this_machine()


def device() -> torch.device:
    """Where this process computes: its CUDA device under torchrun, the first one alone, else the CPU."""
    return torch.device("cuda", ranks.local_rank() or 0) if torch.cuda.is_available() else torch.device("cpu")
