"""Stretches of text that are private, and what stands near them.

Digits of any script are read as ours, one for one, so that places in the text stay what they are.
"""

from __future__ import annotations

from typing import NamedTuple

import regex

NEAR_BEFORE, NEAR_AFTER = 40, 16
"""Characters before and after a number in which a word may say what it is."""
PLAIN = {
    **{ord("٠") + i: str(i) for i in range(10)},
    **{ord("۰") + i: str(i) for i in range(10)},
    **{ord("０") + i: str(i) for i in range(10)},
    **{ord(given): ours for given, ours in zip("＠．－–—‑−＋（）\u00a0\u202f\u2009", "@.-----+()   ", strict=True)},
}
"""Signs that are written otherwise in other scripts, one for one."""


class Stretch(NamedTuple):
    """Characters from `start` up to `end` that are of a kind, such as "email"."""

    start: int
    end: int
    kind: str


def plain(text: str) -> str:
    """The text with digits and signs as ours, each in its place."""
    return text if text.isascii() else text.translate(PLAIN)


def one_of(words: str) -> regex.Pattern[str]:
    """Finds one of the words, separated by |; those of Latin letters as whole words."""
    made = [rf"(?<![a-z]){w}(?![a-z])" if w[0].isascii() else w for w in words.split("|")]
    return regex.compile("|".join(made), regex.IGNORECASE)


OTHER = one_of(
    "order|orders|tracking|track|invoice|isbn|issn|doi|serial|sku|ticket|timestamp|epoch|unix|version|ver|release|"
    "build|commit|bytes|hash|sha|md5|id|uuid|part|model|batch|parcel|shipment|reference|ref|case|product|item|barcode|"
    "ean|upc|imei|price|total|population|coordinates|latitude|longitude|lat|lon|lng|row|line|page|figure|section|"
    "chapter|rfc|cve|"
    "订单|单号|快递|运单|物流|编号|序列号|版本|时间戳|发票|商品|条码|价格|坐标|经度|纬度|型号|流水号|批号|"
    "سفارش|رهگیری|پیگیری|فاکتور|نسخه|شابک|سریال|قیمت|بارکد|مختصات|مرسوله|کالا|تراکنش|ارجاع"
)
"""Words that say of a number that it is another thing."""


def is_called(text: str, start: int, end: int, good: regex.Pattern[str]) -> bool | None:
    """Whether a word near says that this is such a number: True, False where the nearest before says that it is another
    thing, None where nothing says."""
    before = text[max(0, start - NEAR_BEFORE) : start]
    own = [m.end() for m in good.finditer(before)]
    other = [m.end() for m in OTHER.finditer(before)]
    if own or other:
        return max(own, default=-1) >= max(other, default=-1)
    after = regex.split(r"[.。\n]", text[end : end + NEAR_AFTER])[0]
    return True if good.search(after) else None
