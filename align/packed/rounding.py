"""What rounding does to a model, to tell it from an error: the same forward in fp32, layer by layer, and from
embeddings moved by rounding.

Real models have a few huge activations. In bf16 two right ways to compute the same may differ by a fifth of the largest
hidden value, and by 0.05 to 0.6 nats on a token of natural text; in fp32 they agree to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer, PreTrainedModel

from align.packed.encoder_decoder import embeddings
from align.packed.layers import layers_of

TEXT = (
    "Question: What is the capital of France, and what is it known for?\nAnswer:",
    " The capital of France is Paris. It is known for the Eiffel Tower.",
    " Paris is the capital of France, and one of the most visited cities in the world.",
)
"""A question and two answers: what a language model expects."""
FACTOR = 4.0
"""Two ways to compute the same differ by at most this many times what moved embeddings change."""


def natural_ids(model: PreTrainedModel) -> list[list[int]] | None:
    """`TEXT` in the base's own tokens, the first part with BOS where there is one; None where its folder holds no
    tokenizer."""
    folder = Path(model.name_or_path or "")
    if not model.name_or_path or not (folder / "tokenizer_config.json").is_file():
        return None
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (ValueError, OSError):
        return None
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    question, *answers = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in TEXT)
    fits = max(map(max, (question, *answers))) < model.config.get_text_config().vocab_size
    return [start + question, *answers] if fits else None


@contextmanager
def moved_embeddings(model: PreTrainedModel, seed: int) -> Iterator[None]:
    """Move embeddings by up to half a unit in their last place inside, and with them every rounding that follows."""
    draw = torch.Generator().manual_seed(seed)

    def move(module: nn.Module, args: object, out: Tensor) -> Tensor:
        wide = out.to(torch.promote_types(out.dtype, torch.float32))
        by = torch.empty(out.shape, dtype=wide.dtype).uniform_(-0.5, 0.5, generator=draw).to(out.device)
        return (wide * (1 + torch.finfo(out.dtype).eps * by)).to(out.dtype)

    hooks = [module.register_forward_hook(move) for module in embeddings(model)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def rounding_floor(model: PreTrainedModel, logprobs: Callable[[], Tensor], at_rest: Tensor) -> float:
    """Mean distance per token, in nats, by which rounding moves log-probs: `logprobs` computes them, `at_rest` is what
    it gave before."""
    with moved_embeddings(model, seed=0):
        return max(float((logprobs() - at_rest).abs().mean()), torch.finfo(model.dtype).eps)


@contextmanager
def in_fp32(model: PreTrainedModel) -> Iterator[None]:
    """Compute hidden states in fp32 from weights in 16 bits, which are widened a layer at a time: exact, and one
    layer's memory.

    Raises: ValueError for a model that is not a list of layers, or whose weights are quantised.
    """
    if getattr(model, "quantization_method", None) is not None:
        raise ValueError("quantised weights compute in their own precision")
    name, layers = layers_of(model)
    embedding = model.get_input_embeddings()
    others = [p for key, p in _tensors(model.base_model) if not key.startswith(f"{name}.")]
    kept = {id(p) for p in embedding.parameters()}
    hooks = [embedding.register_forward_hook(lambda _, args, out: out.float())]
    with ExitStack() as stack:
        stack.enter_context(_widened([p for p in others if id(p) not in kept]))
        for layer in layers:
            open_one = ExitStack()
            hooks.append(layer.register_forward_pre_hook(_enter(open_one)))
            hooks.append(layer.register_forward_hook(_leave(open_one), always_call=True))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


@contextmanager
def _widened(tensors: Sequence[Tensor]) -> Iterator[None]:
    narrow = [(p, p.data) for p in tensors if p.dtype in (torch.bfloat16, torch.float16)]
    for p, data in narrow:
        p.data = data.float()
    try:
        yield
    finally:
        for p, data in narrow:
            p.data = data


def _enter(stack: ExitStack) -> Callable[[nn.Module, object], None]:
    # found now: a layer in shards has just been gathered
    return lambda module, args: stack.enter_context(_widened([p for _, p in _tensors(module)]))


def _leave(stack: ExitStack) -> Callable[[nn.Module, object, object], None]:
    return lambda module, args, out: stack.close()
