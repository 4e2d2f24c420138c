"""The house of Align holds: imports point one way, what needs no tensors loads no torch, nothing that trains sees the
gold judge."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

from align.stage import catalogue
from tests import architecture

ROOT = Path(__file__).parents[1]

# Each room may import from its own row and the rows above. The longest prefix decides; a file at the root is a command.
ROWS = [
    *([f"align.{'*' if room == 'commands' else room}" for room in floor] for floor in architecture.FLOORS),
    ["align", "align.__main__"],
]
RANK = {room: rank for rank, row in enumerate(ROWS) for room in row}

# Rooms whose modules may import tensor libraries when they are imported, but for those named; all others wait until
# they run.
HEAVY_ROOMS = (
    *(f"align.{room}." for room in sorted(architecture.HEAVY)),
    *("align.evaluation.comparison", "align.evaluation.answers", "align.evaluation.asked"),
)
LIGHT_IN_HEAVY_ROOMS = (
    *("align.preference.settings", "align.preference.setup", "align.preference.labelled"),
    *("align.rl.settings", "align.rl.setup", "align.rl.reward_gate", "align.rl.scored_answers"),
    *("align.exchange.card", "align.exchange.loading", "align.exchange.transfer"),
    *("align.sampling.answers", "align.distillation.inputs"),
)
HEAVY = {"torch", "transformers", "peft", "trl", "accelerate", "datasets", "bitsandbytes", "numpy", "pandas", "pyarrow"}

PUBLIC = {
    *("AlignError", "Artifact", "InputError", "Stopped", "Store", "load", "run"),
    *("dpo", "evaluate", "generate", "merge", "pairs", "ppo", "pretrain", "reward", "sft"),
    *("simpo", "cpo", "kto", "orpo", "best_of_n", "distill", "online_dpo", "bco", "blend"),
    *("grpo", "rloo", "reinforce_pp"),
    *("convert", "split", "mix", "clean", "decontaminate"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in sorted((ROOT / "align").rglob("*.py"))}


def rank(module: str) -> int:
    parts = module.split(".")
    rooms = (".".join(parts[:n]) for n in range(len(parts), 1, -1))
    return next((RANK[room] for room in rooms if room in RANK), RANK["align.*" if len(parts) > 1 else "align"])


def imports(
    tree: ast.AST, module: str, *, is_package: bool = False, known: set[str] = frozenset(MODULES)
) -> Iterator[str]:
    """Absolute names of the modules that `tree` imports anywhere, in functions too. `from align.packed import pack` is
    align.packed.pack."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                package = module.split(".")[: None if is_package and node.level == 1 else -(node.level - is_package)]
                source = ".".join([*package, source] if source else package)
            submodules = {f"{source}.{alias.name}" for alias in node.names} & known
            yield from submodules
            if len(submodules) < len(node.names):
                yield source


def imports_of(path: Path) -> set[str]:
    return set(imports(ast.parse(path.read_text()), module_name(path), is_package=path.name == "__init__.py"))


GRAPH = {
    module: {name for name in imports_of(path) if name.split(".")[0] == "align"} for module, path in MODULES.items()
}


def wrong_way(graph: dict[str, set[str]]) -> list[str]:
    """Imports against the direction. A package's own `__init__` may name its submodules."""
    return [
        f"{module} imports {name}"
        for module, names in graph.items()
        for name in sorted(names)
        if rank(name) > rank(module) and not name.startswith(f"{module}.")
    ]


def test_imports_point_one_way():
    assert not wrong_way(GRAPH)
    # Negative controls: a room that looks up, and the public package used from inside.
    assert wrong_way({"align.store.artifact": {"align.packed.pack"}}) and wrong_way({"align.dpo": {"align"}})
    assert wrong_way({"align.rendering.render": {"align.data.records"}}) == []


def test_the_page_and_the_picture_are_the_table():
    """docs/architecture.md and its picture are what `python -m tests.architecture` writes, and name every room."""
    page = architecture.PAGE.read_text(encoding="utf-8")
    assert architecture.page(page) == page
    assert architecture.PICTURE.read_text(encoding="utf-8") == architecture.picture()
    rooms = {path.parent.name for path in (ROOT / "align").glob("*/__init__.py")}
    assert rooms == {room for floor in architecture.FLOORS for room in floor} - {"commands"}


def strangers(graph: dict[str, set[str]], commands: set[str]) -> list[str]:
    """What breaks the law of the root: a file there that is no command of the catalogue, a command without its file,
    and a command that imports another."""
    root = {name for name in graph if name.count(".") == 1 and MODULES.get(name, Path()).name != "__init__.py"}
    ours = {f"align.{name}" for name in commands}
    found = [f"{name} is no command" for name in sorted(root - ours - {"align.__main__"})]
    found += [f"{name} has no file" for name in sorted(ours - root)]
    return found + [f"{name} imports {other}" for name in sorted(ours & root) for other in sorted(graph[name] & ours)]


def test_a_file_at_the_root_is_a_command():
    """Each is a line of the catalogue, and no command imports another: what two of them need is in a room."""
    commands = set(catalogue.commands())
    assert strangers(GRAPH, commands) == []
    # Negative controls: a helper, a command that is left over, and one command inside another.
    assert strangers(GRAPH | {"align.helpers": set()}, commands) == ["align.helpers is no command"]
    assert strangers(GRAPH, commands | {"sdpo"}) == ["align.sdpo has no file"]
    assert strangers(GRAPH | {"align.pairs": {"align.generate"}}, commands) == ["align.pairs imports align.generate"]


def test_no_import_cycles():
    """Within a row modules may import each other, but never in a circle. Packages' `__init__` files gather names and
    are left out."""
    files = {module: names for module, names in GRAPH.items() if MODULES[module].name != "__init__.py"}
    try:
        TopologicalSorter(files).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_imports_are_read_from_every_form():
    """The reader behind these tests sees lazy, relative and submodule imports."""
    source = (
        "import a.b\ndef f():\n    from align.packed import pack\n    from . import merge\n    from ..errors "
        "import AlignError\n"
    )
    known = {"align.packed.pack", "align.store.merge"}
    found = set(imports(ast.parse(source), "align.store.local", known=known))
    assert found == {"a.b", "align.packed.pack", "align.store.merge", "align.errors"}


def test_light_modules_import_no_tensor_library():
    """All but the tensor rooms import without torch and its friends: one process imports each in turn and tells who
    brought in what."""
    light = [module for module in MODULES if module in LIGHT_IN_HEAVY_ROOMS or not module.startswith(HEAVY_ROOMS)]
    assert light[0] == "align" and {"align.ground.errors", "align.cli", "align.pipeline", "align.sft"} <= set(light)
    # align.__main__ runs the command when it is imported.
    program = f"""
import importlib, json, sys
found = {{}}
for module in {[module for module in light if module != "align.__main__"] + ["numpy"]}:
    before = set(sys.modules)
    importlib.import_module(module)
    if heavy := {HEAVY!r} & (set(sys.modules) - before):
        found[module] = sorted(heavy)
print(json.dumps(found))
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert json.loads(out) == {"numpy": ["numpy"]}, "only the negative control at the end may load one"


def names_the_judge(source: str) -> bool:
    """Whether code imports data.gold or spells its path in a value; docstrings may speak of it."""
    nodes = list(ast.walk(ast.parse(source)))
    prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    imported = [alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names]
    imported += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    values = [
        node.value
        for node in nodes
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    ]
    return any("gold" in name.split(".") for name in imported) or any(
        re.search(r"\bgold\.py\b", value) for value in values
    )


def classes(sources: Mapping[str, str]) -> dict[str, list[str]]:
    """Modules by the names of the classes that they define."""
    found: dict[str, list[str]] = {}
    for module, source in sources.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(module)
    return found


SHARED = {"Config"}


def test_no_two_classes_share_a_name():
    """One noun a thing; a stage's settings are its `Config`."""
    found = classes({module: path.read_text() for module, path in MODULES.items()})
    assert not {name: modules for name, modules in found.items() if len(modules) > 1 and name not in SHARED}
    assert classes({"a": "class Plan: ...", "b": "class Plan: ..."}) == {"Plan": ["a", "b"]}


def anys(source: str) -> int:
    """How often `Any` stands in the signatures of functions, in what they take and in what they give."""
    found = 0
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            a = node.args
            taken = [*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg]
            said = [arg.annotation for arg in taken if arg and arg.annotation] + [node.returns]
            found += sum(len(re.findall(r"\bAny\b", ast.unparse(part))) for part in said if part)
    return found


MOST_ANYS = 130


def test_signatures_say_their_types():
    """`Any` is left for objects of other libraries and settings that differ by stage; lower the number with them."""
    assert sum(anys(path.read_text()) for path in MODULES.values()) <= MOST_ANYS
    assert anys("def f(a: Any, *b: list[Any], c: int) -> dict[str, Any]: ...") == 3 and anys("x: Any = 1") == 0


def lines_of_functions(source: str) -> list[int]:
    """Lines of each function, its decorators and docstring counted."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    found = [node for node in ast.walk(ast.parse(source)) if isinstance(node, kinds)]
    return [(node.end_lineno or 0) - min([node.lineno, *(d.lineno for d in node.decorator_list)]) + 1 for node in found]


def test_files_and_functions_are_read_in_one_sitting():
    texts = {name: path.read_text() for name, path in MODULES.items()}
    assert not [name for name, text in texts.items() if len(text.splitlines()) > 300]
    assert not [name for name, text in texts.items() if max(lines_of_functions(text), default=0) > 60]
    assert lines_of_functions("@d\ndef f():\n    def g(): ...\n    return g\n") == [4, 1]


def test_rooms_are_small_and_lines_are_read_at_a_glance():
    """No room holds more than 12 % of the lines, no folder more than fifteen modules beside its `__init__` (the
    root holds the commands), no line more than 120 characters, comments for tools included."""
    lines = {path: path.read_text().splitlines() for path in MODULES.values()}
    rooms: dict[str, int] = {}
    for path, found in lines.items():
        room = path.relative_to(ROOT / "align").parts[0]
        rooms[room] = rooms.get(room, 0) + len(found)
    assert max(rooms.values()) <= 0.12 * sum(rooms.values())
    modules = [path.parent for path in lines if path.name != "__init__.py" and path.parent != ROOT / "align"]
    assert not {folder for folder in modules if modules.count(folder) > 15}
    assert not [str(path) for path, found in lines.items() if max(map(len, found), default=0) > 120]


def star_packed(source: str) -> int:
    """Calls that unpack a literal, as `f(*(a, b))` does, where `f(a, b)` says the same."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    starred = [arg.value for call in calls for arg in call.args if isinstance(arg, ast.Starred)]
    return sum(isinstance(value, ast.Tuple | ast.List) for value in starred)


def test_no_call_unpacks_a_literal():
    assert not [name for name, path in MODULES.items() if star_packed(path.read_text())]
    assert star_packed("f(*(a, b))") == 1 and star_packed("f(*more, a); x = [*(a, b)]") == 0


def test_no_code_of_align_knows_the_gold_judge():
    """Recipes hand the judge over; neither code that trains nor the world it trains on may import it."""
    assert not [str(path) for path in [*MODULES.values(), ROOT / "data/world.py"] if names_the_judge(path.read_text())]
    assert (
        names_the_judge("from data import gold")
        and names_the_judge("from data.gold import judge")
        and names_the_judge("import gold")
    )
    assert names_the_judge("judge = load('data/gold.py:judge')")
    assert not names_the_judge("'Judged by data/gold.py.'\nscore = 'the gold score'")


def test_reports_know_no_word_of_the_quickstart():
    """What its judges are called comes from its recipe. Negative control: the recipe says it."""
    words = re.compile(r"\b(gold|correctness|manners)\b")
    assert not [
        path.name for path in (ROOT / "align/report").iterdir() if path.is_file() and words.search(path.read_text())
    ]
    assert words.search((ROOT / "recipes/quickstart.yaml").read_text())


def test_public_names():
    import align

    assert set(align.__all__) == PUBLIC
    assert all(hasattr(align, name) for name in PUBLIC)
    assert set(dir(align)) >= PUBLIC


def test_every_library_is_declared():
    """What align/ imports from outside the standard library is a dependency with a lower and an upper bound, pinned in
    constraints.txt."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    optional = [line for name in ("plots", "tensorboard", "s3", "clean") for line in extras[name]]
    declared = {re.split(r"[<>=]", line)[0]: line for line in [*project["dependencies"], *optional]}
    pinned = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().split()}
    assert all(re.search(r">=.*,<", line) for line in declared.values())
    assert {name.lower() for name in declared} <= pinned

    roots = (
        {name.split(".")[0] for path in MODULES.values() for name in imports_of(path)}
        - set(sys.stdlib_module_names)
        - {"align"}
    )
    packages = packages_distributions()
    # A namespace such as `ruamel` names its distributions; any declared one will do.
    undeclared = {
        root
        for root in roots
        if not {name.lower() for name in packages.get(root, [root])} & {name.lower() for name in declared}
    }
    assert not undeclared, f"add to dependencies in pyproject.toml: {sorted(undeclared)}"


def test_constraints_name_no_machine():
    """Exact versions from any index: no path, no URL, no local build tag."""
    lines = (ROOT / "constraints.txt").read_text().split("\n")
    assert not [line for line in lines if line and not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line)]
    assert "torch==2.13.0" in lines
