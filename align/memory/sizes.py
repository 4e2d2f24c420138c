"""Bytes of everything that lies in memory while a stage works. The counts follow the code that they name."""

from __future__ import annotations

from collections.abc import Mapping

from align.memory.shapes import Shape
from align.recipe.optimizers import GALORE

CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 4 << 26}
"""A block of logits in fp32: `vocabulary.ELEMENTS`."""
LOGPROBS, ENTROPIES, TRAINED, LIKELIEST, DIVERGENCES = 1, 3, 3, 3, 6
"""Copies of a block that lie in memory together: logits, which become shares in place; with entropies also shares and
their product with the logits; where the head itself trains, logits, log-softmax and their gradient. A teacher's are
logits, those of all other tokens, and their shares (`outcomes.logprobs_of`); a student's backward through that holds
the first two, a gradient of each, and two more of what makes them."""
ROWS = 1024
"""Rows that the head takes at a time: `vocabulary.ROWS`."""
SAMPLED_TOKENS = 65_536
"""Tokens that sampling holds at a time: `rollout.Sampler`."""
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Of a weight in NF4: 4 bits, a scale of 8 bits for 64 weights, and one of 32 bits for 256 scales (arXiv 2305.14314,
section 3)."""
OPTIMIZER_BYTES = {
    **dict.fromkeys(("adamw_torch", "adamw_torch_fused", "paged_adamw_32bit"), 8),
    **dict.fromkeys(("adamw_8bit", "paged_adamw_8bit"), 2),
    **dict.fromkeys(("ademamix", "paged_ademamix_32bit"), 12),
    **dict.fromkeys(("ademamix_8bit", "paged_ademamix_8bit"), 3),
    **dict.fromkeys(("lion_32bit", "paged_lion_32bit", "muon", "rmsprop", "adagrad"), 4),
    **dict.fromkeys(("lion_8bit", "paged_lion_8bit"), 1),
    **dict.fromkeys(("schedule_free_adamw", "schedule_free_radam"), 8),
    "schedule_free_sgd": 4,
    **dict.fromkeys(("adafactor", "sgd", "galore_adafactor"), 0),
    "galore_adamw": 8,
}
"""Of a trained weight: moments in fp32 or in 8 bits, Adam's two, AdEMAMix's three, one of the others; schedule-free
optimizers hold a second set of weights in place of the first moment."""
MOST = 0.9
"""Where more than this share of a row is read, the last layer computes all of it: `forward.MOST`."""
SLOW_KERNEL_KEYS = 512
"""Up to as many keys, attention in bf16 on a CPU is matrix products, which the backward makes again:
`attention.attend`."""


def optimizer_of_all(shape: Shape, name: str, args: Mapping[str, int | float | str]) -> float:
    """Bytes that an optimizer holds where all weights train. GaLore has moments of projected gradients, of a matrix of
    a x b numbers rank x the longer side, and rank x the shorter side of what projects; of all else as AdamW has them,
    or Adafactor."""
    if not name.startswith(GALORE):
        return OPTIMIZER_BYTES[name] * shape.weights
    moments, rank = OPTIMIZER_BYTES[name], int(args.get("rank", 128))
    each = (min(rank, a, b) * (moments * max(a, b) + 4 * min(a, b)) for a, b in shape.linears.values())
    return shape.layers * sum(each) + moments * (shape.weights - shape.linear_weights)


def base_weights(shape: Shape, quantize: str | None, size: int) -> int:
    """The frozen base with `size` bytes a weight that is not quantised; int8 has a scale of 32 bits for each output."""
    scales = 4 * shape.layers * sum(out for _, out in shape.linears.values())
    in_4_bits = shape.linear_weights * NF4_BYTES
    linears = {"nf4": in_4_bits, "fp4": in_4_bits, "int8": shape.linear_weights + scales}.get(
        quantize or "", size * shape.linear_weights
    )
    return round(linears) + size * shape.other_weights


def largest_matrix(shape: Shape) -> int:
    return max(a * b for a, b in shape.linears.values())


def kept_per_token(shape: Shape, ranks: int, *, size: int, fused: bool, by_matmul: bool) -> int:
    """Bytes that one layer keeps of one token for the backward pass; what `again.keep_less` computes again is not
    among them.

    What enters the norms; query, key, value, attention's output (by SDPA's kernel twice, as it comes and as its rows
    are joined, with its log-sum-exp); gate and up. Where the base is in int8 (`fused` False), PEFT casts every linear
    layer's input to fp32 for itself, beside the input that the quantised product keeps.

    Args:
        ranks: sum of the ranks of the adapters that are active.
        size: bytes of what the base computes in.
        by_matmul: whether attention computes its scores again in the backward, and keeps what it is given alone.
    """
    d, q, k, f = shape.hidden, shape.query, shape.key, shape.intermediate
    low = (size if fused else 4) * ranks * len(shape.linears)
    joined = size * q if fused else 0
    inputs = 0 if fused else 4 * (5 * d + q + f) + size * (2 * d + q + f)
    attention = (q + 2 * k) * size if by_matmul else 2 * (q + k) * size + 4 * shape.heads
    of_rows = 8 if size == 4 else 0  # what norms in fp32, which are not computed again, divide by
    return size * shape.norms + of_rows + inputs + joined + low + attention + size * 2 * f


def spared_by_last_layer(shape: Shape, ranks: int, tokens: int, read: int, *, size: int, fused: bool) -> int:
    """Bytes that the last layer keeps less where it leaves rows out: what a feed-forward keeps of them; but of those
    that are read what enters it and what leaves it is kept."""
    f = shape.intermediate
    low = 3 * (size if fused else 4) * ranks
    inputs = 0 if fused else (size + 4) * f
    unread = unread_rows(tokens, read)
    ends = 2 * size * shape.hidden * read if unread else 0
    return unread * (size * 2 * f + inputs + low) - ends


def unread_rows(tokens: int, read: int) -> int:
    """Rows of `tokens` that the last layer leaves out: `forward.run_packed`."""
    return tokens - read if read < MOST * tokens else 0


def factors_copied(shape: Shape, ranks: int, size: int) -> int:
    """Bytes that `lora._LoraLinears` keeps of one layer's adapters for the backward: A of layers that read the same,
    put together, and in bf16 B rounded."""
    # q, k, v, gate and up read the hidden state; then o and down
    read = shape.hidden * 5 + shape.query + shape.intermediate
    written = sum(out for _, out in shape.linears.values()) if size == 2 else 0
    return size * ranks * (read + written)


def kept_in_full_training(shape: Shape, *, bf16: bool, by_matmul: bool) -> int:
    """Bytes that one layer keeps of one token where all weights train in fp32. Nothing but the product inside the
    feed-forward is computed again, and in bf16, where autocast gives every product a copy of its input, nothing at
    all."""
    d, q, k, f = shape.hidden, shape.query, shape.key, shape.intermediate
    size = 2 if bf16 else 4
    norms = 2 * 4 * shape.norms + 8
    inputs = 2 * (5 * d + q + f) if bf16 else 4 * (2 * d + q + f)
    attention = (q + 2 * k) * size if by_matmul else 2 * (q + k) * size + 4 * shape.heads
    return norms + inputs + (3 if bf16 else 2) * size * f + attention


def passing_back_per_token(shape: Shape, size: int) -> int:
    """Bytes of one token that a backward pass holds at its widest, where a gated feed-forward computes its product
    again: that, the activation in it, and the gradients of both, of gate and of up."""
    return 6 * size * shape.intermediate


def passing_per_token(shape: Shape, size: int) -> int:
    """Bytes of one token that a forward pass without a backward holds at its widest, inside a feed-forward."""
    return size * (3 * shape.intermediate + 2 * shape.hidden) + 4 * shape.hidden


def head_chunk(shape: Shape, rows: int, size: int, device: str, copies: int) -> int:
    """`copies` in fp32 of a block of the logits of `rows` rows; in bf16 two copies more of half the size."""
    return min(CHUNK_BYTES[device], 4 * rows * shape.vocabulary) * (copies + (1 if size == 2 else 0))


def rows_widened(shape: Shape, rows: int) -> int:
    """Bytes of a block of the head in fp32, of whose logits so many rows are computed on a CPU at a time, where it is
    kept in 16 bits: the fewer rows, the more of the vocabulary, until that is as large as a block of logits may be
    (`vocabulary._walk`)."""
    block = CHUNK_BYTES["cpu"] // (4 * max(shape.hidden, min(rows, ROWS)))
    return 4 * shape.hidden * min(shape.vocabulary, block)


def cache_per_token(shape: Shape, size: int) -> int:
    """Keys and values of one token in every layer: `decode.Cache`."""
    return 2 * shape.layers * shape.key * size


def sampling_per_row(shape: Shape) -> int:
    """Logits of one row, scaled, as shares in fp32, and summed up in fp64 (an upper bound: `sampling.draw` holds
    blocks)."""
    return 20 * shape.vocabulary
