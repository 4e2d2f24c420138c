"""A base and the adapters on it, each by its name: made, loaded, written, and which parameters are whose."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from peft import PeftConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.adapters.by_peft import compute_as_base
from align.adapters.lora import fuse, read_together
from align.adapters.methods import is_of, of_adapter, read_config
from align.adapters.targets import adaptable, target_parameters
from align.folders.adapter_settings import MERGE
from align.folders.adapter_tensors import UNTIED
from align.ground.errors import InputError
from align.models import in_parts
from align.models.trunk import Trunk
from align.packed import padding
from align.packed.attention import select_native_attention
from align.packed.head import Head
from align.packed.probe import probe, trial
from align.packed.token_rows import TokenRows, plain_name, wrapped
from align.parallel.narrow import sizes_alone
from align.parallel.shards import Shards


class AdaptedBase(nn.Module):
    """A base model whose adapters are injected in place, base weights frozen. `Roles` says who uses which."""

    def __init__(self, base: PreTrainedModel, shards: Shards | None = None):
        super().__init__()
        self.base = base
        self.configs: dict[str, PeftConfig] = {}
        self.tried = trial(base)
        self.packed, self.why_padded = probe(self.tried)
        if not self.packed:
            select_native_attention(base)
            padding.check_padded(base)
        self.head = Head(base)
        self.together = read_together(base)
        # noted, because a walk through a base takes milliseconds and roles change often
        self.adapted: list[BaseTunerLayer] = []
        self.tokens: list[TokenRows] = []
        self.trunk: Trunk | None = None  # found by `models.trunk_cache`, once it is known what trains
        self.shards = shards

    def shard(self, offload: bool = False) -> None:
        """Cut the base into shards, before any adapter is on it; with `offload` they lie in CPU memory.

        Raises: InputError as `in_parts.layers` does.
        """
        head, embed = (
            module.weight for module in (self.base.get_output_embeddings(), self.base.get_input_embeddings())
        )
        self.shards = Shards(self.base, in_parts.layers(self.base), self.base.device, head is embed, offload)
        self.shards.begin()
        self.head = Head(self.base)

    def whole(self) -> AbstractContextManager[None]:
        """All of the base is on every process inside: see `Shards.whole`."""
        return self.shards.whole() if self.shards else nullcontext()

    def add_adapter(self, name: str, config: PeftConfig) -> None:
        """A fresh adapter, which changes nothing yet, in fp32, frozen. The draw of A depends on the global
        seed.

        Raises: InputError where another on this base adapts other experts, which PEFT cannot tell apart.
        """
        experts = {frozenset(found) for c in (config, *self.configs.values()) if (found := target_parameters(c))}
        if len(experts) > 1:
            names = " and ".join(str(sorted(several)) for several in sorted(experts, key=sorted))
            raise InputError(
                f"two adapters on this base adapt different experts ({names}): give them the same adapter.layers, or "
                "none to one."
            )
        with warnings.catch_warnings():
            # several adapters are what roles are
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            # of norms PEFT does not know the widths, and BOFT computes without its CUDA code
            warnings.filterwarnings("ignore", message="Unsupported layer type")
            warnings.filterwarnings("ignore", message="Failed to load the CUDA extension|Setting boft_n_butterfly")
            with sizes_alone(self.base):
                inject_adapter_in_model(config, self.base, adapter_name=name)
        self.tokens = wrapped(self.base)
        inside = {id(rows.token_adapter) for rows in self.tokens}
        self.adapted = [m for m in self.base.modules() if isinstance(m, BaseTunerLayer) and id(m) not in inside]
        self.head = Head(self.base)
        fuse(self.base, self.together)
        self.configs[name] = config
        for tensor in self.adapter_parameters(name):
            # PEFT puts it where the base's weight is, which may wait elsewhere than it computes
            tensor.data = tensor.data.to(self.base.device, torch.promote_types(tensor.dtype, torch.float32))
        compute_as_base(self.base, name)
        self._freeze_all()

    def load_adapter(self, name: str, folder: Path) -> None:
        """An adapter from a folder in PEFT's layout, without its dropout: copies of it must agree. Nothing but its
        tensors decides how it starts, so that the base, which all roles share, is never touched.

        Raises: InputError where it is of no method that is known, or its keys are not exactly this base's.
        """
        config = read_config(folder)
        wanted = target_parameters(config)
        experts = adaptable(self.base).experts if wanted else ()
        for parameter in wanted:
            if not any(f".{matrix}".endswith(f".{parameter}") for matrix in experts):
                raise InputError(
                    f"{folder}: the adapter is on {parameter!r}, which is no matrix of routed experts of this base. "
                    f"{MERGE}"
                )
        try:
            self.add_adapter(name, config)
        except ValueError as error:  # targets that this model has not
            raise InputError(
                f"{folder}: the adapter does not fit this base: {str(error).splitlines()[0][:300]}"
            ) from error
        for what, module in (
            ("output head", self.base.get_output_embeddings()),
            ("embedding", self.base.get_input_embeddings()),
        ):
            if isinstance(module, BaseTunerLayer):
                raise InputError(
                    f"{folder}: the adapter changes the model's {what}, which Align shares between roles as it is. "
                    f"{MERGE} {UNTIED}"
                )
        tensors = load_file(folder / "adapter_model.safetensors")
        expected = self.adapter_state(name)
        if wrong := set(map(plain_key, tensors)) ^ set(map(plain_key, expected)):
            raise InputError(
                f"{folder}: the adapter does not fit this base; {len(wrong)} tensors differ, for example "
                f"{sorted(wrong)[0]}. It was trained on another model: check its base."
            )
        sizes = {plain_key(key): tuple(tensor.shape) for key, tensor in expected.items()}
        for key, tensor in tensors.items():
            if tuple(tensor.shape) != sizes[plain_key(key)]:
                found, wanted_sizes = (" x ".join(map(str, size)) for size in (tensor.shape, sizes[plain_key(key)]))
                raise InputError(
                    f"{folder}: the adapter does not fit this base; {key} has sizes {found}, where this base takes "
                    f"{wanted_sizes}. It was trained on another model: check its base."
                )
        set_peft_model_state_dict(self.base, {plain_key(k): v for k, v in tensors.items()}, adapter_name=name)

    def save_adapter(self, name: str, folder: Path, base_model: str) -> None:
        """Write adapter `name` in PEFT's layout."""
        folder.mkdir(parents=True)
        tensors = {f"base_model.model.{k}": v.detach().contiguous().cpu() for k, v in self.adapter_state(name).items()}
        save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
        (folder / "adapter_config.json").write_text(self.adapter_config(name, base_model), encoding="utf-8")

    def adapter_config(self, name: str, base_model: str) -> str:
        """PEFT's adapter_config.json for adapter `name`."""
        config = self.configs[name].to_dict()
        config.update(base_model_name_or_path=base_model, inference_mode=True, task_type=task_type(self.base))
        return (
            json.dumps({k: sorted(v) if isinstance(v, set) else v for k, v in sorted(config.items())}, indent=2) + "\n"
        )

    def adapter_state(self, name: str) -> dict[str, Tensor]:
        return dict(get_peft_model_state_dict(self.base, adapter_name=name, save_embedding_layers=False))

    def adapter_parameters(self, name: str) -> Iterator[nn.Parameter]:
        for key, parameter in self.base.named_parameters():
            if is_of(name, key):
                yield parameter

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The base's own weights, under the names that it had without adapters."""
        for key, parameter in self.base.named_parameters():
            if not of_adapter(key):
                yield plain_name(key), parameter

    def _freeze_all(self) -> None:
        self.trunk = None
        for parameter in self.parameters():
            parameter.requires_grad_(False)


def task_type(model: PreTrainedModel) -> str:
    """PEFT's name for what adapters of a model are for."""
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def plain_key(key: str) -> str:
    """A stored tensor's name without the prefix that PEFT puts before it."""
    return key.removeprefix("base_model.model.")
