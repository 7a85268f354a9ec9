"""The one exception type for mistakes that the person at the keyboard can mend."""


class UserError(ValueError):
    """A mistake in what the user gave: a configuration, a name, a path, a file.

    Its message says what is wrong, what was got, what is allowed and the cure. Command lines print the message alone and
    exit with status 2; with `--debug` they show the traceback too.
    """
