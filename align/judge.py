"""Judges: Python functions of the user's own that score completions, in TRL's reward signature.

`path/to/file.py:function`, called as f(prompts, completions, **columns) -> list[float]; prompts and completions are message lists, and
`columns` holds the prompt rows' other keys, one list each.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from align.data.records import Prompt
from align.errors import InputError

Judge = Callable[[Sequence[Prompt], Sequence[str]], list[float]]


def split_name(name: str) -> tuple[Path, str]:
    """File and function of `file.py:function`. Raises: InputError when it is neither or the file is missing."""
    path, colon, function = name.rpartition(":")
    if not colon or not path.endswith(".py") or not function.isidentifier():
        raise InputError(f"judge: {name!r} is not FILE.py:FUNCTION, such as judge.py:score.")
    if not Path(path).is_file():
        raise InputError(f"judge: there is no file {path}.")
    return Path(path), function


def digest(name: str) -> str:
    """What a judge is: the sha256 of its file, and the function."""
    path, function = split_name(name)
    return f"{hashlib.sha256(path.read_bytes()).hexdigest()}:{function}"


def load(name: str) -> Judge:
    """The judge of that name, which checks that a score comes back for every completion.

    Raises: InputError when the file does not run or has no such function.
    """
    path, function = split_name(name)
    spec = importlib.util.spec_from_file_location(f"judge_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"judge: {path} does not run: {type(error).__name__}: {error}") from error
    found = getattr(module, function, None)
    if not callable(found):
        names = ", ".join(n for n, v in vars(module).items() if callable(v) and not n.startswith("_"))
        raise InputError(f"judge: {path} has no function {function!r}; it has {names or 'none'}.")

    def judge(prompts: Sequence[Prompt], completions: Sequence[str]) -> list[float]:
        dialogues = [[m.plain() for m in p.messages] for p in prompts]
        answers = [[{"role": "assistant", "content": text}] for text in completions]
        scores = list(found(dialogues, answers, **columns_of(prompts)))
        if len(scores) != len(completions):
            raise InputError(f"judge: {name} gave {len(scores)} scores for {len(completions)} completions; it must give one each.")
        return [float(s) for s in scores]

    return judge


def columns_of(prompts: Sequence[Prompt]) -> Mapping[str, list[Any]]:
    """The rows' other keys as columns; a row without a key has None there."""
    names = sorted({name for p in prompts for name in p.columns})
    return {name: [p.columns.get(name) for p in prompts] for name in names}
