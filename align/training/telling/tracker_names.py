"""Names of transformers' trackers, and the packages that bring them: looked at before transformers is loaded."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from importlib.util import find_spec

from align.ground.errors import InputError

PACKAGES: dict[str, tuple[str, ...]] = {
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "kubeflow": (),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Tracker -> the packages of which one has to be there, if any."""
OTHER_WORDS = {
    "none": "none is what holds where nothing is said: leave it out.",
    "all": "all is whatever happens to be installed: name the trackers, such as tensorboard.",
}
"""What transformers takes in the place of trackers."""
EXTRAS = ("tensorboard", "wandb")
"""Trackers that an extra of the package of that name brings."""


def check(names: Sequence[str]) -> None:
    """Raises: InputError for a tracker that transformers does not know, or whose package is not there."""
    for name in names:
        if name in OTHER_WORDS:
            raise InputError(f"report_to: {OTHER_WORDS[name]}")
        if name not in PACKAGES:
            near = difflib.get_close_matches(name, PACKAGES, 1, 0.75)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(PACKAGES))}."
            raise InputError(f"report_to: {name} is no tracker of transformers; {hint}")
        if PACKAGES[name] and all(find_spec(package) is None for package in PACKAGES[name]):
            raise missing(name)


def missing(name: str) -> InputError:
    """What is said of a tracker whose package is not there."""
    remedy = f"pip install 'align-rlhf[{name}]'" if name in EXTRAS else "Install it"
    return InputError(f"report_to: the package of {name} is not installed here. {remedy}, or leave {name} out.")
