"""Recipes at work: stages in order, each fed with what earlier ones made, and nothing done twice.  `align run
recipes/helpful.yaml`

What can be checked without training is checked for all stages before the first one runs
(align/stage/ahead/rehearsal.py): files, names, judges, templates, first rows. A run whose stages are all done, and its
`--dry-run`, import no torch.
"""

from align.pipeline.handover import load, store_of
from align.pipeline.running import Unfinished, run

__all__ = ["Unfinished", "load", "run", "store_of"]
