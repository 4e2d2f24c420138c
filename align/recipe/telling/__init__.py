"""Settings in words: help, what is wrong with a given one, and what other tools call it."""
