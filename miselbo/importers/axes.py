"""Which axis of scores made elsewhere does not fit, and in which order the axes probably are."""

from itertools import permutations
from pathlib import Path

from miselbo.errors import InputError

AXES = {"N": "examples", "S": "members", "L": "samples"}


def check_axes(path: Path, log_p: tuple[int, ...], log_q: tuple[int, ...]) -> None:
    """Check that the shapes are [N, S, L] and [N, S, L, S].

    Args:
        path: named in the error.
        log_p: shape.
        log_q: shape.

    Raises:
        InputError: naming the axis, what it is and what it should be, and the likely order if that explains it.

    Example:
        >>> check_axes(Path("scores.npz"), (4, 5, 9), (4, 5, 5, 9))
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: log_q's third axis (L, samples) is 5 in scores.npz, but log_p has L = 9 samples; ...
    """
    shapes = f"log_p is {list(log_p)}, log_q is {list(log_q)}"
    for name, shape, letters in (("log_p", log_p, "NSL"), ("log_q", log_q, "NSLS")):
        if len(shape) != len(letters):
            raise InputError(
                f"{name} in {path} has {len(shape)} axes, {list(shape)}; expected {len(letters)}, {order(letters)}"
                f"{_axes_hint(name, len(shape))}"
            )
    for letter, size in zip("NSL", log_p, strict=True):
        if size == 0:
            raise InputError(
                f"log_p in {path} has {letter} = 0 {AXES[letter]}: {shapes}; expected at least one "
                f"({order('NSL')} and {order('NSLS')})"
            )
    expected = (*log_p, log_p[1])
    if log_q == expected:
        return
    position = next(i for i in range(4) if log_q[i] != expected[i])
    letter, ordinal = "NSLS"[position], ("first", "second", "third", "last")[position]
    raise InputError(
        f"log_q's {ordinal} axis ({letter}, {AXES[letter]}) is {log_q[position]} in {path}, but log_p has {letter} = "
        f"{expected[position]} {AXES[letter]}; expected {order('NSL')} and {order('NSLS')}, {shapes}"
        f"{_order_hint(log_p, log_q)}"
    )


def order(letters: str) -> str:
    """Axis letters as a shape.

    Example:
        >>> order("NSL")
        '[N, S, L]'
    """
    return f"[{', '.join(letters)}]"


def likely_order(log_p: tuple[int, ...], log_q: tuple[int, ...]) -> tuple[str, str] | None:
    """An order of the axes that fits both shapes: one that leaves log_p as it is, else log_q, else the nearest.

    Example:
        >>> likely_order((9, 4, 5), (4, 5, 9, 5))
        ('LNS', 'NSLS')
        >>> likely_order((4, 5, 9), (4, 5, 9, 3)) is None
        True
    """
    fitting = []
    for p in ("".join(letters) for letters in permutations("NSL")):
        size = dict(zip(p, log_p, strict=True))
        for q in sorted({"".join(letters) for letters in permutations("NSLS")}):
            if all(size[letter] == length for letter, length in zip(q, log_q, strict=True)):
                moved = sum(a != b for a, b in zip(p + q, "NSLNSLS", strict=True))
                fitting.append(((p != "NSL" and q != "NSLS", q[:3] != p, moved), (p, q)))
    return min(fitting)[1] if fitting else None


def _order_hint(log_p: tuple[int, ...], log_q: tuple[int, ...]) -> str:
    likely = likely_order(log_p, log_q)
    if likely is None:
        return ""
    fixes = []
    for name, letters, target in (("log_p", likely[0], "NSL"), ("log_q", likely[1], "NSLS")):
        if letters != target:
            fixes.append(f"{name}.transpose{transposition(letters, target)}")
    return f". The sizes fit {order(likely[0])} and {order(likely[1])}: if that is the order, save {', '.join(fixes)}"


def transposition(letters: str, target: str) -> tuple[int, ...]:
    """Where the axes of ``target`` are in ``letters``; of two equal letters the earlier one comes first.

    Example:
        >>> transposition("NSSL", "NSLS")
        (0, 1, 3, 2)
    """
    left = list(letters)
    result = []
    for letter in target:
        result.append(left.index(letter))
        left[left.index(letter)] = ""
    return tuple(result)


def _axes_hint(name: str, got: int) -> str:
    if name == "log_p" and got == 2:
        return ": for a single example save log_p[None] and log_q[None]"
    if name == "log_q" and got == 3:
        return ": every sample must be scored under all S members, not under its own alone (S = 1: log_q[..., None])"
    return ""
