"""What a setting means, in the words below it."""

from __future__ import annotations

import ast
import inspect
import textwrap
from functools import cache
from itertools import pairwise

from align.recipe.settings import Settings


def meaning(group: type[Settings], key: str) -> str:
    """The docstring of a setting of a group; "" where it has none.

    It is read from the source when it is asked for: Pydantic's `use_attribute_docstrings` would parse the source of
    every setting at each start.
    """
    owners = (owner for owner in group.__mro__ if issubclass(owner, Settings) and key in _docstrings(owner))
    return next((_docstrings(owner)[key] for owner in owners), "")


@cache
def _docstrings(owner: type[Settings]) -> dict[str, str]:
    """Those that stand in the class itself, by the attribute above them."""
    (definition,) = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    assert isinstance(definition, ast.ClassDef)
    return {
        above.target.id: inspect.cleandoc(below.value.value)
        for above, below in pairwise(definition.body)
        if isinstance(above, ast.AnnAssign)
        and isinstance(above.target, ast.Name)
        and isinstance(below, ast.Expr)
        and isinstance(below.value, ast.Constant)
        and isinstance(below.value.value, str)
    }
