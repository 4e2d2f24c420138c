"""Quality rules against the values that datatrove's filters give (huggingface/datatrove, `pipeline/filters`), worked
out by hand, and against rows in scripts that its English defaults throw out."""

from __future__ import annotations

import pytest

from align.cleaning.quality import (
    PROFILES,
    REPEATED,
    RULES,
    TOP,
    broken,
    repeated,
    repeated_runs,
    rules_named,
    top_run,
)
from align.ground.errors import InputError

PLAIN = (
    "The river runs through the old town, and people have built bridges over it for a thousand years. "
    "In spring its water rises to the steps of the market. Fishermen then leave their boats at home and mend nets, "
    "while children throw stones from the wall that the monks put up. Nobody remembers why they did it!"
)


def breaks(rule: str, text: str) -> bool:
    return broken(text, (RULES[rule],)) == rule


def test_the_numbers_are_the_papers() -> None:
    """Gopher, table A1, as datatrove's GopherRepetitionFilter has it: top_n_grams, dup_n_grams."""
    assert TOP == {2: 0.2, 3: 0.18, 4: 0.16}
    assert REPEATED == {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.1}


def test_counts_of_repetition_are_datatroves() -> None:
    """Values of datatrove's functions for the examples of its tests/pipeline/test_filters and by hand:
    find_duplicates(["a", "bb", "a", "bb", "bb"]) is (3, 5); the commonest 2-gram of "a b a b a b c" is "a b", 3 times 3
    characters; find_all_duplicate(words, 2) jumps over what it found."""
    assert repeated(["a", "bb", "a", "bb", "bb"]) == (3, 5)
    assert top_run(["a", "b", "a", "b", "a", "b", "c"], 2) == 9
    assert repeated_runs(["a", "b", "a", "b", "a", "b", "c"], 2) == 4
    assert top_run(["every", "word", "is", "here", "once"], 2) == 0  # datatrove counts a run that stands there once


@pytest.mark.parametrize(
    ("rule", "bad", "good"),
    [
        ("gopher_words", "word " * 49, "word " * 50),
        ("gopher_word_length", "ab " * 50, "abc " * 50),
        ("gopher_word_length", "abcdefghijk " * 50, "abcdefghij " * 50),
        ("gopher_symbols", "# one two three four five six seven eight nine", "# " + "one two " * 5),
        ("gopher_bullets", "• a\n" * 10, "• a\n" * 9 + "a\n"),
        ("gopher_ellipsis", "a…\n" * 4 + "a\n" * 6, "a…\n" * 3 + "a\n" * 7),
        ("gopher_letters", "a b c 1 2", "a b c d 2"),
        ("gopher_stop_words", "This sentence does not hold enough small English words, which makes it odd.", PLAIN),
        ("gopher_lines", "same\n" * 4 + "a\nb\nc\nd\ne\nf\n", PLAIN),
        ("gopher_paragraphs", "same\n\nsame\n\nother", "same\n\nother\n\nthird one"),
        ("gopher_top_runs", "new york " * 20 + PLAIN, PLAIN),
        ("gopher_repeated_runs", PLAIN + " " + PLAIN, PLAIN),
        ("c4_sentences", "One. Two.", "One. Two? Three!"),
        ("c4_lorem_ipsum", "Lorem ipsum dolor sit amet", "Ipsum lorem"),
        ("c4_curly_brackets", "int main() {", "int main()"),
        ("c4_javascript", "Please enable JavaScript to go on.", "JavaScript is a language."),
        ("c4_policy", "This site uses cookies.\nRead our privacy policy.", PLAIN),
        ("fineweb_ends", "a\n" * 9 + "b.", "a\n" * 7 + "b."),
        (
            "fineweb_repeated_lines",
            PLAIN + "\nand again and again\nand again and again\n" + "and again and again",
            PLAIN,
        ),
        ("fineweb_short_lines", "short\n" * 3 + PLAIN, "short\n" + PLAIN),
        ("no_words", "!!! ---", "7!"),
        ("unreadable", "ab\ufffd", "a" * 40 + "\ufffd"),
        ("markup", "<b>a</b>" * 6, "<b>a</b>" * 5),
        ("long_words", "pneumonoultra " * 10, "pneumonia " * 10),
    ],
)
def test_each_rule_has_its_edge(rule: str, bad: str, good: str) -> None:
    assert breaks(rule, bad) and not breaks(rule, good)


KEPT = {
    "Chinese": (
        "量子计算机利用量子叠加和量子纠缠来处理信息。与经典计算机不同，量子比特可以同时处于多种状态，因此"
        "某些问题的求解速度会快得多。研究人员已经在化学模拟、密码学和优化等领域看到了应用前景！不过，噪声"
        "和退相干仍然是目前最大的挑战。你想先了解哪一部分？我们可以从最简单的例子开始，然后一步一步深入。"
    ),
    "Persian": (
        "تهران پایتخت ایران است و جمعیت آن بیش از هشت میلیون نفر برآورد می‌شود. این شهر در دامنه کوه‌های "
        "البرز قرار دارد و آب و هوای آن در تابستان گرم و در زمستان سرد است. آیا می‌خواهید درباره موزه‌ها "
        "و بازار بزرگ بیشتر بدانید؟ هر سال گردشگران زیادی از کاخ گلستان دیدن می‌کنند و از باغ‌های آن لذت "
        "می‌برند. سفر با مترو ساده‌ترین راه است!"
    ),
    "Arabic": (
        "القاهرة هي عاصمة مصر وأكبر مدنها، ويعيش فيها ملايين السكان. تقع المدينة على ضفاف نهر النيل، "
        "وتشتهر بمتاحفها ومساجدها القديمة. هل ترغب في معرفة المزيد عن الأهرامات؟ يزورها الناس من جميع "
        "أنحاء العالم كل عام، ويمكن الوصول إليها بسهولة بالحافلة أو بالسيارة. أنصحك بزيارة المتحف المصري "
        "الكبير قبل كل شيء، ثم التجول في خان الخليلي مساء، ولا تنس أن تجرب الطعام المحلي!"
    ),
    "German": (
        "Der Fluss fließt durch die alte Stadt, und die Menschen haben seit tausend Jahren Brücken "
        "darüber gebaut. Im Frühling steigt das Wasser bis zu den Stufen des Marktes. Die Fischer lassen "
        "dann ihre Boote zu Hause und flicken ihre Netze, während Kinder Steine von der Mauer werfen, "
        "die einst die Mönche errichtet haben. Warum sie das taten, weiß heute niemand mehr!"
    ),
    "English": PLAIN,
}
ANSWERS = {
    "short": "7",
    "code": "```python\nfor i in range(10):\n    x[i] = x[i - 1] + x[i - 2]\n    y[i] = x[i]\n```",
    "bare code": "def add(a, b):\n    return a + b",
    "figures": "12 + 34 = 46, 46 / 2 = 23. #### 23",
    "list": "- red\n- green\n- blue",
    "emoji": "👍",
}


def test_documents_in_any_script_stay() -> None:
    """With all rules for documents. Negative control: repeated, none of them stays."""
    assert {name: broken(text, PROFILES["documents"]) for name, text in KEPT.items()} == dict.fromkeys(KEPT, "")
    assert all(broken("\n".join([text] * 3), PROFILES["documents"]) for text in KEPT.values())


def test_answers_need_not_be_documents() -> None:
    assert {name: broken(text, PROFILES["answers"]) for name, text in ANSWERS.items()} == dict.fromkeys(ANSWERS, "")
    assert broken(ANSWERS["figures"], PROFILES["documents"]) == "gopher_words"


def test_unknown_rules_are_refused() -> None:
    assert [rule.__name__ for rule in rules_named(["c4_sentences", "c4_sentences"])] == ["c4_sentences"]
    with pytest.raises(InputError, match=r"gofer is none\. Expected auto, none, documents, answers"):
        rules_named(["gofer"])
