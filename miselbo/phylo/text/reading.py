"""Text files as people have them: gzipped or not, any line ends, UTF-8 or an older encoding."""

import re
from pathlib import Path

from miselbo.errors import InputError
from miselbo.runtime.gzipped import unpacked

# a quoted word: the quote does not stand inside a word, and is closed in its line
QUOTED_WORD = r"(?<![^\s(),:=;\[\]{}])'(?:[^'\n]|'')*'"
OPENING = re.compile(rf"{QUOTED_WORD}|\[")
BRACKET = re.compile(r"[\[\]]")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")


def read_text(path: Path) -> str:
    """A text file, gzipped or not, with any line ends; UTF-8, UTF-16 with its mark, else Latin-1.

    Raises:
        InputError: it cannot be read, or is no text.
    """
    try:
        data = unpacked(path.read_bytes(), path, "Unpack it by hand, or get it again.")
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    encodings = ("utf-16",) if data[:2] in UTF_16 else ("utf-8-sig", "latin-1")
    for encoding in encodings:
        try:
            text = data.decode(encoding)
            break
        except UnicodeDecodeError:
            continue
    else:
        text = "\0"
    if "\0" in text:
        raise InputError(
            f"cannot read {path}: it is no text (a compressed archive or another program's file)"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n")


def without_comments(text: str) -> str:
    """The text without NEXUS comments ``[...]``, which may hold others; brackets in quoted words are none.

    A comment that is not closed ends at the first closing bracket when it holds another opening one, else it stays.

    Example:
        >>> without_comments("a[1 [2] 3]b 'c[4]' d'e[5]")
        "ab 'c[4]' d'e"
    """
    parts, position = [], 0
    while found := OPENING.search(text, position):
        if found.group() != "[":
            parts.append(text[position : found.end()])
            position = found.end()
            continue
        end = closing(text, found.start())
        if end is None:
            break
        parts.append(text[position : found.start()])
        position = end
    return "".join(parts) + text[position:]


def closing(text: str, start: int) -> int | None:
    """Where the comment that opens at ``start`` is over; None when it never is."""
    depth = 0
    for bracket in BRACKET.finditer(text, start):
        depth += 1 if bracket.group() == "[" else -1
        if depth == 0:
            return bracket.end()
    end = text.find("]", start)
    return end + 1 if end >= 0 else None


def is_nexus(text: str) -> bool:
    """Whether ``#NEXUS`` is the first word, after comments."""
    return re.match(r"#NEXUS\b", nexus_start(text), re.IGNORECASE) is not None


def nexus_start(text: str) -> str:
    """The text from its first word that is no comment on."""
    rest = text.lstrip()
    while rest.startswith("[") and (end := closing(rest, 0)) is not None:
        rest = rest[end:].lstrip()
    return rest
