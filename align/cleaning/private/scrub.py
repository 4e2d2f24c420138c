"""Private data: placeholders in their place.

Write to ali@example.org or call +98 912 345 6789.    Write to [EMAIL] or call [PHONE].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from align.cleaning.private.contacts import addresses, emails, phones
from align.cleaning.private.found import Stretch, plain
from align.cleaning.private.money import cards, ibans
from align.cleaning.private.national import national_ids

FINDERS: dict[str, Callable[[str], Iterator[Stretch]]] = {
    "email": emails,
    "ip": addresses,
    "iban": ibans,
    "card": cards,
    "national_id": national_ids,
    "phone": phones,
}
"""What finds each kind; where two claim one stretch, the earlier of them has it."""
POSSIBLE = re.compile(r"@|\d|\bat\b")


def stretches(text: str, kinds: Iterable[str]) -> list[Stretch]:
    """What is private in a text, in order; none lies over another."""
    read = plain(text)
    if not POSSIBLE.search(read):
        return []
    found: list[Stretch] = []
    wanted = {*kinds}
    for kind, finder in FINDERS.items():
        if kind in wanted:
            new = [s for s in finder(read) if not any(s.start < o.end and o.start < s.end for o in found)]
            found += _apart(new)
    return sorted(found)


def _apart(found: Sequence[Stretch]) -> list[Stretch]:
    """Stretches without those that begin inside of an earlier, or a longer, one."""
    out: list[Stretch] = []
    for stretch in sorted(found, key=lambda s: (s.start, -s.end)):
        if not out or stretch.start >= out[-1].end:
            out.append(stretch)
    return out


STRING = re.compile(r'"(?:[^"\\]|\\.)*"')
"""A text in JSON."""


def scrubbed(text: str, kinds: Iterable[str], *, is_json: bool = False) -> tuple[str, list[str]]:
    """(the text with placeholders such as [EMAIL], the kinds that were found). In JSON what stands in a number's place
    is a text, so that it stays JSON."""
    found = stretches(text, kinds)
    inside = [match.span() for match in STRING.finditer(text)] if is_json else []
    parts, at = [], 0
    for stretch in found:
        mark = f"[{stretch.kind.upper()}]"
        bare = is_json and not any(start < stretch.start < end for start, end in inside)
        parts += [text[at : stretch.start], f'"{mark}"' if bare else mark]
        at = stretch.end
    return "".join([*parts, text[at:]]), list(dict.fromkeys(s.kind for s in found))
