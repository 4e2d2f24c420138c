"""Private data that were planted are found, and what only looks like them is not; check digits by hand."""

from __future__ import annotations

from collections import Counter

import phonenumbers
import pytest

from align.cleaning.clean import Cleaner
from align.cleaning.private.money import is_iban, luhn
from align.cleaning.private.national import IDENTITIES, is_code_melli, is_resident
from align.cleaning.private.scrub import FINDERS, scrubbed, stretches
from align.cleaning.settings import Cleaning
from align.cleaning.tally import Cleaned
from tests.cleaning.planted import DOCUMENTED, negatives, planted


def found(text: str) -> list[tuple[str, str]]:
    return [(s.kind, text[s.start : s.end]) for s in stretches(text, FINDERS)]


def test_planted_data_are_found_and_others_are_not() -> None:
    """At least 300 of each; recall and precision of 0.95 and more, of each kind too."""
    cases, others = list(planted(seed=5)), list(negatives(seed=6))
    assert len(cases) >= 300 and len(others) >= 300
    hits = Counter(kind for kind, value, text in cases if (kind, value) in found(text))
    of_kind = Counter(kind for kind, _, _ in cases)
    false = [text for text in others if found(text)]
    assert all(hits[kind] >= 0.95 * n for kind, n in of_kind.items()), (hits, of_kind)
    assert hits.total() / (hits.total() + len(false)) >= 0.95, false


def test_check_digits() -> None:
    """By hand and by others: the card of ISO 7812's wiki example, the IBANs of the standard's registry for the United
    Kingdom and Iran, 0013542419 and 11010519491231002X, the examples that the standards' texts are explained with."""
    assert luhn("79927398713") and not luhn("79927398710")
    assert is_iban("GB82 WEST 1234 5698 7654 32") and not is_iban("GB82 WEST 1234 5698 7654 33")
    assert is_iban("IR062960000000100324200001") and not is_iban("IR062960000000100324200002")
    # 0*10+0*9+1*8+3*7+5*6+4*5+2*4+4*3+1*2 = 101 = 9*11 + 2, and 11 - 2 = 9
    assert is_code_melli("0013542419") and not is_code_melli("0013542418") and not is_code_melli("1111111111")
    assert is_resident("11010519491231002X") and not is_resident("110105194912310021")
    assert not is_resident("11010519491331002X")  # no such month


def test_ids_of_many_countries() -> None:
    """Each example of python-stdnum beside a word is found; beside none, those that one in a dozen numbers would be are
    not."""
    assert len({identity.module.split(".")[0] for identity in IDENTITIES}) >= 28
    assert [value for value in DOCUMENTED if found(f"My national id is {value}.") != [("national_id", value)]] == []
    weak = ["44051401359", "111222333", "8001015009087", "234123412346"]
    assert not [value for value in weak if found(f"It holds {value} things.")]
    assert found("It holds 11010519491231002X things.")


@pytest.mark.parametrize("region", ["US", "GB", "DE", "FR", "IR", "CN", "JP", "IN", "BR"])
def test_numbers_of_the_library(region: str) -> None:
    """phonenumbers' own example of each country, as people write it abroad and at home."""
    number = phonenumbers.example_number(region)
    assert number
    for form in (phonenumbers.PhoneNumberFormat.INTERNATIONAL, phonenumbers.PhoneNumberFormat.E164):
        text = phonenumbers.format_number(number, form)
        assert found(f"From {text} today") == [("phone", text)]
    home = phonenumbers.format_number(number, phonenumbers.PhoneNumberFormat.NATIONAL)
    assert found(f"Phone: {home}") == [("phone", home)]


def test_what_is_written_in_their_place() -> None:
    text = "ایمیل ali@example.org، تلفن ۰۹۱۲۳۴۵۶۷۸۹، کد ملی ۰۰۱۳۵۴۲۴۱۹؛ 12 < 13"
    now, kinds = scrubbed(text, FINDERS)
    assert now == "ایمیل [EMAIL]، تلفن [PHONE]، کد ملی [NATIONAL_ID]؛ 12 < 13"
    assert sorted(kinds) == ["email", "national_id", "phone"]
    assert scrubbed(text, ["email"])[0] == text.replace("ali@example.org", "[EMAIL]")
    card = "Card 4111 1111 1111 1111, IBAN GB82 WEST 1234 5698 7654 32, from 203.0.113.7"
    assert scrubbed(card, FINDERS)[0] == "Card [CARD], IBAN [IBAN], from [IP]"
    assert scrubbed(now, FINDERS) == (now, [])


def test_letters_and_forms_beyond_the_planted() -> None:
    """An address is found whole where it has letters other than ours, and no more than it where it touches Chinese; an
    American number with its 1 before it, unless the nearest word says that it is another thing."""
    assert found("Schreib an jürgen.müller@example.de bitte") == [("email", "jürgen.müller@example.de")]
    assert found("加我邮箱li.wei88@qq.com，谢谢") == [("email", "li.wei88@qq.com")]
    assert found("Hotel Pennsylvania, 1-212-736-5000") == [("phone", "1-212-736-5000")]
    assert found("Order 1-212-736-5000 and chapters 1-112-736-5000") == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ('{"card": 4111111111111111, "note": "a@b.org, 3"}', '{"card": "[CARD]", "note": "[EMAIL], 3"}'),
        ({"card": 4111111111111111, "n": [3, True]}, {"card": "[CARD]", "n": [3, True]}),
        ({"card": "4111 1111 1111 1111"}, {"card": "[CARD]"}),
        ({"card": 4111111111111112}, {"card": 4111111111111112}),
    ],
)
def test_numbers_that_tools_are_called_with(arguments: object, expected: object) -> None:
    """What was JSON is JSON; the last is right by no check digit."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "pay", "arguments": arguments}}]}
    row = {"messages": [{"role": "user", "content": "Pay."}, call]}
    found = Cleaner(Cleaning(), {}, ()).one(Cleaned(0, "x:1", row, row)).row
    assert found["messages"][1]["tool_calls"][0]["function"]["arguments"] == expected
