"""The errors that a person can act on. The command line prints them as one line and maps them to exit codes."""


class FastnasError(Exception):
    """The work failed (exit code 1). The message is one line: what, where, what to do."""


class InputError(FastnasError):
    """Bad usage or bad input (exit code 2). Nothing on disk has been changed when this is raised."""
