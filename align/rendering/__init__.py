"""Rendering: records in, token ids out, and which tokens count."""
