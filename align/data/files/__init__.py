"""Files: rows out of every format."""
