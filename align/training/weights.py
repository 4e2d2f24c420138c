"""Trained tensors in files, and the weights of the best look at held-out records, beside the checkpoints."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from align.ground.disk import make_folder, sync_file, sync_folder, temp_beside
from align.ground.errors import AlignError, InputError
from align.training.processes import rank_and_world


def write(trainable: Mapping[str, Tensor], path: Path) -> None:
    save_file({k: v.detach().contiguous().cpu() for k, v in trainable.items()}, path)


def read(trainable: Mapping[str, Tensor], path: Path) -> None:
    """Bring the tensors to what the file holds. Raises: InputError where it holds others."""
    tensors = load_file(path)
    if set(tensors) != set(trainable):
        raise InputError(
            f"{path.parent}: this checkpoint holds other tensors than the run trains; remove the folder to start again."
        )
    for name, parameter in trainable.items():
        parameter.data.copy_(tensors[name])


class Best:
    """The weights of one step, in a file of as many bytes beside the checkpoints.

    The file that the newest checkpoint names stays until a later one names another, so that a run that is killed finds
    it.
    """

    def __init__(self, folder: Path, trainable: Mapping[str, Tensor]):
        self.folder, self.trainable = folder, trainable
        self.needed: int | None = None

    def _path(self, step: int) -> Path:
        return self.folder / f"best-{step}.safetensors"

    def keep(self, step: int) -> None:
        """These are the best so far. Raises: AlignError where they cannot be written."""
        if rank_and_world()[0]:
            return
        path = self._path(step)
        temp = temp_beside(path)
        try:
            make_folder(self.folder)
            write(self.trainable, temp)
            sync_file(temp, 0o644)
            os.replace(temp, path)
            sync_folder(self.folder)
        except (OSError, RuntimeError, SafetensorError) as error:  # torch's and safetensors' own for a full disk
            with suppress(OSError):
                temp.unlink(missing_ok=True)
            raise AlignError(
                f"{self.folder}: the weights of step {step}, the best so far, cannot be written ({error}). Free some "
                "space and run the same command again, which goes on from the last checkpoint, or set `keep: last`."
            ) from error
        self._clear(step, self.needed)

    def named(self, step: int | None) -> None:
        """The newest checkpoint names this step."""
        self.needed = step
        if rank_and_world()[0] == 0:
            self._clear(step)

    def restore(self, step: int) -> None:
        """Bring the trained tensors back to what they were then."""
        read(self.trainable, self._path(step))

    def _clear(self, *steps: int | None) -> None:
        stay = {self._path(step) for step in steps if step is not None}
        for path in {*self.folder.glob("best-*.safetensors")} - stay:
            path.unlink(missing_ok=True)
