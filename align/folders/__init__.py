"""Folders of models and adapters in Hugging Face's layout, read and checked without torch."""
