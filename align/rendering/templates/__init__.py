"""Chat templates: which one a base renders with, and what it makes of a dialogue."""
