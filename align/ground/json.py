"""JSON objects as they are read: nothing is known of a value before it is looked at."""

from __future__ import annotations

Json = dict[str, object]
"""A JSON object. Its values are narrowed with isinstance where they are used."""
