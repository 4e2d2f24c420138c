"""Tiny random models of every architecture that Align is tested with. LoRA's B is randomised: with B = 0 almost
everything passes."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from align.adapters.targets import lora_config
from align.data.examples import Example
from align.measures.passes import flat_logprobs, with_column
from align.models.base import prepare
from align.models.roles import Roles
from align.recipe import TrainConfig

C = TypeVar("C", bound=TrainConfig)
VOCAB = 97
SIZES: dict[str, Any] = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SIZES),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral": MistralConfig(**SIZES, sliding_window=9),
    "gemma2": Gemma2Config(
        **SIZES, head_dim=8, sliding_window=9, attn_logit_softcapping=2.0, final_logit_softcapping=3.0
    ),
    "gemma3": Gemma3TextConfig(**SIZES, head_dim=8, sliding_window=9),
    "phi3": Phi3Config(**SIZES),
    "gpt2": GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=1, eos_token_id=2
    ),
}
PADDED = {"bloom": BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=4)}


def make_base(name: str = "llama", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy({**CONFIGS, **PADDED}[name]), dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():  # larger than the default 0.02, so that attention is far from uniform
            if parameter.dim() > 1:
                parameter.normal_(std=0.3)
    return prepare(model)


def make_roles(name: str = "llama", dtype: torch.dtype = torch.float64, adapters: Sequence[str] = ("policy",)) -> Roles:
    roles = Roles(make_base(name, dtype))
    for i, adapter in enumerate(adapters):
        roles.add_adapter(adapter, lora_config(4, 8, "all-linear", 0.0, roles.base))
        randomise(roles, adapter, seed=i)
        roles.assign(adapter, [adapter])
    return roles


def randomise(roles: Roles, adapter: str, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in roles.adapter_parameters(adapter):
        parameter.data = (
            torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(roles.base.dtype) * 0.2
        )


def pair(prompt: int, chosen: int, rejected: int, seed: int = 0, margin: float = 0.0) -> Example:
    """A random preference pair of given lengths."""
    generator = torch.Generator().manual_seed(seed)
    ids = lambda n: torch.randint(3, VOCAB, (n,), generator=generator).tolist()  # noqa: E731
    head = ids(prompt)
    tails = [ids(chosen), ids(rejected)]
    return Example(
        tuple(head + tail for tail in tails),
        tuple([False] * prompt + [True] * len(tail) for tail in tails),
        shared=prompt,
        margin=margin,
    )


def pairs(n: int = 5) -> list[Example]:
    return [pair(3 + 4 * i % 17, 2 + 5 * i % 13, 1 + 7 * i % 11, seed=i) for i in range(n)]


def several_pairs_of_a_prompt() -> list[Example]:
    """Pairs 0, 2 and 5 answer one prompt, 1 and 4 another, 3 a third that nobody else has."""
    prompts = [pair(n, 1, 1, seed=n).head for n in (9, 6, 12)]
    found = []
    for i, which in enumerate((0, 1, 0, 2, 1, 0)):
        tails = [list(s[1:]) for s in pair(1, 3 + i, 2 + i % 3, seed=20 + i).sequences]
        prompt = [*prompts[which], 7]
        sequences = tuple(prompt + tail for tail in tails)
        supervised = tuple([False] * len(prompt) + [True] * len(tail) for tail in tails)
        found.append(
            Example(
                sequences,
                supervised,
                len(prompt),
                {"place": tuple([float(i)] * (len(tail) + 1) for tail in tails)},
                margin=float(i),
            )
        )
    return found


def with_reference(roles: Roles, examples: list[Example]) -> list[Example]:
    """What `learning.with_reference` does, without a store."""
    return [*with_column(examples, "ref_logprobs", flat_logprobs(roles, "reference", examples, 64).tobytes())]


def settings(kind: type[C], **values: Any) -> C:
    """A stage's settings with its defaults, plain AdamW at a constant rate, and every step logged; base and data are
    not looked at."""
    plain: dict[str, Any] = dict(
        lr_scheduler="constant", warmup_ratio=0.0, logging_steps=1, checkpoint_steps=0, precision="fp32"
    )
    return kind(**{"base": "none", "data": "none", **plain, **values})
