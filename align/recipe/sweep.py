"""Sweeps: settings that are given several values, `beta: {sweep: [0.05, 0.1, 0.2]}`, and the runs that come of them.

In a stage, each value is a variant of that stage, `dpo.beta-0.05`. What builds on it has a variant for each; what takes
a list of stages, as `compare` does, takes them all. Beside `stages`, the recipe is run once for each value,
`seed-0/dpo`. Several sweeps are their product. A stage that no value reaches is one run, which all others share.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import PurePath

from align.ground.errors import InputError
from align.ground.json import Json
from align.recipe.telling import problems as words

KEY = "sweep"
RUNS_LIMIT = 200
"""Runs of a recipe with sweeps."""
VALUE_LIMIT = 40
"""Characters of a value in a name."""


def hint(where: str, problem: str) -> str:
    """How several values are given, where a setting that takes one was given them otherwise; empty elsewhere."""
    setting, _, value = where.partition("=")
    if "," in value and problem.endswith(f'found the text "{value}".'):
        return " `align sweep` takes several values."
    if not value and problem.endswith("found a list.") and "expected a mapping" not in problem:
        return " Several values are a sweep: {sweep: [1, 2]}."
    if value.startswith("[") and problem.endswith("found a list."):
        return f" `align sweep` takes several values, without the brackets: {setting}={value[1:].rstrip(']')}"
    if problem.endswith(tuple(f"found a mapping with {near}." for near in ("sweep", "sweeps", "swept", "values"))):
        return " A sweep is of a list, such as {sweep: [1, 2]}."
    return ""


Choice = frozenset[tuple[words.Path, int]]
"""Where each setting stands that is swept, and which of its values it takes."""


class Sweep:
    """The swept settings of a recipe by where they stand, those beside `stages` first, and the runs of each stage;
    `settings` are those that each has.

    Raises: InputError for more runs than a recipe may have.
    """

    def __init__(
        self, axes: Mapping[words.Path, Sequence[object]], file: str, settings: Mapping[str, Collection[str]]
    ) -> None:
        self.axes, self.file, self.settings = axes, file, settings
        self.slugs = {path: slugs(values) for path, values in axes.items()}
        self.rank = {path: i for i, path in enumerate(axes)}
        self.made: dict[str, dict[Choice, str]] = {}
        """The runs of each stage, by its name in the file."""

    def choices(self, paths: Collection[words.Path]) -> Iterator[Choice]:
        """Every choice of values for these settings."""
        self._check(math.prod(len(self.axes[path]) for path in paths))
        places = [[(path, place) for place in range(len(self.axes[path]))] for path in paths]
        return map(frozenset, itertools.product(*places))

    @property
    def first(self) -> dict[words.Path, object]:
        """The first value of each."""
        return {path: values[0] for path, values in self.axes.items() if values}

    def values(self, choice: Choice) -> dict[words.Path, object]:
        return {path: self.axes[path][place] for path, place in choice}

    def runs(
        self, stage: str, own: Choice, inputs: Mapping[str, tuple[str, ...]], lists: Collection[str]
    ) -> dict[str, dict[str, dict[str, tuple[str, ...]]]]:
        """The runs of a stage whose own settings are those of `own`: by name, which runs of the stages that it names
        in `inputs` each of them takes, by key and stage. Keys in `lists` take any number."""
        joint = [own]
        for key, targets in inputs.items():
            for target in targets:
                theirs = map(_beside_stages, self._of(target)) if key in lists else self._of(target)
                joint = _join(joint, theirs)
                self._check(len(joint))
        found = {}
        for choice in sorted(joint, key=lambda choice: sorted((self.rank[path], place) for path, place in choice)):
            name = self.name(stage, choice)
            self.made.setdefault(stage, {})[choice] = name
            found[name] = {
                key: {target: self._taken(target, choice, key in lists) for target in targets}
                for key, targets in inputs.items()
            }
        self._check(sum(map(len, self.made.values())))
        return found

    def name(self, stage: str, choice: Choice) -> str:
        """What the run of a stage is called: what else the recipe sweeps does not matter."""
        places = dict(sorted(choice, key=lambda at: self.rank[at[0]]))
        parts = {
            path: f"{self._label(path, stage, places)}-{self.slugs[path][place]}" for path, place in places.items()
        }
        first = ".".join(part for path, part in parts.items() if not _in_stage(path))
        last = ".".join([stage, *(part for path, part in parts.items() if _in_stage(path))])
        return f"{first}/{last}" if first else last

    def _label(self, path: words.Path, stage: str, beside: Collection[words.Path]) -> str:
        """A swept setting in the name of a run of a stage: by its end alone, unless it is of a stage before and this
        one has such a setting, too, or another of the run's settings ends so; its own goes before others."""
        alike = [other for other in beside if _in_stage(other) and other[-1] == path[-1]]
        is_alone = len(alike) < 2 or [other for other in alike if other[1] == stage] == [path]
        of_before = _in_stage(path) and path[1] != stage and path[2] in self.settings.get(stage, ())
        return path[-1] if not _in_stage(path) or (is_alone and not of_before) else ".".join(path[1:])

    def _of(self, stage: str) -> Mapping[Choice, str]:
        """The runs of a stage; one that is no earlier stage, which is told elsewhere, has none of its own."""
        return self.made.get(stage) or {frozenset(): stage}

    def _taken(self, target: str, choice: Choice, several: bool) -> tuple[str, ...]:
        runs = self._of(target).items()
        return tuple(name for theirs, name in runs if (_agree(theirs, choice) if several else theirs <= choice))

    def _check(self, runs: int) -> None:
        if self.axes and runs > RUNS_LIMIT:
            swept = ", ".join(f"{'.'.join(path)} has {len(values)} values" for path, values in self.axes.items())
            raise InputError(
                f"{self.file}: its sweeps are more than {RUNS_LIMIT} runs ({swept}), and a recipe has at most "
                f"{RUNS_LIMIT}. Give fewer values, or sweep one setting after the other."
            )


def check_few(file: object, stages: Sized) -> None:
    """A recipe has no more stages than its sweeps may have runs: a rehearsal takes a tenth of a second for each.
    Raises: InputError."""
    if len(stages) > RUNS_LIMIT:
        raise InputError(
            f"{file}: stages: {len(stages):,} of them, and a recipe has at most {RUNS_LIMIT}. Make several recipes: "
            "what one makes is named in another as RECIPE/STAGE."
        )


@dataclass(frozen=True)
class Swept:
    """A setting that is given several values, and what stands beside them, which nothing may."""

    values: list[object]
    others: list[str]

    @property
    def wrong(self) -> str | None:
        """What is wrong with it, in words."""
        if self.others:
            return f"beside a sweep stands {', '.join(self.others)}; sweep the settings of a group one by one."
        if not self.values:
            return "a sweep of no values; expected a list such as {sweep: [0.05, 0.1]}."
        twice = [value for i, value in enumerate(self.values) if any(_equal(value, other) for other in self.values[:i])]
        return f"the sweep has {words.plain(twice[0])} twice; name each value once." if twice else None


def find_sweeps(values: Json, at: words.Path = ()) -> Iterator[tuple[words.Path, Swept]]:
    """Where settings are swept inside `values`, which stand at `at`."""
    for key, value in values.items():
        if not isinstance(value, dict):
            continue
        several = value.get(KEY)
        if isinstance(several, list):
            yield (*at, str(key)), Swept(several, [str(other) for other in value if other != KEY])
        else:
            yield from find_sweeps(value, (*at, str(key)))


def filled(values: Json, chosen: Mapping[words.Path, object], at: words.Path = ()) -> Json:
    """`values`, which stand at `at`, with what is chosen in the place of sweeps."""
    out: Json = {}
    for key, value in values.items():
        path = (*at, str(key))
        inner = filled(value, chosen, path) if isinstance(value, dict) else value
        out[key] = chosen.get(path, inner)
    return out


def slugs(values: Sequence[object]) -> list[str]:
    """What stands for each value in a name: the value itself, of a path its end; numbers where that is no name, or not
    one for each."""
    ends = [PurePath(value).name if isinstance(value, str) else value for value in values]
    for candidates in (ends, values):
        found = [_slug(words.plain(value)) for value in candidates]
        if len({slug.lower() for slug in found}) == len(found) and all(0 < len(slug) <= VALUE_LIMIT for slug in found):
            return found
    return [str(number) for number in range(1, len(values) + 1)]


def _slug(text: str) -> str:
    text = re.sub(r"\.{2,}", ".", re.sub(r"(?<=\de)\+", "", text))  # 1e+30 is not to be taken for 1e-30
    found = re.sub(r"[^A-Za-z0-9._-]+", "-", text, flags=re.ASCII)
    return found.rstrip("-.") if re.match(r"-?\d", found) else found.strip("-.")


def _in_stage(path: words.Path) -> bool:
    return path[0] == "stages"


def _beside_stages(choice: Choice) -> Choice:
    return frozenset(at for at in choice if not _in_stage(at[0]))


def _agree(one: Choice, other: Choice) -> bool:
    """Whether no setting has another value in the one than in the other."""
    return len({path for path, _ in one | other}) == len(one | other)


def _join(ones: Iterable[Choice], others: Iterable[Choice]) -> list[Choice]:
    return [*dict.fromkeys(one | other for one, other in itertools.product(ones, others) if _agree(one, other))]


def _equal(one: object, other: object) -> bool:
    """1, 1.0 and true are three values, but 1 and 1.0 one number."""
    return one == other and isinstance(one, bool) == isinstance(other, bool)
