"""Dialects: rows in which others write, under keys of their own, what a row of ours says. One file a dialect."""
