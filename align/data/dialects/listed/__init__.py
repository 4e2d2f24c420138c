"""Dialects of pairs: lists of answers with scores or ranks."""
