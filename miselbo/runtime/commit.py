"""Which commit of the source runs, where the package is a checkout."""

import subprocess
from functools import cache
from pathlib import Path


@cache
def source_commit(root: Path | None = None) -> str | None:
    """The commit's 40 digits, with ``-dirty`` behind where tracked files are changed; None for an installed package.

    Example:
        >>> source_commit(Path("no/such/checkout")) is None
        True
    """
    root = Path(__file__).resolve().parents[2] if root is None else root
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
