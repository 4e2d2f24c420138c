"""What people look at: the summary of a pipeline as a page and as a table, texts of the store for a terminal."""
