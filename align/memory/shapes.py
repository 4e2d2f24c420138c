"""The shapes of a base: what its config.json says, and what its weight files hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Protocol

from align.folders.weights import tensors

LLAMA_LIKE = {"llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "granite"}
"""Architectures whose decoder layer holds the matrices that `Shape.linears` lists."""
NAMES = {
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "layers": ("num_hidden_layers", "n_layer", "n_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads"),
    "vocabulary": ("vocab_size",),
}
"""What has to be known, under the names that model families give it."""


class LlamaSizes(Protocol):
    """The settings of a Llama from scratch: `align.pretrain.Architecture`."""

    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    intermediate_size: int
    vocab_size: int
    context: int
    tie_embeddings: bool


@dataclass(frozen=True)
class Shape:
    """A decoder as planning sees it: gated feed-forward, grouped-query attention, a linear head."""

    kind: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    intermediate: int
    vocabulary: int
    tied: bool = True
    context: int = 1 << 30
    stored_bytes: int = 4
    """Bytes of a stored weight."""
    may_stay: bool = True
    """Whether weights that are stored in 16 bits may stay in those while the base computes in fp32."""
    counted: int | None = None
    """Weights in the files, where they lie here."""
    normed: int | None = None
    """Numbers of a token that enter the norms of one layer, where the files say it."""

    @staticmethod
    def from_config(
        config: Mapping[str, object], counted: int | None = None, vectors: Mapping[str, int] | None = None
    ) -> Shape | str:
        """The shape that a config.json describes, or the name of what it leaves out. `vectors` are the widths of the
        first layer's norms by their names."""
        inner = config.get("text_config")
        config = inner if isinstance(inner, dict) else config
        found = {key: _first(config, names) for key, names in NAMES.items()}
        if missing := [names[0] for key, names in NAMES.items() if found[key] is None]:
            return missing[0]
        hidden, heads = found["hidden"] or 0, found["heads"] or 1
        dtype = str(config.get("dtype", config.get("torch_dtype")))
        return Shape(
            kind=str(config.get("model_type", "unknown")),
            hidden=hidden,
            layers=found["layers"] or 0,
            heads=heads,
            kv_heads=_first(config, ("num_key_value_heads",)) or heads,
            head_size=_first(config, ("head_dim",)) or hidden // heads,
            intermediate=_first(config, ("intermediate_size", "n_inner")) or 4 * hidden,
            vocabulary=found["vocabulary"] or 0,
            tied=bool(config.get("tie_word_embeddings", config.get("model_type") != "llama")),
            context=_first(config, ("max_position_embeddings", "n_positions")) or 1 << 30,
            stored_bytes=2 if dtype in ("bfloat16", "float16") else 4,
            counted=counted,
        ).with_norms(vectors or {})

    def with_norms(self, vectors: Mapping[str, int]) -> Shape:
        """Norms of heads hold one head's weights for all."""

        def width(name: str, weights: int) -> int:
            of_heads = self.query if name.startswith("q") else self.key
            return of_heads if weights == self.head_size != self.hidden else weights

        widths = [width(name, weights) for name, weights in vectors.items()]
        return replace(self, normed=sum(widths)) if widths else self

    @property
    def norms(self) -> int:
        """Numbers of a token that enter the norms of one layer."""
        return 2 * self.hidden if self.normed is None else self.normed

    @property
    def is_estimate(self) -> bool:
        return self.kind not in LLAMA_LIKE

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_size

    @property
    def key(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_size

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """(in, out) of the matrices of one layer."""
        d, f = self.hidden, self.intermediate
        return {
            "q_proj": (d, self.query),
            "k_proj": (d, self.key),
            "v_proj": (d, self.key),
            "o_proj": (self.query, d),
            "gate_proj": (d, f),
            "up_proj": (d, f),
            "down_proj": (f, d),
        }

    @property
    def linear_weights(self) -> int:
        """Weights in the layers' matrices."""
        return self.layers * sum(map(prod, self.linears.values()))

    @property
    def other_weights(self) -> int:
        """Weights outside of them: embeddings, head, norms. Never adapted, never quantised."""
        if self.counted is not None:
            return max(self.counted - self.linear_weights, 0)
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden * (2 * self.layers + 1)

    @property
    def weights(self) -> int:
        return self.linear_weights + self.other_weights

    def adapted(self, targets: str | list[str]) -> list[tuple[int, int]]:
        """(in, out) of the matrices of one layer that LoRA adapts."""
        linears = self.linears
        return [linears[t] for t in targets if t in linears] if isinstance(targets, list) else list(linears.values())


def _first(config: Mapping[str, object], names: Sequence[str]) -> int | None:
    """The first of these settings that is a whole number."""
    return next((value for n in names if isinstance(value := config.get(n), int)), None)


def headers(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in a folder's safetensors files, by their names."""
    return {name: shape for path in folder.glob("*.safetensors") for name, (_, shape) in tensors(path).items()}


def weights_in(held: Mapping[str, tuple[int, ...]]) -> int | None:
    """Weights in tensors of these shapes; None where there are none."""
    return sum(map(prod, held.values())) or None


def norms_in(held: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Widths of the norms of the first layer, by their names in it, of tensors of these shapes."""
    first = {name.rpartition(".layers.0.")[2]: shape for name, shape in held.items() if ".layers.0." in name}
    return {
        name.removesuffix(".weight").rpartition(".")[2]: shape[0]
        for name, shape in first.items()
        if len(shape) == 1 and name.endswith("norm.weight")
    }
