"""Judges: Python functions of the user's own that score completions, called as TRL calls reward functions.

`path/to/file.py:function`. It is called by keyword with `prompts` and `completions` (texts, or lists of messages, as
the row has it), `completion_ids` (token ids, the end-of-turn token among them) and every other key of the prompt rows
as a column; it returns a number for each completion, or None for no score. `async def` will do, and so will any
callable that stands in the file. What exists only inside TRL's trainer (`trainer_state`, `log_extra`, `log_metric`,
`environments`) is not given, and as in TRL neither are the columns `completion` and `completion_ids`.

A judge counts by its code: its file, and what import statements name in its folder, however indirectly. What it opens,
fetches or imports from elsewhere is not seen.

It runs in our process: where it would end it (`sys.exit`, `os._exit`, `os.exec…`) that is its failure, and one that
takes long is told of every minute.
"""

from align.judges.calls import Judge, Programs, call, load, load_all
from align.judges.code import digest, of_setting, split_name
from align.judges.scores import Score

__all__ = ["Judge", "Programs", "Score", "call", "digest", "load", "load_all", "of_setting", "split_name"]
