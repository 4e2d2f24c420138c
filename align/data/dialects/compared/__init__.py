"""Dialects of pairs: two answers and which of them is the better."""
