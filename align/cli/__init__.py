"""The `align` command.

Commands that need no tensors load no torch. A stage's own command line is `align STAGE …`, the same as `python -m
align.STAGE …`.
"""

from align.cli.command import COMMANDS, dispatch, help_text, main
from align.cli.flags import Parser

__all__ = ["COMMANDS", "Parser", "dispatch", "help_text", "main"]
