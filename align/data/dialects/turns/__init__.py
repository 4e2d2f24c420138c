"""Dialects of dialogues."""
