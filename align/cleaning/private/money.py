"""Numbers of cards and accounts, by their check digits."""

from __future__ import annotations

import re
from collections.abc import Iterator

from align.cleaning.library import library
from align.cleaning.private.found import Stretch, is_called, one_of

CARD = re.compile(
    r"(?<![A-Za-z0-9_.,+-])(?<!\d[ -])(?:\d{13,19}|"
    r"\d{4}([ -])\d{4}\1\d{4}\1\d{1,7}|\d{4}([ -])\d{6}\2\d{4,5})(?![A-Za-z0-9_]|[.,-]\d)"
)
IS_CARD = one_of(
    "card|cards|visa|mastercard|amex|unionpay|credit|debit|payment|银行卡|信用卡|卡号|借记卡|储蓄卡|银联|کارت|عابر"
)
ISSUERS = re.compile(
    r"4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2(?:2[2-9]|[3-6]\d|7[01])\d{13}|2720\d{12}|3[47]\d{13}"
    r"|3(?:0[0-5]|[68]\d)\d{11}"
    r"|(?:6011|65\d\d|64[4-9]\d)\d{12,15}|35(?:2[89]|[3-8]\d)\d{12,15}|62\d{14,17}"
    r"|(?:603799|589210|627648|627961|603770|628023|627760|502908|627412|622106|502229|627488|621986|639346|639607"
    r"|636214|502806|502938|603769|610433|627353|589463|627381|639370|505785|639599|504172|505416"
    r"|636949|606373|505801)\d{10}"
)
"""Lengths and first digits of Visa, Mastercard, American Express, Diners, Discover, JCB and UnionPay (ISO 7812), and
those of Iran's banks."""
IBAN = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?:[ -]?[A-Z0-9]{1,4}){3,8}")
WORDLIKE = re.compile(r"[A-Za-z0-9_]")
LONGEST = 34
IRAN = re.compile(r"IR\d{24}")


def luhn(digits: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO 7812, annex B)."""
    return bool(library("stdnum.luhn", "Finding card numbers").is_valid(digits))


def cards(text: str) -> Iterator[Stretch]:
    """Card numbers: right by Luhn, and of an issuer or called so."""
    for match in CARD.finditer(text):
        digits = re.sub(r"\D", "", match[0])
        if not luhn(digits) or len(set(digits)) == 1:
            continue
        called = is_called(text, match.start(), match.end(), IS_CARD)
        if called or (called is None and ISSUERS.fullmatch(digits)):
            yield Stretch(match.start(), match.end(), "card")


def ibans(text: str) -> Iterator[Stretch]:
    """Account numbers (ISO 13616), up to the longest end at which the remainder by 97 is 1."""
    for match in IBAN.finditer(text):
        for end in range(match.end(), match.start() + 14, -1):
            if not WORDLIKE.match(text, end) and is_iban(text[match.start() : end]):
                yield Stretch(match.start(), end, "iban")
                break


def is_iban(number: str) -> bool:
    bare = re.sub(r"[ -]", "", number)
    if len(bare) > LONGEST or not number[-1:].isalnum():
        return False
    if IRAN.fullmatch(bare):  # python-stdnum has not Iran's
        return bool(library("stdnum.iso7064.mod_97_10", "Finding account numbers").is_valid(bare[4:] + bare[:4]))
    return bool(library("stdnum.iban", "Finding account numbers").is_valid(bare, check_country=False))
