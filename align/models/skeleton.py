"""A base as its configuration says it is: every tensor has a shape, and none a number. What an adapter asks of a base
is held against it before weights are read."""

from __future__ import annotations

from pathlib import Path

from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from align.adapters.lora import read_together
from align.adapters.methods import config_of
from align.ground.errors import InputError
from align.models.base import load_config, prepare
from align.models.weights import auto_class
from align.recipe import Adapter


def check_adapter(path: Path, settings: Adapter) -> None:
    """Whether a fresh adapter of these settings can lie on the base in `path`: the layers that it names are there, and
    sizes of its own go with theirs. Of a family whose forward looks at numbers nothing is said, and a run finds it.

    Raises: InputError as `methods.config_of` does.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), no_init_weights():
        model = _skeleton(path)
        if model is not None:
            config_of(settings, model)


def _skeleton(path: Path) -> PreTrainedModel | None:
    """The model without weights, and which of its layers read text; None where that cannot be found out so."""
    try:
        config = load_config(path)
        model = prepare(auto_class(config).from_config(config))
        model.tie_weights()  # which is left out with the drawing of weights
        read_together(model)
    except InputError:
        raise
    except Exception:  # whatever code of a family raises where it looks at numbers
        return None
    return model
