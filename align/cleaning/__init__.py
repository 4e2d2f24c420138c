"""Cleaning: rows in, rows and what became of each out. What is learnt from is judged, all text is repaired and
scrubbed."""
