"""Every form of a reward function that TRL 1.16 takes, each beside its `_calculate_rewards`: the same scores, or
refused in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from align import judges
from align.ground.errors import AlignError
from tests.judges.test_judges_trl import IDS, PROMPTS, TEXTS, as_trl

FORMS = """
import functools
from decimal import Decimal
from fractions import Fraction
import numpy as np, torch

class Judge:
    def __init__(self, weight): self.weight = weight
    def score(self, completions, **kwargs): return [self.weight] * len(completions)
    async def wait(self, completions, **kwargs): return [self.weight] * len(completions)
    @classmethod
    def of_class(cls, completions, **kwargs): return [4.0] * len(completions)
    @staticmethod
    def static(completions, **kwargs): return [5.0] * len(completions)
    def __call__(self, completions, task, **kwargs): return [self.weight if t == "math" else None for t in task]

def weighted(completions, scale, **kwargs): return [scale] * len(completions)
async def weighted_async(completions, scale, **kwargs): return [scale] * len(completions)

def decorated(function):
    @functools.wraps(function)
    def inner(*args, **kwargs): return function(*args, **kwargs)
    return inner

# how it is called
def keywords_alone(**kwargs): return [float(len(c[0]["content"])) for c in kwargs["completions"]]
def keyword_only(*, prompts, completions, **kwargs): return [len(p) for p in prompts]
def all_named(prompts, completions, completion_ids, ground_truth, task, levels,
              trainer_state=None, log_extra=None, log_metric=None): return [1.0] * 3
def names(**kwargs): return [float(len(kwargs.keys() - {"trainer_state", "log_extra", "log_metric"}))] * 3
by_lambda = lambda completion_ids, **kwargs: [float(len(ids)) for ids in completion_ids]
bound, of_class, static, bound_async = Judge(2.0).score, Judge.of_class, Judge.static, Judge(6.0).wait
instance, partial_method = Judge(3.0), functools.partial(Judge(1.0).score)
partial_instance = functools.partial(Judge(7.0))
partial_keyword = functools.partial(weighted, scale=3.0)
partial_twice = functools.partial(partial_keyword, scale=4.0)
partial_async = functools.partial(weighted_async, scale=2.5)
@decorated
def wrapped(completions, **kwargs): return [1.0] * len(completions)
def optional(completions, trainer_state=None, log_extra=None, log_metric=None, environments=None, **kwargs):
    if log_metric: log_metric("m", 1.0)
    if log_extra: log_extra("c", ["a"] * 3)
    return [1.0 if trainer_state is None or trainer_state.global_step == 0 else 0.0] * 3

# what it gives
def tensor(completions, **kwargs): return torch.tensor([float(len(c[0]["content"])) for c in completions])
def with_gradient(completions, **kwargs): return torch.ones(3, requires_grad=True) * 2
def bfloat16(completions, **kwargs): return torch.ones(3, dtype=torch.bfloat16) * 0.3
def of_ints(completions, **kwargs): return torch.arange(3)
def of_bools(completions, **kwargs): return torch.arange(3) > 1
def column(completions, **kwargs): return torch.arange(3.0)[:, None]
def list_of_tensors(completions, **kwargs): return [torch.tensor(1.5), torch.tensor([2.5]), 3]
async def tensor_async(completions, **kwargs): return torch.ones(3)
def array(completions, **kwargs): return np.arange(3) / 2
def float32(completions, **kwargs): return np.arange(3, dtype=np.float32)
def int8(completions, **kwargs): return np.arange(3, dtype=np.int8)
def of_objects(completions, **kwargs): return np.array([None, 1.0, 2.0], dtype=object)
def scalars(completions, **kwargs): return [np.float64(0.5), np.int64(2), np.bool_(True)]
def ints(completions, **kwargs): return [1] * 3
def bools(completions, **kwargs): return [True] * 3
def some_none(completions, **kwargs): return [None, 1, 0.5]
async def none_async(completions, **kwargs): return [None, 1, True]
def of_tuple(completions, **kwargs): return (1.0,) * 3
def generator(completions, **kwargs): return (1.0 for _ in completions)
def yielding(completions, **kwargs): yield from (1.0, 2.0, None)
def mapped(completions, **kwargs): return map(len, completions)
def exact(completions, **kwargs): return [Fraction(1, 2), Decimal("0.25"), 1]

# what is refused
class Model(torch.nn.Module):
    def forward(self, completions, **kwargs): return [1.0] * len(completions)
model = Model()
def state(completions, trainer_state, **kwargs): return [float(trainer_state.global_step)] * 3
def logs(completions, log_extra, log_metric, **kwargs): return [1.0] * 3
def environments(completions, environments, **kwargs): return [1.0] * 3
def misspelt(completions_ids, **kwargs): return [1.0] * 3
def closed(prompts, completions): return [1.0] * 3
def by_position(completions, /, **kwargs): return [1.0] * 3
def nan(completions, **kwargs): return [float("nan"), 1.0, 2.0]
def infinite(completions, **kwargs): return [float("inf"), 1.0, 2.0]
def mapping(completions, **kwargs): return {1: 1, 2: 2, 3: 3}
def texts(completions, **kwargs): return ["1.0"] * 3
def scalar(completions, **kwargs): return 1.0
def nothing(completions, **kwargs): return None
def few(completions, **kwargs): return [1.0]
def pairs(completions, **kwargs): return torch.ones(3, 2)
def hidden_async(completions, **kwargs): return weighted_async(completions, 2.0, **kwargs)
def raising(completions, **kwargs): raise ValueError("no")
"""
CALLED = "keywords_alone keyword_only all_named names by_lambda bound of_class static bound_async instance "
CALLED += "partial_method partial_instance partial_keyword partial_twice partial_async wrapped optional"
GIVEN = "tensor with_gradient bfloat16 of_ints of_bools column list_of_tensors tensor_async array float32 int8 "
GIVEN += "of_objects scalars ints bools some_none none_async of_tuple generator yielding mapped exact"
REFUSED = {
    "model": "is a model, which TRL would have score answers by itself",
    "state": "needs 'trainer_state', which exists only inside TRL's trainer; give it a default",
    "logs": "needs 'log_extra', which exists only inside TRL's trainer; give it a default",
    "environments": "needs 'environments', which exists only inside TRL's trainer; give it a default",
    "misspelt": "needs 'completions_ids', which it does not get. It gets prompts, completions, completion_ids",
    "closed": "takes no 'completion_ids'. As in TRL, it is called by keyword with all there is: add **kwargs",
    "by_position": "takes 'completions' by position alone",
    "nan": "nan. Expected a finite number, or None for no score",
    "infinite": "inf. Expected a finite number",
    "mapping": "gave {1: 1, 2: 2, 3: 3}. Expected a list of 3 numbers",
    "texts": "'1.0'. Expected a finite number",
    "scalar": "gave 1.0. Expected a list of 3 numbers",
    "nothing": "gave None. Expected a list of 3 numbers",
    "few": "gave 1 scores for 3 answers",
    "pairs": "Expected a finite number",
    "hidden_async": "gave a coroutine, which is awaited of an `async def` alone",
    "raising": "failed: ValueError: no",
}


@pytest.fixture(scope="module")
def forms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    path = tmp_path_factory.mktemp("forms") / "forms.py"
    path.write_text(FORMS)
    yield path


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True:UserWarning")  # in TRL
@pytest.mark.parametrize("names", [CALLED.split(), GIVEN.split()], ids=["called", "given"])
def test_the_same_scores(names: list[str], forms: Path) -> None:
    loaded = judges.load_all({name: f"{forms}:{name}" for name in names}, PROMPTS)
    ours = judges.call(loaded, PROMPTS, TEXTS, IDS)
    truth = as_trl([loaded[name].function for name in names])
    for i, name in enumerate(names):
        expected = [None if math.isnan(score) else score for score in truth[:, i].tolist()]
        assert ours[name] == [score if score is None else pytest.approx(score) for score in expected], name
    assert len({tuple(scores) for scores in ours.values()}) > 9  # negative control: not all are alike


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_sentence(name: str, forms: Path) -> None:
    """The whole is at most two sentences, and names the judge."""
    with pytest.raises(AlignError) as error:
        judges.load(f"{forms}:{name}", PROMPTS)(PROMPTS, TEXTS, IDS)
    assert REFUSED[name] in str(error.value) and f"{forms}:{name}" in str(error.value)


def test_what_stands_elsewhere_in_trl_is_pointed_to() -> None:
    """A model of the hub, and a reward of TRL's by its name."""
    with pytest.raises(AlignError, match=r"A model that scores answers is no judge: give `reward` an artifact"):
        judges.split_name("trl-lib/Qwen2-0.5B-Reward")
    with pytest.raises(AlignError, match=r"from trl\.rewards import think_format_reward"):
        judges.split_name("trl.rewards:think_format_reward")


def test_what_a_judge_says_of_itself(tmp_path: Path) -> None:
    """The first paragraph of its docstring, of a partial that of its function, of an instance that of its class; a
    doc that is no text is none."""
    (tmp_path / "judge.py").write_text(
        "import functools\n"
        "def told(completions, **kwargs):\n    '''One line,\n    and another.\n\n    More.'''\n"
        "class Told:\n    '''Of a class.'''\n    def __call__(self, completions, **kwargs): pass\n"
        "class Silent:\n    def __call__(self, completions, **kwargs): pass\n"
        "def odd(completions, **kwargs): pass\nodd.__doc__ = 3\n"
        "part, instance, silent = functools.partial(told, scale=3), Told(), Silent()\n"
    )
    wanted = {"told": "One line, and another.", "instance": "Of a class.", "silent": "", "odd": ""}
    wanted["part"] = wanted["told"]
    found = judges.load_all({name: f"{tmp_path / 'judge.py'}:{name}" for name in wanted})
    assert {name: judge.says for name, judge in found.items()} == wanted
    assert (found["told"].function.__doc__ or "").split("\n\n")[0].split() == wanted["told"].split()
    assert "partial(func" in (found["part"].function.__doc__ or "")  # negative control: what a partial has itself
