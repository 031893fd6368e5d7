"""The one exception a user sees: a message with what was got, what was expected, and the fix."""


class InputError(ValueError):
    """Bad input from outside: configuration, file, array. The command line prints it without a stack trace."""
