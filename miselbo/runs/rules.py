"""What one value of a configuration may be: kinds of values with their ranges and the words for them."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from miselbo.errors import InputError, nearest

LARGEST = 2**31 - 1  # of whole numbers: beyond it indices of arrays and of Lightning overflow


@dataclass(frozen=True)
class Rule:
    """A kind of value.

    Attributes:
        words: for what it must be, as in "must <words>".
        fits: whether a value, as plain Python types, is of the kind.
        known: the words it is one of, where a misspelt one gets a hint.
        most: the largest whole number.
    """

    words: str
    fits: Callable[[object], bool]
    known: tuple[str, ...] = ()
    most: int | None = None

    def check(self, key: str, value: object) -> None:
        """Raises InputError, naming the key, for a value of another kind."""
        if self.fits(value):
            return
        if self.known and isinstance(value, str):
            raise InputError(
                f"unknown {key}={value[:80]}; {nearest(value, self.known)}known are {', '.join(self.known)}"
            )
        if self.most is not None and type(value) is int and value > self.most:
            raise InputError(f"{key} must be at most {self.most:,}, got {value:,}"[:200])
        shown = repr(value)
        raise InputError(
            f"{key} must {self.words}, got {shown if len(shown) <= 120 else shown[:117] + '...'}"
        )


def whole(low: int = 1, high: int = LARGEST) -> Rule:
    """A whole number.

    Example:
        >>> whole(1).fits(3), whole(1).fits(True), whole(1).fits(3.0), whole(1).fits(2**40)
        (True, False, False, False)
    """
    words = f"be a whole number of at least {low}"
    return Rule(words, lambda value: type(value) is int and low <= value <= high, most=high)


def number(low: float = -math.inf, high: float = math.inf, above: float | None = None) -> Rule:
    """A finite number in [low, high], or in (above, high]; -0.0 counts as negative.

    Example:
        >>> number(0, 1).fits(0), number(above=0).fits(0.0), number(0).fits(-0.0), number().fits(math.nan)
        (True, False, False, False)
    """
    least = f"above {above:g}" if above is not None else f"of at least {low:g}" if low > -math.inf else ""
    most = f"at most {high:g}" if high < math.inf else ""
    words = " ".join(["be a finite number", " and ".join(part for part in (least, most) if part)]).strip()
    signed = low < 0 and above is None

    def fits(value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        if value == 0 and not signed and math.copysign(1, value) < 0:
            return False
        return (value > above if above is not None else value >= low) and value <= high

    return Rule(words, fits)


def word(*known: str) -> Rule:
    """One of some words."""
    listed = " or ".join(filter(None, [", ".join(map(repr, known[:-1])), repr(known[-1])]))
    return Rule(f"be {listed}", lambda value: isinstance(value, str) and value in known, known)


def text(longest: int = 4096) -> Rule:
    """Text on one line that is not empty: a path, a name."""
    return Rule(
        "be text (in quotes where it looks like a number)",
        lambda value: (
            isinstance(value, str)
            and 0 < len(value) <= longest
            and value.strip() != ""
            and not any(ord(letter) < 32 for letter in value)
        ),
    )


def name() -> Rule:
    """A name that becomes part of a folder's."""
    inner = text(200)
    return Rule(
        "be a name without slashes",
        lambda value: inner.fits(value) and not set(str(value)) & {"/", "\\"} and value not in (".", ".."),
    )


def many(each: Rule, *lengths: int) -> Rule:
    """A list that is not empty, of certain lengths where some are given."""
    inner = each.words.removeprefix("be ").removeprefix("a ")
    size = f" of length {' or '.join(map(str, lengths))}" if lengths else ""
    return Rule(
        f"list values{size}, each {inner}",
        lambda value: (
            isinstance(value, list)
            and len(value) > 0
            and (not lengths or len(value) in lengths)
            and all(map(each.fits, value))
        ),
    )


def maybe(rule: Rule) -> Rule:
    """A value of the kind, or null."""
    return Rule(
        f"{rule.words} or null", lambda value: value is None or rule.fits(value), rule.known, rule.most
    )


def either(first: Rule, second: Rule) -> Rule:
    """A value of one kind or of the other.

    Example:
        >>> either(word("auto"), whole(1)).words
        "be 'auto' or a whole number of at least 1"
    """
    return Rule(
        f"{first.words} or {second.words.removeprefix('be ')}",
        lambda value: first.fits(value) or second.fits(value),
        most=first.most or second.most,
    )


FLAG = Rule("be true or false", lambda value: isinstance(value, bool))
AUTO = Rule("be 'auto'", lambda value: value == "auto")
FREE = Rule("be anything", lambda value: True)  # arguments that the class itself checks
