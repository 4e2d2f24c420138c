"""Records that Argilla exports, whose ranking question was answered: rank 1 is best.

{"fields": {"prompt": "Hi", "response-1": "Hello!", "response-2": "What?"},
 "responses": [{"status": "submitted", "values": {"ranking": {"value": [{"value": "response-1", "rank": 1},
 {"value": "response-2", "rank": 2}]}}}]}
"""

from __future__ import annotations

from align.data.dialects.common import without
from align.data.records import Row
from align.ground.errors import InputError


def as_ours(where: str, row: Row) -> Row:
    """The answers with their ranks. Raises: InputError where not exactly one person answered one ranking."""
    fields, given = row.get("fields"), row.get("responses")
    if not isinstance(fields, dict) or not isinstance(given, list):
        return row
    submitted = [
        r["values"] for r in given if isinstance(r, dict) and r.get("values") and r.get("status") != "discarded"
    ]
    rankings = [
        q["value"] for values in submitted for q in values.values() if isinstance(q, dict) and _ranks(q, fields)
    ]
    if len(rankings) != 1:
        raise InputError(
            f"{where}: holds {len(rankings)} rankings of its answers; expected one submitted response with one "
            "ranking. Keep one, or write the answers as chosen and rejected."
        )
    ranked = {str(item["value"]): item["rank"] for item in rankings[0]}
    others = {name: value for name, value in fields.items() if name not in ranked}
    more: Row = {"responses": [fields[name] for name in ranked], "ranks": [*ranked.values()]}
    return {**without(row, ("fields", "responses")), **others, **more}


def _ranks(question: Row, fields: Row) -> bool:
    """Whether an answer to a question ranks fields."""
    value = question.get("value")
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and item.get("value") in fields and "rank" in item for item in value)
    )
