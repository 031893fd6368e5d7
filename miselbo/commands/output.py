"""``--json``: one JSON object on standard output, every other word of the command on standard error."""

import contextlib
import json
import math
import os
import sys
from collections.abc import Iterator, Mapping

FORMAT = 1
SUMMARY = ("headline", "certificate", "members", "num_dims")  # of summary.json, as they are


def take(arguments: list[str]) -> list[str]:
    """The arguments with ``json=true`` in the place of ``--json``.

    Example:
        >>> take(["--json", "seed=1"])
        ['json=true', 'seed=1']
    """
    return ["json=true" if word == "--json" else word for word in arguments]


@contextlib.contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Inside the block standard output, that of processes it starts too, goes to standard error."""
    if not wanted:
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def told(task: str, run_dir: str | None, result: Mapping[str, object]) -> str:
    """What ``--json`` prints.

    Args:
        task: that was carried out.
        run_dir: where its files are.
        result: what it gave; of a ``summary.json`` the headline, certificate, members and sentences on trust are kept.

    Returns:
        JSON on one line: ``format``, ``task``, ``run_dir``, and what the task gave. No NaN and no infinity: null.

    Example:
        >>> told("evaluate", "run", {"headline": {"miselbo": -1.5, "delta": math.nan}})
        '{"format": 1, "task": "evaluate", "run_dir": "run", "headline": {"miselbo": -1.5, "delta": null}, "trust": []}'
    """
    content = dict(result)
    if "headline" in result:
        trust = result.get("trust")
        content = {name: result[name] for name in SUMMARY if name in result}
        content["trust"] = trust.get("sentences", []) if isinstance(trust, Mapping) else []
    about = {"format": FORMAT, "task": task, "run_dir": run_dir}
    return json.dumps(plain({**about, **content}), allow_nan=False)


def plain(value: object) -> object:
    """JSON types alone: a number that is not finite is null, what JSON lacks is text.

    Example:
        >>> plain({"a": (1, math.inf), "b": Exception})
        {'a': [1, None], 'b': "<class 'Exception'>"}
    """
    if isinstance(value, dict):
        return {str(key): plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)
