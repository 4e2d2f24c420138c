"""Token ids of a text by its words, each of which the tokenizer reads once."""

from align.rendering.words.reading import Words, words_of
