"""The guard: it looks at the figures of a run while it trains, says what seems to go wrong, why, and what to do about
it.

Warnings change nothing in what is trained. What signs are seen from is saved with a checkpoint, so a run that was
stopped and started again warns like one that was not. A sign warns once, and again only after it has gone away. Signs
in `guard.stop` end the run. docs/guard.md says of every sign where its threshold comes from.
"""
