"""Edits between sequences of words: the fewest insertions, deletions and substitutions."""

from __future__ import annotations

from collections.abc import Sequence


def edits(pattern: Sequence[str], text: Sequence[str], *, anywhere: bool = False) -> int:
    """The Levenshtein distance of two sequences; with `anywhere` that of the pattern and the closest passage of the
    text.

    Bits of one number stand for a column of the table: Myers 1999 (JACM 46:3, "A fast bit-vector algorithm for
    approximate string matching based on dynamic programming"), in Hyyrö's form of 2003.
    """
    if not pattern:
        return 0 if anywhere else len(text)
    last, mask = 1 << (len(pattern) - 1), (1 << len(pattern)) - 1
    stands: dict[str, int] = {}
    for i, word in enumerate(pattern):
        stands[word] = stands.get(word, 0) | 1 << i
    more, less = mask, 0  # where a cell is one more, or less, than the one above
    score = best = len(pattern)
    for word in text:
        equal = stands.get(word, 0)
        vertical = equal | less
        horizontal = (((equal & more) + more) ^ more) | equal
        up = less | ~(horizontal | more) & mask
        down = more & horizontal
        score += bool(up & last) - bool(down & last)
        up = up << 1 | (not anywhere)
        down <<= 1
        more = (down | ~(vertical | up)) & mask
        less = up & vertical & mask
        best = min(best, score)
    return best if anywhere else score
