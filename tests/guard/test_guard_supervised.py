"""The guard of supervised stages: a run made by hand that shows each sign and one that just does not; then real runs,
sick and healthy."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import pytest
from torch import nn

from align import dpo, reward, sft
from align.ground.errors import AlignError
from align.guard import supervised
from align.guard.limits import Limits, PairLimits, PolicyLimits
from align.guard.supervised import Guard, pair_figures
from align.guard.supervised_signs import SIGNS
from tests.conftest import Pipeline
from tests.models.models import settings
from tests.stages.helpers import run

Looks = Iterable[dict[str, float]]


def guard(kind: Any = sft, looks: Looks = (), held: int = 64, **limits: Any) -> Guard:
    """Before its first step. `looks` are what is found in `held` held-out records, one after the other."""
    limited = type(kind.Config.model_fields["guard"].default)(**limits)
    found = list(looks)
    config = settings(kind.Config, guard=limited, batch_size=16)
    roles: Any = nn.Linear(1, 1)
    return Guard(config, "run", roles, ["a record"] * held * bool(found), lambda some: found.pop(0))  # type: ignore[list-item]


def watched(steps: list[dict[str, float]], *args: Any, folder: Path, **kwargs: Any) -> list[tuple[str, int]]:
    """The signs that a guard warns of, and when."""
    made = guard(*args, **kwargs)
    made.begin(len(steps), 10)
    made.look(0)
    for i, means in enumerate(steps):
        made.step(means)
        made.look(i + 1)
    made.end(folder)
    return [(w["sign"], w["step"] + 1) for w in made.warnings]


def flat(n: int = 100, **figures: float) -> list[dict[str, float]]:
    return [{"loss": 1.0, "grad_norm": 0.5} | figures] * n


def test_what_is_looked_at_is_drawn_by_chance() -> None:
    """Records may take turns, as good and bad answers of pairs do. Negative control: every fourth is of one kind."""
    config: Any = settings(sft.Config, batch_size=16)
    records: Any = [*range(224)]
    some: Any = Guard(config, "run", cast(Any, nn.Linear(1, 1)), records, lambda some: {}).some
    assert len(some) == 64 == len({*some}) and some == sorted(some)
    assert all(8 <= sum(record % 4 == kind for record in some) <= 24 for kind in range(4))
    assert len({record % 4 for record in records[:: 224 // 56]}) == 1


def test_what_learns_too_fast_is_not_told_to_learn_faster(tmp_path: Path) -> None:
    """One step does not ask for both. Negative control: gradients that are not cut."""
    looks = losses(2.0, 2.0, 2.0)
    assert watched(flat(grad_norm=100.0), looks=looks, folder=tmp_path) == [("clipped", 50)], "and later, too"
    assert watched(flat(), looks=looks, folder=tmp_path) == [("no_learning", 50)]


def losses(*values: float) -> list[dict[str, float]]:
    return [{"loss": value} for value in values]


def test_a_held_out_loss_that_stays(tmp_path: Path) -> None:
    """Half way it has to be 1 % below the start. What rose has learnt something, so that a higher learning_rate is no
    remedy: at the end, it is worse than before."""
    # seen at the next stretch's end
    assert watched(flat(), looks=losses(2.0, 1.99, 1.5), folder=tmp_path) == [("no_learning", 50)]
    assert watched(flat(), looks=losses(2.0, 1.97, 1.5), folder=tmp_path) == []
    assert watched(flat(), looks=losses(2.0, 1.97, 1.99), folder=tmp_path) == [("no_learning", 100)]
    assert watched(flat(), looks=losses(2.0, 2.01, 2.0), folder=tmp_path) == [("no_learning", 50)]
    assert watched(flat(), looks=losses(2.0, 2.05, 2.05), folder=tmp_path) == [("held_out", 100)]
    assert watched(flat(), looks=losses(2.0, 2.05, 2.015), folder=tmp_path) == [("no_learning", 100)]
    # far off in between: learnt, and too fast
    assert watched(flat(), looks=losses(2.0, 2.2, 2.0), folder=tmp_path) == [("held_out", 50)]
    assert watched(flat(9), looks=losses(2.0, 2.0, 2.0), folder=tmp_path) == []  # too short to tell
    assert watched(flat(), folder=tmp_path) == []  # nothing is held out
    assert watched(flat(), looks=losses(2.0, 1.99, 1.5), folder=tmp_path, no_learning=0.001) == []


def test_the_lowest_loss_so_far(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Is below that of the start too, though `keep: best` keeps what was trained."""
    config = settings(sft.Config, eval_steps=1, keep="best", batch_size=16)
    found, roles = losses(2.0, 2.1, 1.9, 1.9), cast(Any, nn.Linear(1, 1))
    made = Guard(config, "run", roles, ["a record"] * 4, lambda some: found.pop(0))  # type: ignore[list-item]
    made.begin(3, 3)
    for step in range(4):
        made.look(step)
    lines = [line for line in capsys.readouterr().err.splitlines() if "held-out loss" in line]
    assert [line.endswith("the lowest loss so far") for line in lines] == [False, False, True, False]
    assert made.best == 2


def test_a_held_out_loss_that_rises(tmp_path: Path) -> None:
    assert watched(flat(), looks=losses(2.0, 1.0, 1.06), folder=tmp_path) == [("held_out", 100)]
    assert watched(flat(), looks=losses(2.0, 1.0, 1.04), folder=tmp_path) == []
    assert watched(flat(), looks=losses(2.0, 2.2, 1.0), folder=tmp_path) == [("held_out", 50)]


def test_what_is_left_to_do_where_the_best_is_kept(tmp_path: Path) -> None:
    """No fewer steps, as those of the best look are kept. Negative control: where the last are, fewer are advised."""
    for keep in ("best", "last"):
        config = settings(dpo.Config, eval_steps=50, keep=keep, batch_size=16)
        looks = [{"loss": loss, "accuracy": 0.6} for loss in (0.69, 0.4, 0.6)]
        roles = cast(Any, nn.Linear(1, 1))
        made = Guard(config, "run", roles, ["a record"] * 64, lambda some, looks=looks: looks.pop(0))  # type: ignore[list-item, misc]
        made.begin(100, 100)
        made.look(0)
        for step in range(100):
            made.step({"loss": 1.0, "rewards/accuracies": 1.0, "logps/chosen_per_token": -0.6})
            made.look(step + 1)
        said = {str(w["sign"]): str(w["message"]).partition("What to do: ")[2] for w in made.warnings}
        assert {*said} == {"held_out", "overfitting", "chosen"}
        kept = " as the weights of the best look are kept (keep: best)"
        assert (f"no fewer steps,{kept}" in said["held_out"]) == (keep == "best")
        assert (f"no fewer epochs,{kept}" in said["overfitting"]) == (keep == "best")
        assert ("fewer epochs (max_steps" in said["held_out"]) == (keep == "last")
        assert ("for fewer steps" in said["chosen"]) == (keep == "last")
        assert "halve learning_rate" in said["held_out"] and "sft_coef" in said["chosen"]


def test_a_loss_above_its_start(tmp_path: Path) -> None:
    """The last quarter of 100 steps; where it is 20 % above the first step, nothing is said of too little learning."""
    for last, expected in ((1.21, ["diverged"]), (1.19, [])):
        assert [sign for sign, _ in watched([*flat(75), *flat(25, loss=last)], folder=tmp_path)] == expected
    chance = flat(99, accuracy=0.5, loss=2.0)
    assert [sign for sign, _ in watched([*flat(1, accuracy=0.5), *chance], reward, folder=tmp_path)] == ["diverged"]
    assert watched(flat(9, loss=2.0), folder=tmp_path) == []


def test_pairs_that_are_ordered_by_chance(tmp_path: Path) -> None:
    """In 50 steps of 16 are 800 pairs: two standard errors of chance are 2 x 0.5 / sqrt(800) = 0.0354."""
    for kind, name in ((reward, "accuracy"), (dpo, "rewards/accuracies")):
        more = {"logps/chosen_per_token": 0.0} if kind is dpo else {}
        assert watched(flat(**{name: 0.535}, **more), kind, folder=tmp_path) == [("no_learning", 50)]
        assert watched(flat(**{name: 0.60}, **more), kind, folder=tmp_path) == []
        looks = [{"loss": loss, "accuracy": 0.6} for loss in (0.6931, 0.6928, 0.6925)]  # right, but by next to nothing
        assert ("no_learning", 50) in watched(flat(**{name: 0.60}, **more), kind, looks, folder=tmp_path)


def test_pairs_by_heart(tmp_path: Path) -> None:
    """Of 64 pairs 48 are right: three standard errors are 0.17, so a gap of 0.2 counts. In one step of 16 pairs, all
    right, they are 3 x sqrt(0.75 x 0.25 / 64 + 0.05 / 16) = 0.23."""
    looks = [{"loss": 0.6, "accuracy": 0.5}, {"loss": 0.5, "accuracy": 0.8}, {"loss": 0.5, "accuracy": 0.75}]
    for accuracy, expected in ((0.96, [("overfitting", 100)]), (0.94, [])):
        assert watched(flat(accuracy=accuracy), reward, looks, folder=tmp_path) == expected
    for accuracy, expected in ((0.75, [("overfitting", 1)]), (0.78, [])):
        one = [{"loss": 0.6, "accuracy": 0.5}, {"loss": 0.5, "accuracy": accuracy}]
        assert watched(flat(1, accuracy=1.0), reward, one, folder=tmp_path) == expected


def test_too_few_pairs_to_be_known_by_heart(tmp_path: Path) -> None:
    """All of the trained ones right and none of the held-out ones; from 20 of these on that is said."""
    for pairs, expected in ((2, []), (19, []), (20, [("overfitting", 1)])):
        looks = [{"loss": 0.7, "accuracy": 0.0}] * 3
        assert watched(flat(2, accuracy=1.0), reward, looks, held=pairs, folder=tmp_path) == expected


def test_a_spike(tmp_path: Path) -> None:
    """Losses of 1.1 and 0.9 by turns have a deviation of 0.1: ten of them above 1 is 2. Without any, half as much again
    counts."""
    wave = [{"loss": 1.1 - 0.2 * (i % 2)} for i in range(40)]
    assert watched([*wave, {"loss": 2.01}], folder=tmp_path) == [("spike", 41)]
    assert watched([*wave, {"loss": 1.99}], folder=tmp_path) == []
    assert watched([*flat(40), {"loss": 1.51}], folder=tmp_path) == [("spike", 41)]
    assert watched([*flat(40), {"loss": 1.49}], folder=tmp_path) == []
    assert "spike" not in dict(watched([*wave[:19], {"loss": 9.0}], folder=tmp_path))  # too few to compare with


def test_gradients_that_are_always_clipped(tmp_path: Path) -> None:
    limit = Limits().clipped
    assert watched(flat(grad_norm=limit + 1), folder=tmp_path) == [("clipped", 50)]
    assert watched(flat(grad_norm=limit - 1), folder=tmp_path) == []


def test_chosen_answers_that_lose(tmp_path: Path) -> None:
    limit = PolicyLimits().chosen
    fine = {"rewards/accuracies": 0.9}
    for lost, expected in ((limit + 0.01, [("chosen", 100)]), (limit - 0.01, [])):
        rows = [
            *flat(95, **fine, **{"logps/chosen_per_token": 0.0}),
            *flat(5, **fine, **{"logps/chosen_per_token": -lost}),
        ]
        assert watched(rows, dpo, folder=tmp_path) == expected


def test_pair_figures() -> None:
    """-log sigmoid of gaps of 2 and -1."""
    found = pair_figures([3.0, 1.0, 0.0, 1.0])
    assert found == {
        "loss": pytest.approx((math.log1p(math.exp(-2.0)) + math.log1p(math.exp(1.0))) / 2),
        "accuracy": 0.5,
    }
    assert pair_figures([1e4, 0.0, 0.0, 1e4])["loss"] == pytest.approx(5e3)  # no overflow
    assert pair_figures([0.0, 0.0]) == {"loss": pytest.approx(supervised.UNTRAINED["loss"]), "accuracy": 0.0}


def test_every_sign_has_a_threshold_a_cause_and_a_page() -> None:
    page = (Path(supervised.__file__).parents[2] / "docs/guard.md").read_text()
    assert set(PolicyLimits.signs) == set(SIGNS)
    for limits in (Limits, PairLimits, PolicyLimits):
        assert set(limits.signs) == set(limits.model_fields) - {"stop"}
        for name in limits.signs:
            assert f"| `{name}` |" in page and f"{limits.model_fields[name].default:g}" in page, name
        everything = limits(stop=list(limits.signs))
        assert everything.stop == list(limits.signs)


def test_what_is_saved_is_all_that_it_needs(tmp_path: Path) -> None:
    """A guard that goes on from a saved state warns like one that saw it all, wherever it was stopped; one that forgets
    does not."""
    rows = [*flat(40), {"loss": 1.6}, *flat(59)]
    looks = losses(2.0, 1.9, 2.2)
    whole = guard(looks=looks)
    whole.begin(100, 10)
    whole.look(0)
    saved: dict[int, Any] = {}
    for i, means in enumerate(rows):
        saved[i] = copy.deepcopy(whole.state_dict())
        whole.step(means)
        whole.look(i + 1)
    whole.end(tmp_path)
    assert [w["sign"] for w in whole.warnings] == ["spike", "held_out"]
    for at in (1, 33, 41, 50, 99):
        resumed = guard(looks=looks[len(saved[at]["run"]["held_out"]) :])
        resumed.begin(100, 10)
        resumed.load_state_dict(json.loads(json.dumps(saved[at])))
        for i, means in enumerate(rows[at:], start=at):
            resumed.step(means)
            resumed.look(i + 1)
        resumed.end(tmp_path)
        assert resumed.state_dict() == whole.state_dict(), at
    forgetful = guard(looks=looks[2:])
    forgetful.begin(100, 10)
    for i, means in enumerate(rows[50:], start=50):
        forgetful.step(means)
        forgetful.look(i + 1)
    forgetful.end(tmp_path / "none")
    assert forgetful.warnings == []


def test_a_sign_may_end_the_run(tmp_path: Path) -> None:
    with pytest.raises(
        AlignError, match=r"^run was stopped by its guard in step 41: spike: the loss of this step is 1.6;"
    ):
        watched([*flat(40), {"loss": 1.6}], folder=tmp_path, stop=["spike"])


# ---- real runs -------------------------------------------------------------------------------------------------------


def signs(pipeline: Pipeline, artifact: Any) -> list[str]:
    rows = pipeline.store.read(artifact, "guard.jsonl").splitlines() if "guard.jsonl" in artifact.files else []
    assert artifact.metrics["guard/warnings"] == len(rows)
    return [json.loads(row)["sign"] for row in rows]


def test_dpo_that_does_not_move(pipeline: Pipeline) -> None:
    """The same pairs at two rates, 12 steps each."""
    long: dict[str, Any] = {"max_steps": 12, "batch_size": 4, "name": "other"}
    assert signs(pipeline, run(pipeline, "dpo", **long, learning_rate=1e-9)) == ["no_learning"]
    assert signs(pipeline, run(pipeline, "dpo", **long, learning_rate=0.003)) == []


def test_sft_that_does_not_move(pipeline: Pipeline) -> None:
    long: dict[str, Any] = {"max_steps": 12, "name": "other"}
    assert signs(pipeline, run(pipeline, "sft", **long, learning_rate=1e-7)) == ["no_learning"]
    assert signs(pipeline, run(pipeline, "sft", **long)) == []


def test_looking_changes_nothing(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """With dropout, which draws random numbers in training and none while held-out records are looked at."""
    long: dict[str, Any] = {"max_steps": 4, "adapter": {"rank": 4, "dropout": 0.3}}
    seen: list[int] = []
    look = Guard.look

    def noting(self: Guard, step: int) -> Any:
        before = len(self.run.held_out)
        found = look(self, step)
        if len(self.run.held_out) > before:
            seen.append(step)
        return found

    def adapter(seed: int, logging_steps: int) -> list[str]:
        made = run(pipeline, "sft", name="other", seed=seed, logging_steps=logging_steps, **long)
        return [f["sha256"] for path, f in sorted(made.files.items()) if path.endswith("adapter_model.safetensors")]

    monkeypatch.setattr(Guard, "look", noting)
    looked = adapter(1, 1)
    assert seen == [0, 2, 4]
    monkeypatch.setattr(Guard, "look", lambda self, step: {})
    assert adapter(1, 2) == looked
    assert adapter(2, 1) != looked  # negative control
