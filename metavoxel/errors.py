"""The one exception that means "the user can mend this": every message says what is wrong, where, and what to do."""


class MetavoxelError(ValueError):
    """A mistake in the input, settings or files. The command line prints it as one line and exits with status 2."""
