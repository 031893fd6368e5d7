"""Figures as files: PNG for the page, SVG and PDF for a paper; the same figure gives the same bytes."""

import io
import re

import matplotlib as mpl
from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")
_FIXED = {
    "png": {"Software": None},
    "svg": {"Creator": None, "Date": None},
    "pdf": {"Creator": None, "Producer": None, "CreationDate": None},
}


def drawn(figure: Figure) -> dict[str, bytes]:
    """The figure in every format, by its ending; its layout is worked out once.

    Example:
        >>> figure = Figure(figsize=(1, 1))
        >>> first = drawn(figure)
        >>> sorted(first), drawn(figure) == first
        (['pdf', 'png', 'svg'], True)
    """
    found = {}
    with mpl.rc_context({"svg.hashsalt": "miselbo", "svg.fonttype": "none", "pdf.fonttype": 42}):
        for ending in FORMATS:
            buffer = io.BytesIO()
            figure.savefig(buffer, format=ending, metadata=_FIXED[ending])
            found[ending] = buffer.getvalue()
            figure.set_layout_engine("none")
    return found


def slug(text: str) -> str:
    """Text as an anchor of a page.

    Example:
        >>> slug("All numbers, by S")
        'all-numbers-by-s'
    """
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
