"""Settings of adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from align.folders.adapter_settings import MOST_RANK, MOST_SCALE
from align.recipe.settings import Count, Named, Settings

MethodName = Literal[
    "lora",
    "rslora",
    "dora",
    "adalora",
    "ia3",
    "loha",
    "lokr",
    "hira",
    "gralora",
    "delora",
    "miss",
    "oft",
    "boft",
    "hra",
    "road",
    "c3a",
    "fourierft",
    "waveft",
    "ln_tuning",
]

BlendMethod = Literal[
    "cat", "linear", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"
]
"""How several adapters become one, by the names of PEFT's `add_weighted_adapter`."""

READS: dict[str, frozenset[str]] = {
    **dict.fromkeys(("lora", "rslora"), frozenset({"rank", "alpha", "dropout", "experts", "init_lora_weights"})),
    "dora": frozenset({"rank", "alpha", "dropout"}),
    "adalora": frozenset({"rank", "alpha", "target_rank"}),
    **dict.fromkeys(("loha", "lokr", "gralora"), frozenset({"rank", "alpha"})),
    **dict.fromkeys(("hira", "delora", "miss", "hra"), frozenset({"rank"})),
    **dict.fromkeys(("oft", "boft", "road", "c3a"), frozenset({"block_size"})),
    **dict.fromkeys(("fourierft", "waveft"), frozenset({"frequencies"})),
    **dict.fromkeys(("ia3", "ln_tuning"), frozenset()),
}
"""Settings of its own that each method reads, beside `targets` and `layers`."""
EVEN = {"gralora": "rank", "hra": "rank", "road": "block_size"}
"""Settings that PEFT halves."""
NO_LAYERS = ("ia3", "road")
"""Methods of matrices that PEFT cannot restrict to some layers."""


class Adapter(Settings):
    """Shape of a fresh adapter."""

    method: MethodName = "lora"
    """How it adapts; lora is two factors of low rank beside each matrix (Hu et al. 2021, arXiv 2106.09685), and the
    fastest here. docs/adapters.md has the others."""
    rank: int = Field(default=16, gt=0, le=MOST_RANK)
    """Rank of the two factors (TRL's default), or what stands for it in other methods."""
    alpha: float = Field(default=32.0, gt=0.0, le=MOST_SCALE)
    """Scale: the update is multiplied by alpha / rank (TRL's default, twice the rank)."""
    target_rank: Count | None = None
    """Rank that adalora leaves a matrix on average, of the `rank` that it begins with; two thirds of it, as in Zhang et
    al. 2023 (arXiv 2303.10512)."""
    block_size: int = Field(default=32, gt=1)
    """Width of the blocks in which oft, boft, road and c3a turn or convolve; it divides the widths of what is adapted
    (32: OFT's and PEFT's)."""
    frequencies: Count = 1000
    """Coefficients that fourierft and waveft train of each matrix (1,000: Gao et al. 2024, arXiv 2405.03003)."""
    init_lora_weights: Literal["pissa", "pissa_niter_16", "olora", "eva", "loftq"] | None = None
    """Where the two factors start, by PEFT's name, if not at nothing: the largest singular vectors of each matrix
    (pissa, pissa_niter_16 for large ones: Meng et al. 2024, arXiv 2404.02948) or its first orthogonal ones (olora:
    Büyükakyüz 2024, arXiv 2406.01775); the base stays as it is, and what is taken off it is a frozen adapter beside.
    Or A alone, at the directions in which the run's first 256 records vary most in each layer (eva: Paischer et al.
    2024, arXiv 2410.07170). Or both at what 4 bits take from each matrix of a base in nf4, so that the start is nearer
    to the base in full (loftq: Li et al. 2023, arXiv 2310.08659)."""
    targets: Literal["all-linear"] | Annotated[list[Named], Field(min_length=1)] = "all-linear"
    """Layers to adapt: all linear ones but the head (best in Dettmers et al. 2023, section 4), or the ends of their
    names."""
    layers: Count | None = None
    """Adapt that many layers from the top, without it all. Those below are frozen for every role, run once per row, and
    train nothing."""
    experts: bool = False
    """Adapt the routed experts of a mixture of experts too, which are most of its weights; without dropout."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Dropout on an adapter's input; only sft and pretrain may use it, elsewhere it breaks KL = 0 at the start."""

    @classmethod
    def conflicts(cls, given: Mapping[str, object]) -> list[str]:
        found, method = super().conflicts(given), str(given.get("method"))
        value = given.get(EVEN.get(method, ""))
        if isinstance(value, int) and value % 2:
            found.append(f"{EVEN[method]} is {value}, and {method} needs an even one.")
        left, rank = given.get("target_rank"), given.get("rank")
        if method == "adalora" and isinstance(rank, int) and rank <= (left if isinstance(left, int) else rank == 1):
            found.append(f"rank is {rank}, and adalora is to leave {left or 1}, so that none goes. Raise rank.")
        if start := given.get("init_lora_weights"):
            found += [
                f"init_lora_weights is {start}, which goes without {name}. Leave one of them out."
                for name in ("dropout", "experts")
                if given.get(name)
            ]
        return found

    @property
    def takes_off(self) -> bool:
        """Whether it starts at a part of the base, which a frozen adapter beside it takes off."""
        return self.init_lora_weights not in (None, "eva", "loftq")

    def idle(self) -> dict[str, str]:
        """Settings that the method does not read -> why."""
        own = frozenset().union(*READS.values())
        why = {name: f"adapter.method {self.method} has none. Leave it out." for name in own - READS[self.method]}
        if self.method in NO_LAYERS:
            why["layers"] = (
                f"PEFT adapts all layers with {self.method}. Leave it out, or name layers in adapter.targets."
            )
        if self.method == "ln_tuning":
            why |= dict.fromkeys(("layers", "targets"), "ln_tuning trains the weights of all norms. Leave it out.")
        return why
