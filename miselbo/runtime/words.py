"""What the texts call things: a family whose examples are replicates says so everywhere, in one place."""

import os
import re
from collections.abc import Mapping


def reword(text: str, words: Mapping[str, str]) -> str:
    """Replace whole words and phrases, longest first; a capital first letter stays one.

    Example:
        >>> reword("Examples: each example counts", {"example": "replicate", "examples": "replicates"})
        'Replicates: each replicate counts'
    """
    if not words:
        return text
    phrases = sorted(words, key=len, reverse=True)
    pattern = "|".join(rf"(?<!\w){re.escape(phrase)}(?!\w)" for phrase in phrases)
    lower = {phrase.lower(): word for phrase, word in words.items()}

    def change(found: re.Match[str]) -> str:
        word = lower[found[0].lower()]
        return word[0].upper() + word[1:] if found[0][0].isupper() and found[0] not in words else word

    return re.sub(pattern, change, text, flags=re.IGNORECASE)


def shown(path: str | bytes | os.PathLike[str]) -> str:
    r"""A path in a message or table: one line of UTF-8, whatever the bytes of its name.

    Example:
        >>> shown(os.fsdecode(b"a\xffb")), shown("two\nlines"), shown("größe")
        ('a\\xffb', 'two\\nlines', 'größe')
    """
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)
