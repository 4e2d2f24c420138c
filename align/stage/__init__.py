"""Stages: what each does around its own work."""
