"""The `align` command.

Commands that need no tensors load no torch. A stage's own command line is `align STAGE …`, the same as `python -m
align.STAGE …`.
"""

from align.cli.command import COMMANDS, command_of, dispatch, main

__all__ = ["COMMANDS", "command_of", "dispatch", "main"]
