"""A judge's code running: its modules exist, and its folder is importable, only while it runs, so that two judges,
Align and what is installed do not see each other's helpers. What it prints goes to stderr."""

from __future__ import annotations

import dis
import importlib
import importlib.util
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import ExecutionLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, ParamSpec, TypeVar

from align.ground.errors import InputError
from align.ground.leaving import threads_of
from align.ground.progress import clock
from align.ground.terminal import on_stderr, say
from align.judges.code import Code, Source, installed
from align.judges.streams import streams_kept

P = ParamSpec("P")
T = TypeVar("T")

ENDS = ("_exit", "execv", "execve")
"""Functions of `os` after which nothing of this process is left to say what became of its work."""
PATIENCE = 60.0
"""Seconds after which it is said, again and again, that a judge is still at work."""


class Ended(SystemExit):
    """A judge's code was about to end the process without a word."""


class Finder(MetaPathFinder, ExecutionLoader):
    """Modules from bytes that were read before: no file is read again, and no cached bytecode is taken for it."""

    def __init__(self, sources: dict[str, Source]) -> None:
        self.sources = sources

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        source = self.sources.get(name)
        if source is None:
            return None
        if source.text is None:
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [str(source.path)]
            return spec
        places = [str(source.path.parent)] if source.package else None
        return importlib.util.spec_from_file_location(name, source.path, loader=self, submodule_search_locations=places)

    def get_filename(self, name: str) -> str:
        return str(self.sources[name].path)

    def get_source(self, name: str) -> str:
        return importlib.util.decode_source(self.sources[name].text or b"")

    def is_package(self, name: str) -> bool:
        return self.sources[name].package


class Program:
    """A judge's file, loaded under the name that Python would import it by, so that what it defines can be pickled to
    other processes."""

    def __init__(self, code: Code) -> None:
        stem = code.main.path.stem.replace(".", "_")
        self.code = code
        is_taken = stem in ("align", *code.helpers) or stem.startswith("__") or installed(stem)
        self.name = f"judge_{stem}" if is_taken else stem
        self.finder = Finder({**code.helpers, self.name: code.main})
        self.modules: dict[str, ModuleType] = {}
        self.path = [str(code.folder), *sys.path]

    @property
    def names(self) -> set[str]:
        return set(self.finder.sources)

    def load(self) -> ModuleType:
        """Run the file. Raises: InputError when it does not run, whatever it raises, `SystemExit` too."""
        with self.alive("loading"):
            try:
                return importlib.import_module(self.name)
            except BaseException as error:
                if self.is_ours(error):
                    raise
                hint = ' Put what is not the judge under `if __name__ == "__main__":`.'
                raise InputError(
                    f"judge: {self.code.given} does not run: {self.told(error)}."
                    f"{hint if isinstance(error, SystemExit) else ''}"
                ) from error

    @contextmanager
    def alive(self, work: str) -> Iterator[None]:
        """Where the judge's code may run, at this `work`; stderr is told when it takes long.

        Raises: InputError where it has loaded a file of its folder that its digest does not cover.
        """
        known = set(sys.modules)
        outer = {name: sys.modules.pop(name) for name in self.names if name in sys.modules}
        sys.modules.update(self.modules)
        path, sys.path[:] = list(sys.path), self.path
        where = os.getcwd()
        sys.meta_path.insert(0, self.finder)
        try:
            name = f"judge: {self.code.given}"
            with streams_kept(name), _torch_kept(), _not_ended(), threads_of(name), _told_of(f"{name} is still {work}"):
                yield
            self._check(known)
        finally:
            sys.meta_path.remove(self.finder)
            os.chdir(where)
            self.path, sys.path[:] = list(sys.path), path
            self.modules = {name: sys.modules.pop(name) for name in self.names if name in sys.modules}
            sys.modules.update(outer)

    def is_ours(self, error: BaseException) -> bool:
        """Whether an error is none of the judge's: Ctrl-C or the end of a coroutine, as long as no `raise` of its own
        made it."""
        if not isinstance(error, (KeyboardInterrupt, GeneratorExit)):
            return False
        *_, last = _tracebacks(error)
        code = last.tb_frame.f_code
        return not (self._shown(code.co_filename) and dis.opname[code.co_code[last.tb_lasti]] == "RAISE_VARARGS")

    def told(self, error: BaseException) -> str:
        """An error in words, with the place in the judge's own code that it came from."""
        try:
            if isinstance(error, Ended):
                what = f"it called {error.code}, which would have ended Align"
            elif isinstance(error, SystemExit):
                what = f"sys.exit({error.code!r})"
            else:
                what = f"{type(error).__name__}: {error}".rstrip(": ")
        except Exception:  # of its own __str__ or __repr__
            what = type(error).__name__
        place = self.place(error)
        return f"{what} ({place})" if place else what

    def place(self, error: BaseException) -> str | None:
        """file:line of the judge's own innermost frame."""
        frames = traceback.walk_tb(error.__traceback__)
        places = [(self._shown(frame.f_code.co_filename), line) for frame, line in frames]
        own = [f"{shown}:{line}" for shown, line in places if shown]
        return own[-1] if own else None

    def _shown(self, file: str) -> str | None:
        """A file of the judge as a person would name it; None for any other."""
        own = [source.path for source in self.finder.sources.values() if source.text is not None]
        return next((self.code.shown(path) for path in own if str(path) == file), None)

    def _check(self, known: set[str]) -> None:
        """Look at what was loaded since `known`: files of the folder are an error, others that are not installed are
        said."""
        for name in sorted(set(sys.modules) - known - self.names):
            file = getattr(sys.modules[name], "__file__", None)
            if name == "__mp_main__" or file is None or not os.path.isfile(file) or _is_installed(file):
                continue
            if Path(file).is_relative_to(self.code.folder):
                shown = self.code.shown(Path(file))
                raise InputError(
                    f"judge: {self.code.given} loaded {shown}, which no import statement names, so its digest does not "
                    f"cover that file. Write `import {name}`, or rename the file where another module was meant."
                )
            say(
                f"judge: {self.code.given} also runs {file}, which lies outside its folder: "
                "its digest does not cover that file"
            )


def _is_installed(file: str) -> bool:
    """Whether a file belongs to Python, to a package or to Align, and not to the user."""
    roots = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[1])}
    is_package = bool({"site-packages", "dist-packages"} & set(Path(file).parts))
    return is_package or any(Path(file).is_relative_to(root) for root in roots)


def _tracebacks(error: BaseException) -> Iterator[TracebackType]:
    found = error.__traceback__
    while found is not None:
        yield found
        found = found.tb_next


@contextmanager
def _torch_kept() -> Iterator[None]:
    """Gradients, inference mode, default type and device stay as they were, whatever a judge sets; random numbers are
    its own affair."""
    before = sys.modules.get("torch")
    if before is None:
        yield
        if (after := sys.modules.get("torch")) is not None:
            _set_back(after, True, after.float32, None)
        return
    grad, kind, device = before.is_grad_enabled(), before.get_default_dtype(), before.get_default_device()
    try:
        with before.inference_mode(before.is_inference_mode_enabled()), before.set_grad_enabled(grad):
            yield
    finally:
        _set_back(before, grad, kind, device)


def _set_back(torch: Any, grad: bool, kind: Any, device: Any) -> None:
    torch.set_grad_enabled(grad)
    torch.set_default_dtype(kind)
    if torch.get_default_device() != (device or torch.device("cpu")):
        torch.set_default_device(device)


@contextmanager
def _not_ended() -> Iterator[None]:
    """`ENDS` raise `Ended` instead: with them a judge could end everything with 0. In processes that a judge forks they
    do as ever."""
    kept = {name: getattr(os, name) for name in ENDS}
    try:
        for name, original in kept.items():
            setattr(os, name, _raising(name, original, os.getpid()))
        yield
    finally:
        for name, original in kept.items():
            setattr(os, name, original)


def _raising(name: str, original: Callable[P, T], process: int) -> Callable[P, T]:
    def end(*args: P.args, **kwargs: P.kwargs) -> T:
        if os.getpid() != process:
            return original(*args, **kwargs)
        raise Ended(f"os.{name}")

    return end


@contextmanager
def _told_of(what: str) -> Iterator[None]:
    """Say every `PATIENCE` seconds that this still goes on: a judge that hangs looks like a slow one from outside."""
    done, begun = threading.Event(), time.monotonic()

    def watch() -> None:
        while not done.wait(PATIENCE):
            on_stderr(f"{what}, for {clock(time.monotonic() - begun)} now")

    threading.Thread(target=watch, daemon=True, name="judge's watch").start()
    try:
        yield
    finally:
        done.set()
