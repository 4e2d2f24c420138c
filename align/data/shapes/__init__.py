"""Shapes: what the keys of a row mean."""
