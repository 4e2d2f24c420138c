"""Special tokens in the texts of all rows that were looked at: what a run would refuse of them is refused before it,
also in rows that are too many to be rendered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from align.data.collect import Records
from align.data.counts import Counts
from align.data.records import Preference, R, Ranking, Record, Text
from align.ground.errors import InputError
from align.stage.workbench import Workbench

if TYPE_CHECKING:
    from align.rendering.render import Renderer
    from align.rendering.special import SpecialTokens


def refused(bench: Workbench, renderer: Renderer, records: Sequence[R], of: Records[R]) -> R | None:
    """The first of some records whose texts the run would refuse for what they hold. `of` are all that were looked at
    of their data; where others may be taken of the rest, which of these the run comes to is not known."""
    config = bench.config
    drawn = not of.whole and (of.parts or getattr(config, "limit", None))
    if drawn or renderer.bad_rows == "drop" or getattr(config, "trained_on", None) == "drop":
        return None
    special = renderer.turns.special
    return next((record for record in records if _is_refused(special, record)), None)


def _is_refused(special: SpecialTokens, record: Record) -> bool:
    try:
        if isinstance(record, Text):
            special.screen_document(record.text, "", Counts())
        elif isinstance(record, Preference | Ranking):
            messages = sum(record.answers.values(), record.prompt)
            special.screen(messages, record.tools, "", Counts())
        else:
            special.screen(record.messages, record.tools, "", Counts())
    except InputError:
        return True
    return False
