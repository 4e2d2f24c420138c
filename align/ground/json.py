"""JSON objects as they are read: nothing is known of a value before it is looked at."""

from __future__ import annotations

import sys

Json = dict[str, object]
"""A JSON object. Its values are narrowed with isinstance where they are used."""


def in_words(error: Exception) -> str:
    """Why a file or a text cannot be read as JSON or YAML, in words that need no knowledge of Python."""
    if isinstance(error, UnicodeDecodeError):
        return f"byte {error.object[error.start]:#04x} at offset {error.start:,} is not UTF-8"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if "integer string conversion" in str(error):
        return f"it holds a whole number of more than {sys.get_int_max_str_digits():,} digits"
    return str(error)
