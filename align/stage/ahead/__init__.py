"""Before a run: what it would do, rehearsed without weights."""
