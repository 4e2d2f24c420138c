"""Recipes: one YAML 1.2 file that names stages, read strictly. Every problem of a recipe is told in one go, with its
line.

    name: helpful
    base: {model: meta-llama/Llama-3.1-8B, quantize: nf4}
    stages:
      sft: {data: dolly.jsonl}
      dpo: {parent: sft, data: pairs.jsonl, beta: 0.1}

What stands beside `stages` is a default for every stage where it has effect. A stage may name an earlier one; `kind`
defaults to its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.ground.errors import InputError
from align.ground.json import Json
from align.recipe.document import Document, lay_over, read_yaml
from align.recipe.effect import as_defaults, idle, set_aside
from align.recipe.entries import (
    Entry,
    Known,
    Recipe,
    Takers,
    as_written,
    has_effect,
    laid_over,
    reaches,
    renamed,
    stage_as_base,
    wrong_input,
)
from align.recipe.fields import is_list, leaves
from align.recipe.paths import relative_to
from align.recipe.settings import NAME, IsFile, IsRef, Runtime, Settings, StageConfig, markers
from align.recipe.sweep import KEY, RUNS_LIMIT, Sweep, check_few, filled, find_sweeps, hint
from align.recipe.telling import beside
from align.recipe.telling import problems as words


def load_recipe(
    path: str | Path,
    kinds: Mapping[str, type[StageConfig]],
    overrides: Sequence[str] = (),
    sweeps: Sequence[str] = (),
    known: Known = lambda *_: False,
) -> Recipe:
    """Read a recipe, `overrides` such as "stages.dpo.beta=0.2" and `sweeps` such as "stages.dpo.beta=0.1,0.2" laid over
    it.

    Args:
        kinds: the settings of every kind of stage.
        known: whether an artifact has a name, in the store that the recipe says, if any.
    Raises: InputError with a line for each problem.
    """
    document = read_yaml(path)
    for override in overrides:
        lay_over(document, override)
    for override in sweeps:
        lay_over(document, override, swept=True)
    return _Reader(document, kinds, known).recipe()


class Misread(InputError):
    """What is wrong with a recipe, and the stages of it that could be read."""

    def __init__(self, text: str, recipe: Recipe) -> None:
        super().__init__(text)
        self.recipe = recipe


class _Reader:
    """One recipe on its way from values to stages; problems are gathered and told at the end."""

    def __init__(self, document: Document, kinds: Mapping[str, type[StageConfig]], known: Known) -> None:
        self.document = document
        self.known = lambda name: known(name, document.values.get("store"))
        self.kinds = kinds
        self.found: dict[str, None] = {}
        self.strange: list[str] = []
        self.sweep = Sweep({}, str(document.path), {})
        self.defaults = {key: value for key, value in document.values.items() if key not in ("name", "stages")}
        self.takers = Takers(self.defaults)

    def problem(self, path: words.Path, text: str) -> None:
        where = self.document.where(path)
        self.found[f"{where}: {text}{hint(where, text)}"] = None

    def line(self, problem: str) -> int:
        """Where a problem stands, for reading order; what --set says comes first."""
        number = problem.removeprefix(f"{self.document.path}:").partition(":")[0]
        return int(number) if number.isdigit() else 0

    def recipe(self) -> Recipe:
        values, path = self.document.values, self.document.path
        name = values.get("name", path.stem)
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            self.problem(("name",), f"name: expected letters, digits, '.', '_' and '-', found {words.found(name)}.")
        bodies = values.get("stages")
        if not isinstance(bodies, dict) or not bodies:
            what = f"found {words.found(bodies)}" if "stages" in values else "found none"
            wrong, right = beside.without_stages(self.kinds, values)
            such = "expected a mapping of at least one stage, such as `sft: {data: sft.jsonl}`"
            for at, text in [(("stages",), f"stages: {such}; {what}.{right}"), *wrong]:
                self.problem(at, text)
            bodies = {}
        check_few(path, bodies)
        found = {stage: self.kind(stage, body) for stage, body in bodies.items()}
        kinds = {stage: kind for stage, kind in found.items() if kind}
        self.check_defaults(set(kinds.values()) or set(self.kinds))
        self.sweep = self.sweeps({stage: bodies[stage] or {} for stage in kinds}, kinds)
        entries = [
            entry
            for stage, kind in kinds.items()
            for entry in self.runs(str(name), stage, kind, bodies[stage] or {}, [*bodies])
        ]
        for at, text in [] if self.found else self.takers.untaken():
            if self.document.is_at_fault(at):
                self.problem(at, text)
        recipe = Recipe(str(name), self.document, {entry.name: entry for entry in entries}, self.takers)
        if self.found:
            raise Misread("\n".join(sorted(self.found, key=self.line)), recipe)
        return recipe

    def sweeps(self, bodies: Mapping[str, Json], kinds: Mapping[str, str]) -> Sweep:
        """The settings that are swept; a problem for each that cannot be."""
        axes: dict[words.Path, list[object]] = {}
        for at, values, owners in [
            ((), self.defaults, [*kinds.values()]),
            *((("stages", stage), body, [kinds[stage]]) for stage, body in bodies.items()),
        ]:
            for path, swept in find_sweeps(values):
                fields = [dict(leaves(self.kinds[kind])).get(path) for kind in owners]
                told = swept.wrong
                if any(field and Runtime in markers(field) for field in fields):
                    told = "it cannot be swept, as it changes nothing that comes out; give it one value."
                if told:
                    self.problem((*at, *path), f"{'.'.join((*at, *path))}: {told}")
                axes[*at, *path] = swept.values[:1] if told else swept.values
        return Sweep(axes, str(self.document.path), {s: self.kinds[kind].model_fields for s, kind in kinds.items()})

    def kind(self, stage: Any, body: object) -> str | None:
        """The kind of a stage; None where there is a problem with it."""
        at = ("stages", stage)
        if not (isinstance(stage, str) and NAME.fullmatch(stage)):
            found = words.found(stage)
            self.problem(at, f"stages: the name of a stage has letters, digits, '.', '_' and '-'; found {found}.")
            return None
        if not isinstance(body, dict | None):
            self.problem(at, f"stages.{stage}: expected a mapping of settings, found {words.found(body)}.")
            return None
        own = body or {}
        kind = own.get("kind", stage)
        if isinstance(kind, str) and kind in self.kinds:
            return kind
        if isinstance(kind, dict) and KEY in kind:
            self.problem((*at, "kind"), f"stages.{stage}.kind: it cannot be swept; write a stage for each kind.")
            return None
        said = f"stages.{stage}.kind: {words.found(kind)}" if "kind" in own else f"stages.{stage}: {stage}"
        guess = words.nearest(str(kind), self.kinds)
        hint = f"did you mean {guess}?" if guess else f"add `kind:` with one of {', '.join(self.kinds)}."
        self.problem((*at, "kind"), f"{said} is not a kind of stage; {hint}")
        return None

    def check_defaults(self, kinds: set[str]) -> None:
        configs = [self.kinds[kind] for kind in kinds]
        known = {key for config in configs for key in config.model_fields} - {"name"}

        self.strange = [key for key in self.defaults if key not in known]
        for key in self.strange:
            guess = words.nearest(str(key), known | {"name", "stages"})
            near = f"did you mean {guess}?" if guess else "remove it."
            self.problem((key,), f"{key} is not a setting of any stage here; {beside.hint(str(key), configs) or near}")

    def runs(self, recipe: str, stage: str, kind: str, body: Json, order: list[str]) -> Iterator[Entry]:
        """The runs of a stage: one, or several where it, or what it builds on, is swept."""
        config = self.kinds[kind]
        own = {key: value for key, value in body.items() if key != "kind"}
        if "name" in own:
            at = ("stages", stage, "name")
            self.problem(at, f"stages.{stage}.name: in a recipe a stage is named by its key; remove it.")
            del own["name"]
        usable = {key: value for key, value in self.defaults.items() if key in config.model_fields}
        if own.get("parent") is not None:
            usable.pop("base", None)
        first = self.sweep.first
        given = laid_over(config, filled(usable, first), filled(own, first, ("stages", stage)))
        # a stage that is named alone is one run of it, even where several may be given
        fields = {key: field for key, field in config.model_fields.items() if isinstance(given.get(key), list)}
        lists = {key for key, field in fields.items() if is_list(field) and IsFile not in markers(field)}
        own_at = ("stages", stage)
        axes = [p for p in self.sweep.axes if p[:2] == own_at or (p[0] != "stages" and reaches(p, config, usable, own))]

        def acts(path: words.Path) -> bool:
            """Whether a default has effect beside any values of the others."""
            others = [other for other in axes if other != path]
            every = itertools.product(*(self.sweep.axes[other] for other in others))
            for values in itertools.islice(every, RUNS_LIMIT):
                chosen = first | dict(zip(others, values, strict=True))
                if has_effect(path, config, laid_over(config, filled(usable, chosen), filled(own, chosen, own_at))):
                    return True
            return False

        reached = [path for path in axes if path[:2] == own_at or acts(path)]
        for choice in self.sweep.choices(reached):
            chosen = first | self.sweep.values(choice)
            mine, general = filled(own, chosen, own_at), filled(usable, chosen)
            inputs = self.inputs(config, laid_over(config, general, mine), stage, order)
            for name, taken in self.sweep.runs(stage, choice, inputs, lists).items():
                if name != stage and {name, name.partition("/")[0]} & {*order}:
                    self.problem(
                        ("stages", stage),
                        f"stages.{stage}: its run {name} would be called as a stage is; name that stage otherwise.",
                    )
                entry = self.entry(f"{recipe}/{name}", stage, kind, mine, general, taken, order)
                if entry:
                    self.takers.note(entry, usable, own)
                    yield entry

    def entry(
        self,
        title: str,
        stage: str,
        kind: str,
        own: Json,
        usable: Json,
        taken: Mapping[str, Mapping[str, tuple[str, ...]]],
        order: list[str],
    ) -> Entry | None:
        """One run of a stage, which takes those runs of earlier ones (by key and stage); None where there is a problem
        with it."""
        config = self.kinds[kind]
        given = laid_over(config, usable, own)
        inputs = {key: tuple(name for names in runs.values() for name in names) for key, runs in taken.items()}
        given |= {key: renamed(given[key], runs) for key, runs in taken.items()}
        given = relative_to(self.document.path.parent, config, given, [*order, *itertools.chain(*inputs.values())])

        def spell(path: words.Path) -> str:
            return beside.keyed(".".join(self.document.origin(stage, path)))

        problems = words.problems(config, given, kind, spell)
        problems += stage_as_base(given, order, spell)
        settings = None
        if not problems:
            settings = config.model_validate({**given, "name": title})
            as_defaults(settings, usable, own)
            problems = self.idle(stage, settings, usable.keys(), spell)
        for path, text in words.but_meant(problems, config, map(str, [*self.strange, *own])):
            self.problem(self.document.origin(stage, path), text if path else f"stages.{stage}: {text}")
        earlier = order[: order.index(stage)]
        later = [target for runs in taken.values() for target in runs if target not in earlier]
        if settings is None or problems or later:
            return None
        return Entry(title.partition("/")[2], kind, settings, inputs, stage)

    def idle(
        self, stage: str, settings: StageConfig, defaults: Collection[str], spell: Callable[[words.Path], str]
    ) -> list[tuple[words.Path, str]]:
        """Settings of a stage without effect. Those of the file to which --set leaves none give way to it."""
        lines, at = self.document.lines, ("stages", stage)
        laid = {path for path in lines if lines[path].startswith("--set") and (path[:2] == at or path[0] in defaults)}
        before = as_written(self.document, stage, type(settings), defaults, self.sweep.first) if laid else {}
        found = []
        for path, text in idle(settings, None, spell):
            if laid and (*at, *path) not in laid and has_effect(path, type(settings), before):
                set_aside(settings, path)
            else:
                found.append((path, text))
        return found

    def inputs(
        self, config: type[Settings], given: Mapping[str, object], stage: str, order: list[str]
    ) -> dict[str, tuple[str, ...]]:
        """Which keys name stages; a problem for one that is not earlier, or that is nothing at all."""
        out: dict[str, tuple[str, ...]] = {}
        for key, value in given.items():
            field = config.model_fields.get(key)
            marks = markers(field) & {IsFile, IsRef} if field else None
            if not marks:
                continue
            at = self.document.origin(stage, (key,))
            values = value if isinstance(value, list) else [value]
            if IsFile in marks:  # a mixture names its files
                values = [v.get("file") if isinstance(v, dict) else v for v in values]
            targets = [v for v in values if isinstance(v, str)]
            for target in targets:
                wrong = wrong_input(target, stage, order, IsRef in marks, self.known)
                if target not in order and (why := getattr(config, "strangers", {}).get(target)):
                    wrong = f"is no stage; {why} Leave it out."
                if wrong:
                    self.problem(at, f"{'.'.join(at)}: {target} {wrong}")
            named = tuple(target for target in targets if target in order)
            if named:
                out[key] = named
        return out
