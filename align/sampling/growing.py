"""Can this base be sampled from in our cache? Found out by trying, once per base: states that grow token by token must
be those of whole sequences."""

from __future__ import annotations

import torch

from align.packed.probe import Piece, Trial, difference
from align.sampling.decode import Cache


@torch.no_grad()
def probe_growing(tried: Trial) -> str:
    """How hidden states that grow token by token in our cache differ from those of whole sequences; empty where they do
    not."""
    return difference(tried, lambda: grown(tried), "grown in a cache")


def grown(tried: Trial) -> list[Piece]:
    """Two samples of each of two prompts: the first two sequences on their question, and the third twice on its first
    four tokens."""
    model, (first, second, third), shared = tried.model, tried.sequences, tried.batch.layout.groups[0][0] + 1
    prompts, rows, device = (
        [first[:shared], third[:4]],
        [first[shared:], second[shared:], third[4:], third[4:]],
        tried.model.device,
    )
    steps = min(map(len, rows))
    cache = Cache([len(p) for p in prompts], 2, steps, device)
    ids = torch.tensor([prompts[0] + prompts[1]], device=device)
    positions = torch.cat([torch.arange(len(p)) for p in prompts])[None].to(device)
    hidden = model.base_model(input_ids=ids, position_ids=positions, layout=cache, use_cache=False).last_hidden_state[0]
    cache.grow()
    last = hidden[cache.lengths.cumsum(0) - 1][cache.owner]
    found = [last]
    for step in range(steps):
        new = torch.tensor([[row[step] for row in rows]], device=device)
        found.append(
            model.base_model(
                input_ids=new, position_ids=cache.positions, layout=cache, use_cache=False
            ).last_hidden_state[0]
        )
        cache.grow()
    by_row = torch.stack(found, 1)  # (4, steps + 1, D)
    return [(which, len(prompts[row // 2]) - 1, by_row[row]) for row, which in enumerate((0, 1, 2, 2))]
