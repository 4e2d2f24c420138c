"""Judges called as TRL 1.16 calls reward functions (trl/trainer/grpo_trainer.py, `_calculate_rewards`), and what they
may give back."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType
from typing import Any, TypeAlias

from align.data.records import Prompt
from align.ground.errors import AlignError, InputError
from align.judges.code import of_setting, read, split_name
from align.judges.program import Program
from align.judges.scores import Score, WrongReturn, checked

ARGUMENTS = ("prompts", "completions", "completion_ids")
KEPT_BACK = ("completion", "completion_ids")
"""Columns that TRL gives no reward function."""
FORMS = (
    "As in TRL, where a row's prompt is text, its completion is text; where it is a list of messages, so is the "
    "completion: completion[0]['content']."
)
Programs: TypeAlias = "dict[str, tuple[Program, ModuleType]]"
"""Files of judges that have run, by their paths."""
TRAINERS_OWN = ("trainer_state", "log_extra", "log_metric", "environments")
"""What TRL gives beside, which exists only inside its trainer."""


@dataclass(frozen=True)
class Judge:
    """A function of a judge's file. Called with prompts and answers it gives one score for each, None where it gives
    none.

    Raises: AlignError naming the judge, its line or the prompt, where it raises or gives back anything else.
    """

    name: str
    function: Callable[..., Any]
    program: Program
    columns: tuple[str, ...] = ()
    """Names that the rows of its data have beside the prompt."""

    def __call__(
        self, prompts: Sequence[Prompt], texts: Sequence[str], ids: Sequence[Sequence[int]] | None = None
    ) -> list[Score]:
        return call({"judge": self}, prompts, texts, ids)["judge"]

    @cached_property
    def is_async(self) -> bool:
        """Whether calling it gives a coroutine (as TRL's `is_async_callable` finds out)."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        asynchronous = inspect.iscoroutinefunction
        return asynchronous(function) or asynchronous(function.__call__)  # type: ignore[operator]

    def arguments(
        self, prompts: Sequence[Prompt], texts: Sequence[str], ids: Sequence[Sequence[int]] | None
    ) -> dict[str, object]:
        """What it is called with: copies, so that what it does to them reaches no one else. A row without a column has
        None there."""
        given: dict[str, object] = {
            "prompts": [p.given for p in prompts],
            "completions": [_given(text, p) for p, text in zip(prompts, texts, strict=True)],
        }
        if ids is not None:
            given["completion_ids"] = [list(row) for row in ids]
        for name in dict.fromkeys([*self.columns, *column_names(prompts)]):
            given[name] = [deepcopy(p.columns.get(name)) for p in prompts]
        return given

    @property
    def says(self) -> str:
        """What it says of itself: the first paragraph of its docstring, on one line; "" where there is none."""
        function = self.function
        while isinstance(function, functools.partial):
            function = function.func
        text = getattr(function, "__doc__", None)
        if type(text) is not str:
            return ""
        said = re.split(r"\n\s*\n", text.strip())[0]
        return " ".join(said.encode("utf-8", "replace").decode().split())

    @property
    def gets(self) -> str:
        """What it is called with, in words."""
        columns = f"the columns {', '.join(self.columns)}" if self.columns else "no column"
        return f"It gets {', '.join(ARGUMENTS)}, and of the data {columns}."

    @contextmanager
    def blamed(self) -> Iterator[None]:
        """Where its code runs. Raises: AlignError for whatever it raises, `SystemExit` too."""
        try:
            yield
        except BaseException as error:
            if isinstance(error, WrongReturn) or self.program.is_ours(error):
                raise
            hint = f" {self.gets}" if isinstance(error, KeyError) else ""
            if isinstance(error, (TypeError, AttributeError)) and self.program.place(error):
                hint = f" {FORMS}"
            raise AlignError(f"judge: {self.name} failed: {self.program.told(error)}.{hint}") from error


def _given(answer: str, prompt: Prompt) -> object:
    """An answer in the form in which its prompt is given."""
    return answer if prompt.as_text else [{"role": "assistant", "content": answer}]


def load(name: str, prompts: Sequence[Prompt] = (), held: str | None = None) -> Judge:
    """The judge of that name for these prompts, as `load_all` loads several."""
    return load_all({"judge": name}, prompts, {"judge": held} if held else {})["judge"]


def load_all(
    names: Mapping[str, str],
    prompts: Sequence[Prompt] = (),
    held: Mapping[str, str] | None = None,
    programs: Programs | None = None,
) -> dict[str, Judge]:
    """Judges by the measures that they are for; two functions of one file share it, which runs once.

    Args:
        prompts: what will be answered; a judge that asks for what they do not have is refused.
        held: their digests as they were asked for.
        programs: files that have run already, to which those that run now are added.

    Raises: InputError when a file does not run, has no such function, or has changed meanwhile, and for a function that
        cannot be called with what there is.
    """
    programs = {} if programs is None else programs
    judges: dict[str, Judge] = {}
    columns = tuple(column_names(prompts)) if names else ()
    for measure, name in names.items():
        try:
            found = _loaded(name, programs, (held or {}).get(measure))
            judges[measure] = Judge(name, *found, columns)
            if prompts:
                check_signature(judges[measure])
        except InputError as error:
            raise error if measure == "judge" else of_setting(f"judges.{measure}", error) from error
    return judges


def _loaded(name: str, programs: Programs, held: str | None) -> tuple[Callable[..., object], Program]:
    """The function of that name, and the program that it is of. Raises: InputError as `load_all` does."""
    path, function = split_name(name)
    if str(path) not in programs:
        program = Program(read(path))
        if held not in (None, f"{program.code.digest()}:{function}"):
            raise InputError(
                f"judge: {path}, or a file that it imports, changed after this run had begun. Start it again."
            )
        programs[str(path)] = program, program.load()
    program, module = programs[str(path)]
    found = getattr(module, function, None)
    if not callable(found):
        own = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise InputError(f"judge: {path} has no function {function!r}; it has {own or 'none'}.")
    if is_module(found):
        raise InputError(
            f"judge: {name} is a model, which TRL would have score answers by itself. Give `reward` what `align "
            "reward` makes or `align import` brings in."
        )
    return found, program


def is_module(found: object) -> bool:
    """Whether it is one of torch's modules, without torch."""
    return any(kind.__name__ == "Module" and kind.__module__.startswith("torch.nn.") for kind in type(found).__mro__)


def column_names(prompts: Sequence[Prompt]) -> list[str]:
    """Names of the columns that a judge gets, in the order of the rows. Raises: InputError for one that has an
    argument's name."""
    for prompt in prompts:
        taken = [name for name in ARGUMENTS[:2] if name in prompt.columns]
        if taken:
            raise InputError(
                f'{prompt.where}: the column "{taken[0]}" is what a judge gets its {taken[0]} as. Rename it.'
            )
    names = dict.fromkeys(name for prompt in prompts for name in prompt.columns)
    return [name for name in names if name not in KEPT_BACK]


def check_signature(judge: Judge) -> None:
    """Whether the function can be called by keyword with what there is. Raises: InputError saying what it lacks."""
    try:
        parameters = inspect.signature(judge.function).parameters.values()
    except (TypeError, ValueError):  # of a function written in C
        return
    given = [*ARGUMENTS, *judge.columns]
    line = getattr(getattr(judge.function, "__code__", None), "co_firstlineno", None)
    where = f"judge: {judge.name}" + (f" ({judge.program.code.given}:{line})" if line else "")
    for parameter in parameters:
        name = parameter.name
        if parameter.kind == parameter.POSITIONAL_ONLY:
            raise InputError(
                f"{where} takes {name!r} by position alone, but a judge is called by keyword. Remove the `/`."
            )
        by_keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        required = by_keyword and parameter.default is parameter.empty
        if required and name not in given:
            raise InputError(f"{where} needs {name!r}, {_why_not(name)}. {judge.gets}")
    surplus = [name for name in given if name not in {p.name for p in parameters}]
    if surplus and not any(p.kind == p.VAR_KEYWORD for p in parameters):
        raise InputError(
            f"{where} takes no {surplus[0]!r}. As in TRL, it is called by keyword with all there is: add **kwargs. "
            f"{judge.gets}"
        )


def _why_not(name: str) -> str:
    """Why a judge does not get an argument."""
    if name in TRAINERS_OWN:
        return f"which exists only inside TRL's trainer; give it a default, such as {name}=None"
    if name in KEPT_BACK:
        return "a column that TRL keeps from reward functions; rename it in data and judge"
    return "which it does not get"


def call(
    judges: Mapping[str, Judge],
    prompts: Sequence[Prompt],
    texts: Sequence[str],
    ids: Sequence[Sequence[int]] | None = None,
) -> dict[str, list[Score]]:
    """Every judge's scores of S answers; asynchronous judges wait side by side, in one event loop for the whole
    process, as in TRL.

    Args:
        prompts, texts: (S,), what was answered and the answers.
        ids: (S,), the answers' token ids.

    Raises: AlignError as a judge does.
    """
    found: dict[str, list[Score]] = {}
    work = f"scoring {len(texts):,} answers"
    for measure, judge in judges.items():
        if not judge.is_async:
            with judge.program.alive(work), judge.blamed():
                output = judge.function(**judge.arguments(prompts, texts, ids))
                found[measure] = checked(judge.name, output, prompts)
    waiting = {measure: judge for measure, judge in judges.items() if judge.is_async}
    if waiting:  # asyncio takes as long to import as all other judges' code together
        from align.judges.loop import together
    for batch in _side_by_side(waiting):
        programs = {id(judge.program): judge.program for judge in batch.values()}
        with ExitStack() as alive:
            for program in programs.values():
                alive.enter_context(program.alive(work))
            given = together([_wait(judge, judge.arguments(prompts, texts, ids)) for judge in batch.values()])
            for (measure, judge), output in zip(batch.items(), given, strict=True):
                with judge.blamed():
                    found[measure] = checked(judge.name, output, prompts)
    return {measure: found[measure] for measure in judges}


def _side_by_side(judges: Mapping[str, Judge]) -> list[dict[str, Judge]]:
    """As few batches as do without two programs that have a module's name in common."""
    batches: list[dict[str, Judge]] = []
    for measure, judge in judges.items():
        batch = next((batch for batch in batches if _fits(judge, batch)), None)
        if batch is None:
            batch = {}
            batches.append(batch)
        batch[measure] = judge
    return batches


def _fits(judge: Judge, batch: Mapping[str, Judge]) -> bool:
    """Whether no other program of a batch has a module of the same name."""
    own = judge.program
    others = [other.program for other in batch.values() if other.program is not own]
    return not any(program.names & own.names for program in others)


async def _wait(judge: Judge, arguments: Mapping[str, object]) -> object:
    with judge.blamed():
        return await judge.function(**arguments)
