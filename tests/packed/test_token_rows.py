"""Rows of single tokens that adapters bring: what PEFT computes with `trainable_token_indices`, for several roles on
one base."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from align.adapters.targets import lora_config
from align.data.examples import Example
from align.ground.errors import AlignError, InputError
from align.models.merged import MergedCopy
from align.models.roles import Roles
from align.models.trunk_cache import find_trunk
from align.packed import token_rows
from align.packed import vocabulary as heads
from align.packed.attention import select_native_attention
from align.packed.forward import logprobs_and_entropies
from align.packed.pack import Batch, pack
from align.training.checks.reach import Reach
from tests.models import models
from tests.models.models import VOCAB, make_base, randomise

pytestmark = [  # PEFT's, about its own settings
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

ROWS = [50, VOCAB, VOCAB + 1, VOCAB + 2]
"""One that the base has, and three that it has not."""
IDS = [3, 50, VOCAB, 9, VOCAB + 1, VOCAB + 2, 12, 50, 4]
BASES = {"llama": False, "llama-tied": True, "qwen2": False, "gemma3": True, "gemma2": True}
"""And whether embedding and head are one; Gemma scales embeddings, Gemma 2 caps logits and takes the padded path."""


def base(kind: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    config = copy.deepcopy(models.CONFIGS[kind.removesuffix("-tied")])
    config.tie_word_embeddings = BASES[kind]
    monkeypatch.setitem(models.CONFIGS, kind, config)
    model = make_base(kind)
    token_rows.enlarge(model, VOCAB + 3)
    return model


@pytest.fixture(params=BASES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def roles(kind: str, monkeypatch: pytest.MonkeyPatch) -> Roles:
    """`policy` with rows, `other` without, `both` with the two adapters."""
    made = Roles(base(kind, monkeypatch))
    for i, name in enumerate(("policy", "other")):
        config = lora_config(4, 8, "all-linear", 0.0, made.base)
        config.trainable_token_indices = token_rows.indices(made.base, ROWS) if name == "policy" else None
        made.add_adapter(name, config)
        randomise(made, name, seed=i)
        made.assign(name, [name])
    made.assign("both", ["policy", "other"])
    return made


@pytest.fixture
def folders(roles: Roles, tmp_path: Path) -> dict[str, Path]:
    for name in ("policy", "other"):
        roles.save_adapter(name, tmp_path / name, "none")
    return {name: tmp_path / name for name in ("policy", "other")}


def by_peft(model: Any, folders: Sequence[Path]) -> Any:
    """PEFT's own model with adapters from `folders`, all active; those without rows come first, or PEFT does not load
    them."""
    select_native_attention(model)
    names = [f"n{i}" for i in range(len(folders))]
    found = PeftModel.from_pretrained(model, str(folders[0]), adapter_name=names[0], autocast_adapter_dtype=False)
    for name, folder in zip(names[1:], folders[1:], strict=True):
        found.load_adapter(str(folder), adapter_name=name, autocast_adapter_dtype=False)
    found.base_model.set_adapter(names)
    return found


def distribution(model: Any, temperature: float = 1.0) -> Tensor:
    return torch.log_softmax(model(torch.tensor([IDS])).logits[0, :-1] / temperature, -1)


def of_targets(logp: Tensor) -> Tensor:
    return logp.gather(1, torch.tensor(IDS[1:])[:, None])[:, 0]


def batch() -> Batch:
    return pack([Example((tuple(IDS),), (tuple([False] + [True] * (len(IDS) - 1)),))])


def ours(roles: Roles, role: str, temperature: float = 1.0) -> tuple[Tensor, Tensor]:
    b = batch()
    with roles.use(role):
        found = logprobs_and_entropies(roles.hidden(b, b.rows), roles.head, b, temperature)
    return found[0][b.loss_mask], found[1][b.loss_mask]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_values_and_gradients_are_those_of_peft(
    kind: str, roles: Roles, folders: dict[str, Path], temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs and entropies over small blocks of the vocabulary, so that rows fall into several, and gradients of
    every tensor."""
    monkeypatch.setitem(heads.ELEMENTS, "cpu", 40 * len(IDS))
    model = by_peft(base(kind, monkeypatch), [folders["policy"]])
    logp = distribution(model, temperature)
    want, entropies = of_targets(logp), -(logp.exp() * logp).sum(-1)
    roles.train_only("policy")
    got, found = ours(roles, "policy", temperature)
    torch.testing.assert_close(got, want, atol=1e-9, rtol=0)
    torch.testing.assert_close(found, entropies, atol=1e-9, rtol=0)
    weights = torch.linspace(0.3, 1.0, len(want), dtype=want.dtype)
    (want * weights + entropies * weights.flip(0)).sum().backward()
    (got * weights + found * weights.flip(0)).sum().backward()
    theirs = {
        k.removeprefix("base_model.model.").replace(".n0", ""): p.grad
        for k, p in model.named_parameters()
        if p.grad is not None
    }
    mine = {k.replace(".policy", ""): p.grad for k, p in roles.base.named_parameters() if p.grad is not None}
    assert mine.keys() == theirs.keys() and sum("trainable_tokens_delta" in k for k in mine) == (
        1 if BASES[kind] else 2
    )
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-9, rtol=1e-9)
        assert gradient.any()


def test_rows_of_a_head_whose_logits_have_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    """As BART's and Marian's have: by autograd over all logits at once. Negative control: without it the gradient is
    another."""
    made = Roles(base("llama", monkeypatch))
    config = lora_config(4, 8, "all-linear", 0.0, made.base)
    config.trainable_token_indices = token_rows.indices(made.base, ROWS)
    made.add_adapter("policy", config)
    made.assign("policy", ["policy"])
    generator = torch.Generator().manual_seed(0)
    bias = torch.randn(1, VOCAB + 3, generator=generator, dtype=torch.float64)
    hidden = torch.randn(6, made.base.config.hidden_size, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([50, 3, VOCAB, 9, 50, VOCAB + 2])
    made.train_only("policy")

    def gradient(head: heads.Head, logprobs: Tensor) -> Tensor:
        assert head.rows is not None
        return torch.autograd.grad(logprobs.sum(), head.rows.delta("policy"))[0]

    with made.use("policy"):
        plain = heads.Head(made.base)
        made.base.register_buffer("final_logits_bias", bias)
        head = heads.Head(made.base)
        assert head.rows is not None
        logits = head.rows(hidden) + bias
        want = torch.log_softmax(logits, -1).gather(1, targets[:, None])[:, 0]
        got = heads.row_logprobs(head, hidden, targets)
        torch.testing.assert_close(got, want, atol=1e-9, rtol=0)
        torch.testing.assert_close(gradient(head, got), gradient(head, want), atol=1e-9, rtol=1e-9)
        other = gradient(plain, heads.row_logprobs(plain, hidden, targets))
        assert (other - gradient(head, heads.row_logprobs(head, hidden, targets))).abs().max() > 1e-3


@torch.no_grad()
def test_each_role_has_its_own_rows(
    kind: str, roles: Roles, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One with rows, one without, both together and the bare base, in the layers that train, in a merged copy and in
    what is drawn from."""
    bare = base(kind, monkeypatch)
    select_native_attention(bare)
    wanted = {"base": distribution(bare)}
    for role, names in {"policy": ["policy"], "other": ["other"], "both": ["other", "policy"]}.items():
        wanted[role] = distribution(by_peft(base(kind, monkeypatch), [folders[name] for name in names]))
    before = {name: parameter.clone() for name, parameter in roles.base_parameters()}
    for role, logp in wanted.items():
        torch.testing.assert_close(ours(roles, role)[0], of_targets(logp), atol=1e-9, rtol=0)
        b = batch()
        with roles.use(role):
            blocks = torch.cat(list(roles.head.blocks(roles.hidden(b, b.rows))), 1)
        torch.testing.assert_close(torch.log_softmax(blocks, -1), logp, atol=1e-9, rtol=0)
        copied = MergedCopy(roles, role).merged()
        select_native_attention(copied)
        torch.testing.assert_close(distribution(copied), logp, atol=1e-9, rtol=0)
        assert type(copied.get_input_embeddings()) is type(bare.get_input_embeddings())
        assert (copied.get_output_embeddings().weight is copied.get_input_embeddings().weight) == BASES[kind]
    assert all(torch.equal(before[name], parameter) for name, parameter in roles.base_parameters())
    assert not any(torch.allclose(wanted[a], wanted[b]) for a in wanted for b in wanted if a < b)  # negative control


@torch.no_grad()
def test_loaded_again_and_removed(
    kind: str, roles: Roles, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second copy on the same base gives the same; without it the others are as before."""
    before = {role: ours(roles, role)[0] for role in ("policy", "other", "base")}
    roles.load_adapter("again_0", folders["policy"])
    roles.assign("again", ["again_0"])
    assert torch.equal(ours(roles, "again")[0], before["policy"])
    roles.remove("again")
    assert all(torch.equal(ours(roles, role)[0], value) for role, value in before.items())
    assert not torch.allclose(before["policy"], before["other"])


def test_rows_train_from_the_first_layer_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """An adapter on the top layer alone leaves a trunk; with rows in the embedding it leaves none. Frozen rows below
    are part of it."""
    made = Roles(base("llama", monkeypatch))
    for name, rows in (("top", None), ("rows", token_rows.indices(made.base, ROWS))):
        config = lora_config(4, 8, "all-linear", 0.0, made.base, layers=1)
        config.trainable_token_indices = rows
        made.add_adapter(name, config)
        randomise(made, name)
    made.assign("policy", ["rows"])
    made.train_only("rows")
    assert find_trunk(made, "policy") == "the embedding of rows trains from the first layer on"
    made.assign("policy", ["rows", "top"])
    made.assign("reference", ["rows"])
    made.assign("without", ["top"])
    made.train_only("top")
    assert find_trunk(made, "policy") == ""
    assert made.trunk is not None and made.trunk.roles == {"policy", "reference"}


def test_a_token_that_no_batch_holds_is_reached_later() -> None:
    """Rows of an untied embedding have gradients of zeros until a step holds their token; a factor that has them is
    refused."""
    for name, refused in (
        ("embed_tokens.token_adapter.trainable_tokens_delta.policy", False),
        ("q_proj.lora_B.policy.weight", True),
    ):
        idle, busy = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
        reach = Reach({name: idle, "busy": busy})
        idle.grad, busy.grad = torch.zeros(2), torch.ones(2)
        reach.look(), reach.look()
        if refused:
            with pytest.raises(AlignError, match="gets no gradient"):
                reach.look()
        else:
            reach.look()
            idle.grad = None
            with pytest.raises(AlignError, match="gets no gradient"):
                Reach({name: idle}).look()  # negative control: not computed through


def test_enlarged_and_started(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """New rows are the mean of those there, in embedding and head; those of new tokens the mean of their pieces'; the
    rest stays."""
    config = copy.deepcopy(models.CONFIGS[kind.removesuffix("-tied")])
    config.tie_word_embeddings = BASES[kind]
    monkeypatch.setitem(models.CONFIGS, kind, config)
    model, was = make_base(kind), make_base(kind)
    token_rows.enlarge(model, VOCAB + 2)
    token_rows.start_rows(model, {VOCAB: [5, 9]})
    assert model.config.vocab_size == VOCAB + 2
    for new, old in (
        (model.get_input_embeddings(), was.get_input_embeddings()),
        (model.get_output_embeddings(), was.get_output_embeddings()),
    ):
        assert torch.equal(new.weight[:VOCAB], old.weight) and not new.weight.requires_grad
        torch.testing.assert_close(new.weight[VOCAB], (old.weight[5] + old.weight[9]) / 2, atol=1e-6, rtol=0)
        torch.testing.assert_close(new.weight[VOCAB + 1], old.weight.mean(0), atol=1e-6, rtol=0)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == BASES[kind]


def test_rows_that_would_be_wrong_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one of two tied matrices; a head with a bias, which PEFT's rows leave out."""
    made = Roles(base("llama-tied", monkeypatch))
    config = lora_config(4, 8, "all-linear", 0.0, made.base)
    config.trainable_token_indices = {"lm_head": [50]}
    with pytest.raises(InputError, match="one of embedding and head, which this base ties"):
        made.add_adapter("policy", config)
    model = base("llama", monkeypatch)
    model.lm_head.bias = nn.Parameter(torch.ones(VOCAB + 3, dtype=torch.float64), requires_grad=False)
    made = Roles(model)
    config = lora_config(4, 8, "all-linear", 0.0, made.base)
    config.trainable_token_indices = token_rows.indices(made.base, ROWS)
    with pytest.raises(InputError, match="has a bias, which PEFT leaves out"):
        made.add_adapter("policy", config)
