"""What the frozen layers give is computed once per row and kept, in memory or in a memory-mapped file.

`find_trunk` cuts a base below the first layer that one role trains, where a trial shows that the cut changes nothing;
`Keeper` fills examples with what enters that layer. From there on every role whose lower layers are the same starts at
the cut: epochs, PPO's epochs, the reference, the reward model and the value role never run what is below it again. What
is kept is D numbers per token.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from align.adapters.methods import is_of, method_of
from align.data.examples import Example
from align.ground.disk import TEMP
from align.ground.terminal import say
from align.models.roles import Roles
from align.models.trunk import Trunk
from align.packed.layers import layers_of
from align.packed.pack import Batch, joined, microbatches, pack, row_tokens
from align.packed.probe import TOLERANCE, close
from align.packed.token_rows import TokenRows


def lowest_trained(roles: Roles, role: str) -> tuple[int, str]:
    """The first layer in which something of `role` trains, and the adapter that it is; the number of layers where there
    is none.

    Weights of the base itself, which train in pretraining, and rows of the embedding count as layer 0.
    """
    _, layers = layers_of(roles.base)
    if any(p.requires_grad for _, p in roles.base_parameters()):
        return 0, "the base"
    for name in roles.adapters[role]:
        if any(p.requires_grad for p in embedded(roles, name).values()):
            return 0, f"the embedding of {name}"
    for i, layer in enumerate(layers):
        for name in roles.adapters[role]:
            if any(p.requires_grad for _, p in _parts(layer, name)):
                return i, name
    return len(layers), ""


def _parts(layer: nn.Module, adapter: str) -> Iterator[tuple[str, Tensor]]:
    return ((key, p) for key, p in layer.named_parameters() if is_of(adapter, key))


def embedded(roles: Roles, adapter: str) -> dict[str, Tensor]:
    """The rows that an adapter has in the embedding, and their ids; empty where it has none."""
    module = roles.base.get_input_embeddings()
    if not isinstance(module, TokenRows) or not module.having([adapter]):
        return {}
    return {"ids": module.ids(adapter), "rows": module.delta(adapter)}


def below(roles: Roles, role: str, depth: int) -> list[dict[str, Tensor]] | None:
    """What `role` adds to the embedding and the layers below `depth`: per adapter that reaches there its tensors and
    its scale, in the order they are stacked. None where one of them trains."""
    lower = layers_of(roles.base)[1][:depth]
    found = []
    for name in roles.adapters[role]:
        tensors = embedded(roles, name)
        for i, layer in enumerate(lower):
            tensors |= {f"{i}.{key.replace(f'.{name}.', '.')}": p for key, p in _parts(layer, name)}
        if any(p.requires_grad for p in tensors.values()):
            return None
        if tensors:
            config = roles.configs[name]
            found.append({**tensors, "scale": method_of(config).scale(config)})
    return found


def same(a: list[dict[str, Tensor]] | None, b: list[dict[str, Tensor]] | None) -> bool:
    """Whether two roles add the same to the lower layers."""
    if a is None or b is None or len(a) != len(b):
        return False
    pairs = zip(a, b, strict=True)
    return all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in pairs)


def find_trunk(roles: Roles, role: str) -> str:
    """Cut the base below the first layer that `role` trains, for every role whose lower layers are those of `role`.

    Returns: why that cannot be, or nothing.
    """
    roles.trunk = None
    if not roles.packed:
        return f"this base takes the padded path ({roles.why_padded})"
    try:
        depth, name = lowest_trained(roles, role)
    except ValueError as error:
        return str(error)
    if not name:
        return f"{role} trains no layer"
    if depth == 0:
        return f"{name} trains from the first layer on"
    trunk = Trunk(roles.base, depth)
    if why := _difference(roles, role, trunk):
        return f"going on from the middle does not give what the whole gives ({why})"
    mine = below(roles, role, trunk.depth)
    others = [other for other in roles.adapters if other != "base"]
    trunk.roles = {other for other in others if same(mine, below(roles, other, trunk.depth))}
    roles.trunk = trunk
    return ""


def _difference(roles: Roles, role: str, trunk: Trunk) -> str:
    """How values or gradients of two short groups differ when they are computed in two parts; empty where they do
    not."""
    vocabulary = roles.base.config.get_text_config().vocab_size
    draw = torch.Generator().manual_seed(0)

    def ids(n: int) -> list[int]:
        return torch.randint(vocabulary, (n,), generator=draw).tolist()

    prompt = ids(6)
    two = Example((prompt + ids(4), prompt + ids(3)), ((False,) * 10, (False,) * 9), 6)
    one = Example((ids(5),), ((False,) * 5,))
    batch = pack([two, one]).to(roles.base.device)  # T = 5 + (1 + 4) + (1 + 3) + 5
    trained = {name: p for name, p in roles.base.named_parameters() if p.requires_grad}
    tolerance = TOLERANCE[roles.base.dtype]

    def measured(b: Batch, run: Callable[[Batch], Tensor]) -> list[Tensor]:
        """Hidden states (T, D), and of each trained tensor the gradient, in its shape."""
        with torch.enable_grad():
            hidden = run(b)
            loss = hidden.to(torch.promote_types(hidden.dtype, torch.float32)).square().mean()
            gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
        found = [hidden.detach()]
        for tensor, gradient in zip(trained.values(), gradients, strict=True):
            found.append(torch.zeros_like(tensor) if gradient is None else gradient)
        return found

    with roles.use(role):
        whole = measured(batch, roles.hidden)
        try:
            with torch.no_grad():
                kept = trunk.bottom(batch)  # (T, D)
            parts = measured(replace(batch, trunk=kept), trunk.top)
        except Exception as error:  # whatever an architecture raises whose layers are called or return otherwise
            return f"{type(error).__name__}: {error}"
    for what, got, want in zip(("hidden states", *trained), parts, whole, strict=True):
        if not close(got, want, tolerance):
            return f"{what} by {(got - want).abs().max().item():.1e}"
    return ""


class Keeper:
    """Fills examples with what enters the layer at which `roles.trunk` is cut.

    Args:
        role: one whose lower layers are run.
        budget: tokens of a packed row.
        dtype: what is kept, if not what the base computes in.
        file: where it is kept, if not in memory: given the examples and what the file begins with, its path.
        title: whose line it is that says how much is kept.
    """

    def __init__(
        self,
        roles: Roles,
        role: str,
        budget: int,
        dtype: torch.dtype | None = None,
        file: Callable[[Sequence[Example], Iterable[memoryview]], AbstractContextManager[Path]] | None = None,
        title: str = "",
    ):
        self.roles, self.role, self.budget, self.file, self.title = roles, role, budget, file, title
        self.size = roles.base.config.get_text_config().hidden_size
        self.dtype = dtype or (roles.trunk.dtype if roles.trunk else roles.base.dtype)

    def __call__(self, examples: Sequence[Example]) -> list[Example]:
        """The examples, filled; those that are keep what they have. How rows are packed depends on the examples
        alone, so a run that goes on from a checkpoint finds the same numbers again, bit for bit on a CPU."""
        out = list(examples)
        empty = [i for i, e in enumerate(out) if e.trunk is None]
        if (not empty and self.roles.shards is None) or self.roles.trunk is None:
            return out
        wanted = [out[i] for i in empty]
        packed_rows = [[wanted[i] for i in indices] for indices in microbatches(wanted, self.budget)]
        if empty:
            self._say(sum(map(row_tokens, packed_rows)))
        for i, rows in self._rows(wanted):
            out[empty[i]] = replace(wanted[i], trunk=rows)
        return out

    def _say(self, tokens: int) -> None:
        trunk, title = self.roles.trunk, self.title
        if not title or trunk is None:
            return
        self.title = ""  # once is enough
        mib = tokens * self.size * self.dtype.itemsize / 2**20
        where = "memory" if self.file is None else "a file"
        layers = len(layers_of(self.roles.base)[1])
        say(
            f"{title}: the lower {trunk.depth} of {layers} layers run once per row, for "
            f"{', '.join(sorted(trunk.roles))}; what they give is kept in {where}, {mib:,.1f} MiB of {tokens:,} tokens"
        )
        if others := sorted(set(self.roles.adapters) - trunk.roles - {"base"}):
            say(f"{title}: not for {', '.join(others)}, whose lower layers are not those of {self.role}")

    def _rows(self, examples: list[Example]) -> Iterator[tuple[int, tuple[Tensor, Tensor]]]:
        if self.file is None:
            for indices, hidden in self._computed(examples):
                yield from zip(indices, per_example([examples[i] for i in indices], hidden), strict=True)
            return

        parts = (hidden.contiguous().view(torch.uint8).numpy().data for _, hidden in self._computed(examples))
        rows = [(indices, [examples[i] for i in indices]) for indices in microbatches(examples, self.budget)]
        tokens = [row_tokens(row) for _, row in rows]  # T of each packed row
        with self.file(examples, parts) as path:
            mapped = torch.from_file(str(path), False, sum(tokens) * self.size, dtype=self.dtype).view(-1, self.size)
        for (indices, row), hidden in zip(rows, mapped.split(tokens), strict=True):
            yield from zip(indices, per_example(row, hidden), strict=True)

    @torch.no_grad()
    def _computed(self, examples: list[Example]) -> Iterator[tuple[list[int], Tensor]]:
        """Per packed row: indices into `examples` and what enters the first layer that trains, (T, D)."""
        trunk = self.roles.trunk
        assert trunk is not None
        for indices, batch in self.roles.batches(examples, self.budget):
            with self.roles.use(self.role):
                hidden = trunk.bottom(batch)
            if indices:
                yield indices, hidden.to("cpu", self.dtype)


def per_example(examples: Sequence[Example], rows: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Cut the rows (T, D) of a packed row into what each example keeps: its prefix, shared with those that join it, and
    its branches."""
    prefix, at = rows[:0], 0
    for example, joins in zip(examples, joined(examples), strict=True):
        if not joins:
            prefix, at = rows[at : at + example.prefix], at + example.prefix
        end = at + example.tokens - example.prefix
        yield prefix, rows[at:end]
        at = end


@contextmanager
def passing_file(folder: Path, parts: Iterable[memoryview]) -> Iterator[Path]:
    """A fresh file in `folder`, gone when the block ends; who has mapped it keeps its pages."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=TEMP) as file:
        for part in parts:
            file.write(part)
        file.flush()
        yield Path(file.name)


def digest_below(roles: Roles, role: str) -> str:
    """sha256 of where the base is cut and of what the adapters of `role` add below, which together with the base decide
    what is kept."""
    assert roles.trunk is not None
    seen = hashlib.sha256(str(roles.trunk.depth).encode())
    for adapter in below(roles, role, roles.trunk.depth) or []:
        for key, tensor in sorted(adapter.items()):
            seen.update(key.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return seen.hexdigest()
