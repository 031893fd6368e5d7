"""What has become of a run folder, from its files alone: finished, running, stopped, failed, and how far it is."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from miselbo.errors import InputError
from miselbo.runs import checkpoints
from miselbo.runs.folder import config_path, stored
from miselbo.runtime import locks
from miselbo.runtime.reading import read_json

FAILURE = "failure.json"  # beside the configuration: the task that failed last, and its error


@dataclass(frozen=True)
class Status:
    """``word``: running, finished, stopped, failed or empty; ``progress``: how far it is, in words; ``size``: S."""

    word: str
    progress: str
    size: int


def status(folder: Path) -> Status:
    """The status of a run folder.

    Raises:
        InputError: no run folder, or its configuration cannot be read.
    """
    cfg = stored(folder)
    size = cfg.ensemble.get("size")
    size = size if isinstance(size, int) else 0
    trained = len(checkpoints.finished_members(folder, size))
    result = (folder / "results" / "summary.json").is_file()
    holders = locks.holders(folder)
    parts = [f"{trained} of {size} members trained" if trained < size else ""]
    if holders:
        parts += sorted({doing_of(part, owner) for part, owner in holders.items()})
        parts += [last_step(folder)] if trained < size else [scored(folder, cfg.evaluation.get("batch_size"))]
        return Status("running", ", ".join(filter(None, parts)), size)
    failure = failed(folder)
    if failure:
        return Status("failed", ", ".join(filter(None, [*parts, failure])), size)
    if result and trained == size or result and cfg.get("importer") is not None:
        return Status("finished", "", size)
    begun = trained or any((folder / "members").glob("*.ckpt")) or result
    parts += [last_step(folder)] if trained < size else ["not evaluated"]
    return Status("stopped" if begun else "empty", ", ".join(filter(None, parts)), size)


def doing_of(part: str, owner: Mapping[str, object]) -> str:
    """What a process does, in words.

    Example:
        >>> doing_of("q3", {"doing": "being trained"}), doing_of("folder", {"doing": "in use (task=evaluate)"})
        ('q3 being trained', 'in use (task=evaluate)')
    """
    words = str(owner.get("doing", "in use"))
    return words if part == locks.WHOLE else f"{part} {words}"


def last_step(folder: Path) -> str:
    """The last member and step in the end of ``metrics.csv``, a large file."""
    path = folder / "metrics.csv"
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").splitlines()
    for line in reversed(lines):
        if found := re.match(r"(\d+),(\d+),[^,]+,[^,]+$", line):
            return f"q{found[1]} at step {int(found[2]):,}"
    return ""


def scored(folder: Path, batch_size: object) -> str:
    """How many batches of an evaluation are on disk."""
    shards = sum(1 for _ in (folder / "results" / "shards").glob("*/*.npz"))
    return f"{shards} batches of {batch_size} scored" if shards else ""


def failed(folder: Path) -> str:
    """The error of the last task on a folder that failed; empty where it did not."""
    try:
        found = read_json(config_path(folder).with_name(FAILURE))
    except InputError:
        return ""
    return f"task={found.get('task')}: {str(found.get('error'))[:200]}" if isinstance(found, dict) else ""
