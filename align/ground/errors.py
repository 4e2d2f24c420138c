"""What Align raises when a person can act on it. The command line prints the message alone and exits with
`exit_code`."""


class AlignError(Exception):
    """A failure whose message says what was found, where, what was expected and what to do."""

    exit_code = 1


class InputError(AlignError):
    """Bad input: a recipe, a flag, a data row, a reference. Raised before anything heavy and before anything is
    written."""

    exit_code = 2


class NothingLeft(InputError):
    """Every row was left out: of some rows no proof that none of the others would stay."""


class NotTrained(AlignError):
    """Training came to nothing with its settings, as where the loss is not finite. Other runs of a sweep are none the
    worse."""


class Stopped(AlignError):
    """A run that was stopped cleanly (Ctrl-C, SIGTERM) and goes on from its last checkpoint when started again."""

    exit_code = 75
