"""Curation: data made of data, each a `data` artifact that says what was done to what."""
