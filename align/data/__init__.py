"""Data: rows become records, records become examples (token ids and which of them count)."""
