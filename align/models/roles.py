"""One frozen base, several named roles on it: policy, reference, reward, value.

A role is a list of LoRA adapters (all active together) and perhaps a head. Entering a role activates its adapters and
restores the previous ones on exit, also after an exception; `requires_grad` is never touched (PEFT's `set_adapter`
flips it). With activation checkpointing, recompute in the backward re-enters the role that was active in the forward.

"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from align.adapters.lora import fuse, read_together
from align.adapters.targets import adaptable
from align.folders.adapter import check_folder, resolved
from align.folders.adapter_settings import MERGE
from align.folders.adapter_tensors import UNTIED
from align.folders.config import is_multimodal
from align.ground.errors import AlignError, InputError
from align.models.heads import ScoreHead
from align.models.trunk import Trunk
from align.packed import forward, padding
from align.packed.attention import select_native_attention
from align.packed.pack import Batch
from align.packed.probe import probe, trial
from align.packed.token_rows import TokenRows, is_of, of_adapter, plain_name, wrapped
from align.packed.vocabulary import Head


class Roles(nn.Module):
    """A base model, its adapters, and who uses which.

    Attributes: base (adapters are injected in place, base weights frozen), adapters (role -> adapter names), heads
    (role -> ScoreHead).
    """

    def __init__(self, base: PreTrainedModel):
        super().__init__()
        self.base = base
        self.heads: Any = nn.ModuleDict()  # role -> ScoreHead
        self.adapters: dict[str, tuple[str, ...]] = {"base": ()}
        self.configs: dict[str, LoraConfig] = {}
        self.tried = trial(base)
        self.packed, self.why_padded = probe(self.tried)
        # whether samples grow in our cache: found by `sampling.rollout`, where someone samples
        self.grows: bool | None = None
        self.sampled_together: str | None = None  # which rows `generate` may take in a batch: found there too
        if not self.packed:
            select_native_attention(base)
            padding.check_padded(base)
        self.head = Head(base)
        self.together = read_together(base)
        # noted, because a walk through a base takes milliseconds and roles change often
        self.adapted: list[BaseTunerLayer] = []
        self.tokens: list[TokenRows] = []
        self.active = "base"
        self.trunk: Trunk | None = None  # found by `models.trunk_cache`, once it is known what trains

    # ---- who is on the base ------------------------------------------------------------------------------------------

    def add_adapter(self, name: str, config: LoraConfig) -> None:
        """A fresh adapter (B = 0, so it changes nothing yet), in fp32, frozen. The draw of A depends on the global
        seed.

        Raises: InputError where another on this base adapts other experts, which PEFT cannot tell apart.
        """
        experts = {frozenset(c.target_parameters) for c in (config, *self.configs.values()) if c.target_parameters}
        if len(experts) > 1:
            names = " and ".join(str(sorted(several)) for several in sorted(experts, key=sorted))
            raise InputError(
                f"two adapters on this base adapt different experts ({names}): give them the same adapter.layers, or "
                f"none to one."
            )
        with warnings.catch_warnings():
            # several adapters are what roles are
            warnings.filterwarnings("ignore", message="Already found a `peft_config`")
            inject_adapter_in_model(config, self.base, adapter_name=name)
        self.tokens = wrapped(self.base)
        inside = {id(rows.token_adapter) for rows in self.tokens}
        self.adapted = [m for m in self.base.modules() if isinstance(m, BaseTunerLayer) and id(m) not in inside]
        self.head = Head(self.base)
        fuse(self.base, self.together)
        self.configs[name] = config
        for tensor in self.adapter_parameters(name):
            tensor.data = tensor.data.to(torch.promote_types(tensor.dtype, torch.float32))
        self._freeze_all()

    def load_adapter(self, name: str, folder: Path) -> None:
        """An adapter from a folder in PEFT's layout, without its dropout: copies of it must agree. Nothing but its
        tensors decides how it starts, so that the base, which all roles share, is never touched.

        Raises: InputError where it is no plain LoRA of linear layers, or its keys are not exactly this base's.
        """
        config = LoraConfig.from_peft_type(**check_folder(folder, resolved))
        config.inference_mode = False
        config.lora_dropout = 0.0
        experts = adaptable(self.base).experts if config.target_parameters else ()
        for parameter in config.target_parameters or ():
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

    def new_head(self) -> ScoreHead:
        """A head of zeros, as wide as what the base's own head reads, which is not always the decoder's width
        (OPT-350M)."""
        return ScoreHead(self.base.get_output_embeddings().weight.shape[1])

    def assign(self, role: str, adapters: Sequence[str], head: ScoreHead | None = None) -> None:
        """Give a role its adapters, all active together, and its head."""
        self._changed(role)
        self.adapters[role] = tuple(adapters)
        if head is not None:
            self.heads[role] = head.to(self.base.device)

    def remove(self, role: str) -> None:
        """Take a role's adapters and head off the base again."""
        self._changed(role)
        names = self.adapters.pop(role)
        # PEFT warns where it deletes what is active
        self._activate(self.active if self.active in self.adapters else "base")
        for name in names:
            for layer in self.adapted:
                layer.delete_adapter(name)
            for rows in self.tokens:
                rows.delete_adapter(name, None)
            self.base.peft_config.pop(name, None)
            del self.configs[name]
        if role in self.heads:
            del self.heads[role]

    def train_only(self, *names: str, heads: Sequence[str] = ()) -> None:
        """Make the adapters `names` and the weights of `heads` trainable, and nothing else. Of an adapter that only
        scoring roles have, rows of the language model's head do not train: scores do not read them."""
        self._freeze_all()
        for name in names:
            for parameter in self.adapter_parameters(name):
                parameter.requires_grad_(True)
            held = [role in self.heads for role, adapters in self.adapters.items() if name in adapters]
            if held and all(held):
                self.head.freeze_rows(name)
        for role in heads:
            self.heads[role].weight.requires_grad_(True)

    def train_base(self) -> None:
        """Make every weight of the base that reads or writes text trainable: pretraining without adapters."""
        self.trunk = None
        parts = (
            [self.base.get_decoder(), self.base.get_output_embeddings()]
            if is_multimodal(self.base.config.to_dict())
            else [self.base]
        )
        for parameter in chain.from_iterable(part.parameters() for part in parts):
            parameter.requires_grad_(True)

    def adapter_parameters(self, name: str) -> Iterator[nn.Parameter]:
        for key, parameter in self.base.named_parameters():
            if is_of(name, key):
                yield parameter

    def base_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The base's own weights, under the names that it had without adapters."""
        for key, parameter in self.base.named_parameters():
            if not of_adapter(key):
                yield plain_name(key), parameter

    def trainable(self) -> dict[str, Tensor]:
        return {k: p for k, p in self.named_parameters() if p.requires_grad}

    def _changed(self, role: str) -> None:
        """Its lower layers may not be those of the others any more."""
        if self.trunk is not None:
            self.trunk.roles.discard(role)

    def _freeze_all(self) -> None:
        self.trunk = None
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    # ---- using a role ------------------------------------------------------------------------------------------------

    @contextmanager
    def use(self, role: str) -> Iterator[None]:
        """Activate `role`'s adapters inside."""
        before = self.active
        self._activate(role)
        try:
            yield
        finally:
            self._activate(before)

    def _activate(self, role: str) -> None:
        if role not in self.adapters:
            raise AlignError(f"no role {role!r} on this base; there are {', '.join(sorted(self.adapters))}.")
        names = list(self.adapters[role])
        self.active = role
        for layer in self.adapted:
            layer._active_adapter = names
        for rows in self.tokens:
            rows.use(names)

    def enable_activation_checkpointing(self) -> None:
        """Recompute activations in the backward, inside the role of the forward."""
        self.base.train()  # transformers checkpoints only in training mode; every dropout is 0
        self.base.activation_checkpointing_enable(
            activation_checkpointing_kwargs={
                "use_reentrant": False,
                "context_fn": lambda: (nullcontext(), self.use(self.active)),
            }
        )

    def hidden(self, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """Last hidden states of the active role: (T, D), or (N, D) of `rows (N)`, which costs less; from what is kept
        of its lower layers, where the batch has that."""
        if batch.trunk is not None and self.trunk is not None and self.active in self.trunk.roles:
            return self.trunk.top(batch, rows)
        return forward.hidden_states(self.base, batch, rows, self.packed)

    def hidden_as(self, role: str, batch: Batch, rows: Tensor | None = None) -> Tensor:
        """The same of `role`."""
        with self.use(role):
            return self.hidden(batch, rows)

    def logprobs(self, role: str, batch: Batch, temperature: float = 1.0) -> Tensor:
        """log-probabilities (T) of the batch's targets under `role`, 0 where they do not count."""
        with self.use(role):
            return forward.logprobs(self.hidden(batch, batch.rows), self.head, batch, temperature)

    def scores(self, role: str, batch: Batch) -> Tensor:
        """Reward scores (S), read at each branch's last token."""
        with self.use(role):
            return self.heads[role](self.hidden(batch, batch.ends))

    def values(self, role: str, batch: Batch) -> Tensor:
        """Values (T): of the state after `input_ids[t]`, before `targets[t]` is chosen; 0 where that target does not
        count."""
        return self.values_of(role, self.hidden_as(role, batch, batch.rows), batch)

    def values_of(self, role: str, hidden: Tensor, batch: Batch) -> Tensor:
        """The same (T), by the role's head on `hidden (N, D)` of `batch.rows`."""
        return forward.placed(self.heads[role](hidden), batch)


def task_type(model: PreTrainedModel) -> str:
    """PEFT's name for what adapters of a model are for."""
    return "SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM"


def plain_key(key: str) -> str:
    """A stored tensor's name without the prefix that PEFT puts before it."""
    return key.removeprefix("base_model.model.")
