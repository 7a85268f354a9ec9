"""The one exception type for mistakes that the person at the keyboard can mend, for the rooms that do without `dinov2`."""


class UserError(ValueError):
    """A mistake in what the user gave: a folder, a file, a table, an option.

    Its message says what is wrong, what was got, what is allowed and the cure. The command line prints the message alone and
    exits with status 2; with `--debug` it shows the traceback too.
    """
