"""Quality rules of Gopher, C4 and FineWeb, with the papers' numbers: each says why a text is not to be learnt from.

Gopher: Rae et al. 2021 (arXiv 2112.11446), appendix A.1.1 and table A1. C4: Raffel et al. 2020 (JMLR 21:140, section
2.2). FineWeb: Penedo et al. 2024 (arXiv 2406.17557, section 3.6). Where a paper leaves open what counts, it counts as
in datatrove (`pipeline/filters`), with these exceptions, so that the rules hold in any script: words are those of
`words.words`, and runs of them twice as long in scripts without blanks, whose words have about two letters; marks that
end a sentence are those of any script, rules on the length of words are for scripts that write words apart, English
stop words are for English, and blocks of code between ``` are not judged.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cached_property

from align.cleaning.language import language_of
from align.cleaning.words import is_unspaced, words
from align.ground.errors import InputError

STOP_WORDS = {"the", "be", "to", "of", "and", "that", "have", "with"}
ENDS = tuple(".?!\"'。！？…؟۔।॥」』”’»）")
"""Marks that end a sentence; C4 and FineWeb name those of English."""
BULLETS = ("•", "-", "*", "‣", "●", "◦", "▪")
ELLIPSES = ("...", "…")
TOP = {2: 0.20, 3: 0.18, 4: 0.16}
REPEATED = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}
"""Words in a run -> the largest share of the characters (Gopher, table A1)."""
LONG_ENOUGH = 50
"""Words from which repetition can be told: Gopher has no shorter document, and none in which words without letters, as
in sums, are more than a fifth."""
CODE = re.compile(r"```.*?(?:```|\Z)", re.DOTALL)
SENTENCE = re.compile(r"[.?!。！？؟۔।]+[\"'”’」』)]*(?:\s+|$)|[。！？]")


class Judged:
    """A text without its blocks of code, and what the rules count of it."""

    def __init__(self, text: str) -> None:
        self.text = text = CODE.sub("", text)
        self.lines = text.splitlines() or [""]
        self.paragraphs = re.split(r"\n{2,}", text.strip())

    @cached_property
    def words(self) -> list[str]:
        return words(self.text)

    @cached_property
    def is_unspaced(self) -> bool:
        return is_unspaced(self.text)

    @cached_property
    def has_few_letters(self) -> bool:
        return sum(any(map(str.isalpha, word)) for word in self.words) < 0.8 * len(self.words)

    @property
    def letters(self) -> int:
        """Items of `words` that are about one word."""
        return 2 if self.is_unspaced else 1

    def share_of_lines(self, which: Callable[[str], bool]) -> float:
        """Share of the lines that are such."""
        return sum(map(which, self.lines)) / len(self.lines)


Rule = Callable[[Judged], bool]
"""Whether a text breaks the rule."""


# ---- Gopher, quality -------------------------------------------------------------------------------------------------


def gopher_words(d: Judged) -> bool:
    """Fewer than 50 or more than 100,000 words."""
    return not 50 <= len(d.words) <= 100_000


def gopher_word_length(d: Judged) -> bool:
    """A mean word of fewer than 3 or more than 10 characters, in scripts that write words apart."""
    return not d.is_unspaced and (_mean_length(d) < 3 or _mean_length(d) > 10)


def long_words(d: Judged) -> bool:
    """A mean word of more than 10 characters (Gopher's upper bound alone; answers in figures and code have short ones),
    in texts of 10 words or more."""
    return not d.is_unspaced and len(d.words) >= 10 and _mean_length(d) > 10


def _mean_length(d: Judged) -> float:
    return sum(map(len, d.words)) / max(len(d.words), 1)


def gopher_symbols(d: Judged) -> bool:
    """More than 0.1 # or ellipses a word."""
    most = 0.1 * max(len(d.words), 1)
    return d.text.count("#") > most or sum(map(d.text.count, ELLIPSES)) > most


def gopher_bullets(d: Judged) -> bool:
    """More than 90 % of the lines begin with a bullet."""
    return d.share_of_lines(lambda line: line.lstrip().startswith(BULLETS)) > 0.9


def gopher_ellipsis(d: Judged) -> bool:
    """More than 30 % of the lines end with an ellipsis."""
    return d.share_of_lines(lambda line: line.rstrip().endswith(ELLIPSES)) > 0.3


def gopher_letters(d: Judged) -> bool:
    """Fewer than 80 % of the words have a letter."""
    return d.has_few_letters


def gopher_stop_words(d: Judged) -> bool:
    """Fewer than two English stop words, in English."""
    found = sum(word in STOP_WORDS for word in d.words)
    return found < 2 and not d.is_unspaced and language_of(d.text) == "en"


# ---- Gopher, repetition ----------------------------------------------------------------------------------------------


def repeated(items: Sequence[str]) -> tuple[int, int]:
    """(how many items stand there before, their characters)."""
    seen: set[str] = set()
    again = [item for item in items if item in seen or seen.add(item)]  # type: ignore[func-returns-value]
    return len(again), sum(map(len, again))


def gopher_lines(d: Judged) -> bool:
    """More than 30 % of the lines, or 20 % of the characters, are lines that stand there before."""
    return _too_often(d, [line for line in d.lines if line.strip()])


def gopher_paragraphs(d: Judged) -> bool:
    """More than 30 % of the paragraphs, or 20 % of the characters, are paragraphs that stand there before."""
    return _too_often(d, d.paragraphs)


def _too_often(d: Judged, items: Sequence[str]) -> bool:
    count, characters = repeated(items)
    return count > 0.3 * len(items) or characters > 0.2 * len(d.text)


def runs(found: Sequence[str], n: int, between: str = " ") -> list[str]:
    """All runs of n words."""
    return [between.join(found[i : i + n]) for i in range(len(found) - n + 1)]


def gopher_top_runs(d: Judged) -> bool:
    """The commonest run of 2, 3 or 4 words makes up more than 20, 18 or 16 % of the characters."""
    if len(d.words) < LONG_ENOUGH * d.letters or d.has_few_letters:
        return False
    between = "" if d.is_unspaced else " "
    return any(top_run(d.words, n * d.letters, between) > most * len(d.text) for n, most in TOP.items())


def top_run(found: Sequence[str], n: int, between: str = " ") -> int:
    """Characters of the commonest run of n words, all its occurrences together."""
    run, times = Counter(runs(found, n, between)).most_common(1)[0]
    return len(run) * times if times > 1 else 0


def gopher_repeated_runs(d: Judged) -> bool:
    """Runs of 5 to 10 words that stand there before make up more than 15 to 10 % of the characters."""
    if len(d.words) < LONG_ENOUGH * d.letters or d.has_few_letters:
        return False
    return any(repeated_runs(d.words, n * d.letters) > most * len(d.text) for n, most in REPEATED.items())


def repeated_runs(found: Sequence[str], n: int) -> int:
    """Characters of the runs of n words that stand there before, none counted twice."""
    every = list(map("".join, zip(*(found[i:] for i in range(n)), strict=False)))
    if len(set(every)) == len(every):
        return 0  # as in most texts
    seen: set[str] = set()
    characters = at = 0
    while at < len(every):
        run = every[at]
        is_again = run in seen
        characters += len(run) if is_again else 0
        seen.add(run)
        at += n if is_again else 1
    return characters


# ---- C4 and FineWeb --------------------------------------------------------------------------------------------------


def c4_sentences(d: Judged) -> bool:
    """Fewer than 3 sentences."""
    return len(SENTENCE.findall(d.text)) < 3


def c4_lorem_ipsum(d: Judged) -> bool:
    """The phrase "lorem ipsum"."""
    return "lorem ipsum" in d.text.lower()


def c4_curly_brackets(d: Judged) -> bool:
    """A curly bracket, as code has them."""
    return "{" in d.text


def c4_javascript(d: Judged) -> bool:
    """A notice that JavaScript must be switched on; C4 removes the lines that name it."""
    return any("javascript" in line and "enable" in line for line in d.text.lower().splitlines())


def c4_policy(d: Judged) -> bool:
    """More than half of the lines speak of cookies or terms; C4 removes those lines (tensorflow_datasets, c4_utils)."""
    return d.share_of_lines(lambda line: any(phrase in line.lower() for phrase in POLICY)) > 0.5


POLICY = ("terms of use", "privacy policy", "cookie policy", "uses cookies", "use of cookies", "use cookies")


def fineweb_ends(d: Judged) -> bool:
    """At most 12 % of the lines end with a mark that ends a sentence."""
    return d.share_of_lines(lambda line: line.rstrip().endswith(ENDS)) <= 0.12


def fineweb_repeated_lines(d: Judged) -> bool:
    """10 % of the characters or more are in lines that stand there before."""
    lines = [line for line in d.lines if line.strip()]
    return repeated(lines)[1] >= 0.1 * max(sum(map(len, d.lines)), 1)


def fineweb_short_lines(d: Judged) -> bool:
    """67 % of the lines or more have fewer than 30 characters; of unspaced scripts, which say as much in half as many,
    fewer than 15."""
    most = 15 if d.is_unspaced else 30
    return d.share_of_lines(lambda line: len(line) < most) >= 0.67


# ---- ours ------------------------------------------------------------------------------------------------------------


def no_words(d: Judged) -> bool:
    """Neither a letter nor a digit, nor a picture that says something."""
    return not any(c.isalnum() or c >= "\u2190" for c in d.text if c != "\ufffd")


def unreadable(d: Judged) -> bool:
    """5 % of the characters or more take the place of what could not be read."""
    return d.text.count("\ufffd") >= 0.05 * max(len(d.text), 1)


def markup(d: Judged) -> bool:
    """More than 10 HTML tags, and more characters in tags than beside them."""
    tags = TAG.findall(d.text)
    return len(tags) > 10 and 2 * sum(map(len, tags)) > len(d.text)


TAG = re.compile(r"</?[a-zA-Z][^<>]*>")

REPETITION: tuple[Rule, ...] = (gopher_lines, gopher_paragraphs, gopher_top_runs, gopher_repeated_runs)
OURS: tuple[Rule, ...] = (no_words, unreadable, markup)
GOPHER: tuple[Rule, ...] = (
    gopher_words,
    gopher_word_length,
    gopher_symbols,
    gopher_bullets,
    gopher_ellipsis,
    gopher_letters,
    gopher_stop_words,
)
C4: tuple[Rule, ...] = (c4_sentences, c4_lorem_ipsum, c4_javascript, c4_policy)
FINEWEB: tuple[Rule, ...] = (fineweb_ends, fineweb_repeated_lines, fineweb_short_lines)
PROFILES: dict[str, tuple[Rule, ...]] = {
    "documents": (*OURS, *GOPHER, *REPETITION, *C4, *FINEWEB),
    "answers": (*OURS, long_words, gopher_ellipsis, *REPETITION, c4_lorem_ipsum, c4_javascript, c4_policy),
}
"""Rules for documents, and those that a short answer, a list, figures and code keep as well."""
RULES = {rule.__name__: rule for rules in PROFILES.values() for rule in rules} | {
    "c4_curly_brackets": c4_curly_brackets
}


def rules_named(names: Sequence[str]) -> tuple[Rule, ...]:
    """The rules of profiles and of single names, each once. Raises: InputError for an unknown one."""
    unknown = [name for name in names if name not in PROFILES and name not in RULES]
    if unknown and unknown[0] in ("auto", "none"):
        raise InputError(f"rules: {unknown[0]} stands alone. Take it, or name rules.")
    if unknown:
        raise InputError(
            f"rules: {unknown[0]} is none. Expected auto, none, {', '.join(PROFILES)}, or some of {', '.join(RULES)}."
        )
    found = [rule for name in names for rule in PROFILES.get(name, (RULES[name],) if name in RULES else ())]
    return tuple(dict.fromkeys(found))


def broken(text: str, rules: Sequence[Rule]) -> str:
    """The name of the first rule that a text breaks; "" where it breaks none."""
    document = Judged(text)
    if not document.text.strip():
        return ""  # code alone
    return next((rule.__name__ for rule in rules if rule(document)), "")
