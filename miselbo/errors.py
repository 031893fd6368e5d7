"""The exceptions a user sees: a message with what was got, what was expected, and the fix."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input from outside: configuration, file, array. The command line prints it without a stack trace."""


class InUseError(InputError):
    """Another process works on the same part of a folder."""


class TrainingDivergedError(RuntimeError):
    """Too many steps in a row gave a non-finite loss or gradient."""


class FrozenChangedError(InputError, RuntimeError):
    """A module that must stay as it is changed while others were trained against it."""


class MembersFailedError(RuntimeError):
    """Members that were trained side by side failed; the others are finished and kept."""


class Stopped(BaseException):
    """A request to stop, from a scheduler or a time limit; no error, so that no handler of errors swallows it."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word most like ``word``, empty when none is.

    Example:
        >>> nearest("ensemble.sise", ["ensemble.size", "seed"])
        "did you mean 'ensemble.size'? "
    """
    names = list(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if not close:  # a right last part under a wrong group
        ends = {name.split(".")[-1]: name for name in names}
        close = [
            ends[end] for end in difflib.get_close_matches(word.split(".")[-1], list(ends), n=1, cutoff=0.7)
        ]
    return f"did you mean '{close[0]}'? " if close else ""
