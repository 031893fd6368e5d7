"""The exceptions a user sees: a message with what was got, what was expected, and the fix."""


class InputError(ValueError):
    """Bad input from outside: configuration, file, array. The command line prints it without a stack trace."""


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row gave a non-finite loss or gradient."""


class MembersFailedError(RuntimeError):
    """Members that were trained side by side failed; the others are finished and kept."""


class Stopped(BaseException):
    """A request to stop, from a scheduler or a time limit; no error, so that no handler of errors swallows it."""
