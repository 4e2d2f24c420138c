"""What dialects have in common: pairs of a verdict, and lists of objects."""

from __future__ import annotations

from collections.abc import Collection

from align.data.records import Row
from align.ground.errors import InputError
from align.recipe.telling.problems import found


def without(row: Row, keys: Collection[str]) -> Row:
    """What else the row says."""
    return {key: value for key, value in row.items() if key not in keys}


def pair(others: Row, one: object, two: object, first: bool | None) -> Row:
    """A pair of ours. `first`: whether the first answer is the better one; None for a tie."""
    chosen, rejected = (two, one) if first is False else (one, two)
    return {**others, "chosen": chosen, "rejected": rejected, **({"tie": True} if first is None else {})}


def verdict(where: str, row: Row, key: str, says: dict[object, bool | None]) -> bool | None:
    """What a row says under `key`: True for the first answer, False for the second, None for a tie. Raises: InputError
    for a value that is none of those it may have."""
    value = row[key]
    try:
        return says[value]
    except (KeyError, TypeError) as error:
        expected = ", ".join(map(str, says))
        raise InputError(f'{where}: "{key}" is {found(value)}; expected one of {expected}.') from error


def holds(row: Row, key: str, *names: str) -> bool:
    """Whether a row has a list of objects under `key`, all with these names."""
    items = row.get(key)
    return isinstance(items, list) and bool(items) and all(isinstance(i, dict) and {*names} <= i.keys() for i in items)


def column(row: Row, key: str, name: str) -> list[object]:
    """What each of the objects in the list says under a name."""
    items = row[key]
    assert isinstance(items, list)
    return [item[name] for item in items]
