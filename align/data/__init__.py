"""Data: files become rows, rows become records."""
