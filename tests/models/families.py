"""What Align does with tiny random models of the families that transformers knows: the table of docs/families.md.

`python -m tests.models.families > docs/families.md` writes the page anew; `… NAME` prints the rows of some families.
Everything is compared in fp32 with transformers and PEFT, which take one sequence at a time: log-probs per token,
gradients, the likeliest tokens, samples and merged models, with random LoRA factors.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import PeftModel
from torch import Tensor
from transformers import AutoConfig

from align.adapters.targets import adapted_share, left_out, lora_config
from align.data.examples import Example
from align.ground.errors import AlignError
from align.inputs.bases import BaseModel
from align.models.base import load_base
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.models.save import save_model
from align.models.weights import auto_class
from align.packed.pack import pack
from align.sampling import rollout
from align.sampling.rollout import Sampler
from tests.models.family_models import FAMILIES, build

TOGETHER = {
    "all": "together",
    "equal lengths": "prompts of one length together",
    "equal lengths without a cache": "by whole forwards",
    "none": "one row at a time",
}


@dataclass
class Found:
    """What was found out about a family: how it runs, in words, and the largest differences from transformers and
    PEFT."""

    how: str
    adapts: str
    samples: str
    worst: dict[str, float]

    @property
    def inexact(self) -> list[str]:
        """What differs by more than rounding, whose size is tried: it is larger in deep recurrences and where
        activations are large."""
        noise = self.worst.get("noise", 0.0)
        allowed = {"log-probs": max(3e-6, 3 * noise), "gradients": max(2e-6, noise), "greedy": 0.0, "noise": noise}
        return [f"{k}: {v:.1e}" for k, v in self.worst.items() if v > allowed.get(k, max(7e-6, 5 * noise))]

    def row(self, name: str) -> str:
        return f"| {name} | {self.how} | {self.adapts} | {self.samples} |"


def examine(name: str, folder: Path, experts: bool = False) -> Found:
    """Build a family's model in `folder` and try everything. `experts`: with adapters on routed experts too."""
    build(name, folder / "base")
    try:
        roles = Roles(load_base(folder / "base", quantize=None, dtype=torch.float32))
        return _compared(roles, folder, experts)
    except AlignError as error:
        return Found(f"refused: {str(error).replace(str(folder / 'base'), name)}", "", "", {})


def _compared(roles: Roles, folder: Path, experts: bool) -> Found:
    base = roles.base
    torch.manual_seed(0)
    for adapter in ("policy", "other"):  # the second is what must not matter
        roles.add_adapter(adapter, lora_config(4, 8, "all-linear", 0.0, base, experts=experts))
        roles.assign(adapter, [adapter])
    with torch.no_grad():
        for key, parameter in base.named_parameters():
            if "lora_B" in key:
                parameter.normal_(0, 0.02)
    roles.save_adapter("policy", folder / "adapter", "base")
    roles.train_only("policy")
    alone = PeftModel.from_pretrained(plain(folder / "base"), str(folder / "adapter"), is_trainable=True).eval()
    examples = list(rows(min(256, BaseModel("base", None, "0", None, folder / "base").context)))
    worst = {
        **_training(roles, alone, examples),
        **_sampling(roles, alone, examples),
        "merged": _merging(roles, alone, examples, folder),
        "noise": noise(folder / "base"),
    }
    adapts = f"{adapted_share(base, roles.configs['policy']):.0%}"
    adapts += ", without experts" if left_out(base, roles.configs["policy"]) else ", with experts" if experts else ""
    return Found(
        "packed" if roles.packed else "padded", adapts, TOGETHER[rollout.sampled_together(roles, base, 2)], worst
    )


def plain(folder: Path) -> Any:
    return auto_class(AutoConfig.from_pretrained(folder)).from_pretrained(folder, dtype=torch.float32).eval()


def rows(longest: int) -> Iterator[Example]:
    """Pairs of random answers, of several lengths, within `longest` tokens."""
    generator = torch.Generator().manual_seed(3)
    ids = lambda n: torch.randint(3, 880, (n,), generator=generator).tolist()  # noqa: E731
    for prompt, *answers in ((9, 20, 12), (9, 7, 5), (min(30, longest // 2), 11, min(40, longest // 2)), (4, 6, 3)):
        head = ids(prompt)
        sequences = tuple(tuple(head + ids(n)) for n in answers)
        yield Example(sequences, tuple(tuple([False] * prompt + [True] * n) for n in answers), prompt)


def logprobs(model: Any, sequence: Any, start: int) -> Tensor:
    """Of the tokens from `start` on, by transformers, in fp64 from its logits."""
    return torch.log_softmax(logits(model, sequence, start).double(), -1).gather(
        1, torch.tensor(sequence[start:])[:, None]
    )[:, 0]


def logits(model: Any, sequence: Any, start: int) -> Tensor:
    """Those that the tokens from `start` on are drawn from; of an encoder-decoder by its labels, which end with EOS."""
    if not model.config.is_encoder_decoder:
        return model(input_ids=torch.tensor([list(sequence)]), use_cache=False).logits[0, start - 1 : -1]
    return model(input_ids=torch.tensor([sequence[:start]]), labels=torch.tensor([[*sequence[start:], 1]])).logits[
        0, :-1
    ]


def _training(roles: Roles, alone: Any, examples: list[Example]) -> dict[str, float]:
    """Differences in log-probs, and in gradients relative to the largest."""
    want = [logprobs(alone, s, e.shared) for e in examples for s in e.sequences]
    torch.cat(want).sum().backward()
    batch = pack(examples)
    got = roles.logprobs("policy", batch)
    got.sum().backward()
    pieces = [piece[mask] for piece, mask in zip(batch.split(got.detach()), batch.split(batch.loss_mask), strict=True)]
    theirs = {
        k.replace("base_model.model.", "").replace(".default", ""): p.grad
        for k, p in alone.named_parameters()
        if "lora_" in k
    }
    ours = {k.replace(".policy", ""): p.grad for k, p in roles.base.named_parameters() if ".policy." in k}
    assert set(ours) == set(theirs)
    idle = [k for k, grad in ours.items() if "lora_B" in k and "experts" not in k and (grad is None or not grad.any())]
    assert not idle, f"no gradient: {idle[:3]}"
    scale = max(float(grad.abs().max()) for grad in theirs.values() if grad is not None)

    def or_zero(grad: torch.Tensor | None) -> torch.Tensor:
        return torch.zeros(()) if grad is None else grad

    gaps = [float((or_zero(ours[k]) - or_zero(theirs[k])).abs().max()) for k in ours]
    return {
        "log-probs": max(float((a.double() - b.detach()).abs().max()) for a, b in zip(pieces, want, strict=True)),
        "gradients": max(gaps) / scale,
    }


@torch.no_grad()
def _sampling(roles: Roles, alone: Any, examples: list[Example]) -> dict[str, float]:
    """Difference of samples' log-probs from transformers', and the share of greedy tokens that are not transformers'
    likeliest."""
    prompts = [list(e.sequences[0][: e.shared]) for e in examples]
    sampler = Sampler(roles, "policy", [1], 2)
    torch.manual_seed(0)
    gaps, other, total = [0.0], 0, 0
    for prompt, answers in zip(prompts, sampler(prompts, n=3, max_new_tokens=20, temperature=1.0), strict=True):
        for answer in answers:
            want = logprobs(alone, prompt + answer.ids, len(prompt))
            gaps.append(float((want - torch.tensor(answer.logprobs).double()).abs().max()))
    for prompt, (answer,) in zip(prompts, sampler(prompts, n=1, max_new_tokens=12, temperature=0.0), strict=True):
        likeliest = logits(alone, prompt + answer.ids, len(prompt)).argmax(-1)
        other, total = other + int((likeliest != torch.tensor(answer.ids)).sum()), total + len(answer.ids)
    return {"samples": max(gaps), "greedy": other / total}


@torch.no_grad()
def _merging(roles: Roles, alone: Any, examples: list[Example], folder: Path) -> float:
    copied = MergedCopy(roles, "policy").merged()
    save_model(copied, folder / "merged", "fp32", {"stop_ids": [1], "pad_token_id": 2})
    again = plain(folder / "merged")
    sequences = [(s, e.shared) for e in examples for s in e.sequences]
    return max(float((logprobs(again, s, start) - logprobs(alone, s, start)).abs().max()) for s, start in sequences)


@torch.no_grad()
def noise(folder: Path) -> float:
    """By how much log-probs move when every weight is rounded another way: all computations differ by at least that."""
    model, sequence = plain(folder), max((s for e in rows(80) for s in e.sequences), key=len)
    start = 30 if model.config.is_encoder_decoder else 1
    before, generator = logprobs(model, sequence, start), torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.mul_(1 + 2**-23 * torch.randint(-1, 2, parameter.shape, generator=generator))
    return float((logprobs(model, sequence, start) - before).abs().max())


HEAD = """# Families

What Align does with each family of models that transformers knows, found out on tiny random models in fp32 by `python
-m tests.models.families`, which wrote this page; `tests/packed/test_families.py` holds it to that (`pytest -m slow` for
all rows).

**packed**: rows share a forward without padding, and answers the computation of their prompt. **padded**: one row per
sequence, for what packed attention does not cover; of an encoder-decoder the encoder reads the prompt, and the decoder
the answer. Both give transformers' and PEFT's own log-probs, of one sequence at a time, within 3e-6 per token, their
gradients within 2e-6 of the largest, their likeliest tokens, and samples and merged models within 7e-6; or within a few
times what another rounding of every weight changes, where that is more, as in deep recurrences. **refused**: in one
sentence, before anything trains.

Adapted by `adapter.targets: all-linear` are the linear layers that run when the model reads text, never the head, the
embeddings or a tower for images: of the model's matrices the share that stands here. Left out are Mamba's `out_proj`,
which PEFT refuses, matrices that layers share (Zamba 2), and routed experts, which are most of a mixture of experts;
`adapter.experts: true` adapts those too. Where a base's padding or cache disturbs rows, it samples them apart, which
takes more time.

| family | runs | adapts | samples |
|---|---|---|---|
"""


def examined(name: str, experts: bool = False) -> Found:
    with tempfile.TemporaryDirectory() as folder:
        return examine(name, Path(folder), experts)


if __name__ == "__main__":
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = sys.argv[1:]
    if not names:
        print(HEAD, end="")
    for name in names or FAMILIES:
        found = examined(name)
        print(found.row(name), flush=True)
        print(name, {k: f"{v:.1e}" for k, v in found.worst.items()}, *found.inexact, file=sys.stderr, flush=True)
