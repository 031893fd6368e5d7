"""Docstrings for the reference: Sphinx's roles become plain code, a doctest the section that griffe calls Examples."""

import re
from typing import Any

import griffe

ROLE = re.compile(r":(?:func|class|mod|meth|data|attr):`~?([^`]+)`")


def plain(text: str) -> str:
    """Roles as code, the last part of a name after a tilde; the heading of doctests.

    >>> plain("see :func:`miselbo.bounds.jsd` and :class:`~miselbo.errors.InputError`")
    'see `miselbo.bounds.jsd` and `InputError`'
    """
    text = ROLE.sub(lambda found: f"`{shown(found)}`", text)
    return re.sub(r"(`\w+`) s\b", r"\1s", text).replace("Example:\n", "Examples:\n")


def shown(found: re.Match[str]) -> str:
    """What a role shows."""
    name = found.group(1)
    return name.rsplit(".", 1)[-1] if "`~" in found.group(0) else name


class Roles(griffe.Extension):
    """mkdocs.yml names this file."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Every docstring, before it is parsed."""
        if obj.docstring:
            obj.docstring.value = plain(obj.docstring.value)
