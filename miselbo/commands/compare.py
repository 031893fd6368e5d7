"""``task=compare runs=[a,b]``: the folders behind these paths become what :mod:`miselbo.report.compare` takes."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from miselbo.commands import sweeps
from miselbo.errors import InputError
from miselbo.report.checked import read_summary
from miselbo.runs.folder import config_path

TAKES = ("task", "runs", "allow", "run_dir", "json")


def compare(values: Mapping[str, object]) -> dict[str, object]:
    """Compare the runs and sweeps that ``runs`` names, write the comparison, print its verdict.

    Args:
        values: of the command line: ``runs``, ``allow`` and ``run_dir``, where to write.

    Raises:
        InputError: something else is given, a path is neither run nor sweep, or the runs cannot be compared.
    """
    if more := sorted(values.keys() - {*TAKES}):
        raise InputError(f"task=compare takes runs=[a,b], allow= and run_dir=, got {', '.join(more)}")
    paths, allow = listed(values, "runs"), [str(key) for key in listed(values, "allow")]
    if not paths:
        raise InputError("task=compare needs 'runs=[a,b]': run folders, or folders of sweeps")
    places = [Path(path).expanduser() for path in paths]
    entries = [
        entry for place, name in zip(places, names(places), strict=True) for entry in read(place, name)
    ]
    folder = Path(str(values["run_dir"])).expanduser() if values.get("run_dir") else default_folder(places)
    if config_path(folder).is_file():
        raise InputError(
            f"run_dir={folder} is a run folder: a comparison is written into a folder of its own"
        )
    from miselbo.report.compare import write  # pandas and matplotlib are slow to import

    found = write(entries, folder, allow)
    print(f"{found.pop('text')}\n\nreport: {found['report']}")
    return found


def listed(values: Mapping[str, object], key: str) -> list[str]:
    """A list of the command line, or the only entry of one.

    Example:
        >>> listed({"runs": ["a", "b"]}, "runs"), listed({"runs": "a"}, "runs"), listed({}, "runs")
        (['a', 'b'], ['a'], [])
    """
    value = values.get(key)
    if value is None:
        return []
    return [str(one) for one in value] if isinstance(value, list) else [str(value)]


def names(places: Sequence[Path]) -> list[str]:
    """Names that tell folders apart: their own, with those above it as far as needed.

    Example:
        >>> names([Path("out/a/r"), Path("out/b/r"), Path("out/c")])
        ['a/r', 'b/r', 'c']
    """
    full = [Path(os.path.abspath(place)).parts[1:] for place in places]
    found = []
    for parts in full:
        depth = 1
        while depth < len(parts) and [other[-depth:] for other in full].count(parts[-depth:]) > 1:
            depth += 1
        found.append("/".join(parts[-depth:]) or "/")
    return found


def default_folder(places: Sequence[Path]) -> Path:
    """Where a comparison is written when nobody says: the same place for the same runs."""
    stamp = hashlib.sha256("\n".join(os.path.abspath(place) for place in places).encode()).hexdigest()[:6]
    return Path("outputs", f"compare-{stamp}")


def read(place: Path, name: str) -> list[tuple[str, dict[int, Path]]]:
    """A run as one entry, a sweep as one for each configuration that has a finished job.

    Raises:
        InputError: neither, a run without a result, or no finished job.
    """
    if (place / "jobs").is_dir() or (place / "sweep.json").is_file():
        entries = of_sweep(place, name)
        if not entries:
            raise InputError(f"{place}: no job of this sweep is finished, so there is nothing to compare")
        return entries
    path = place / "results" / "summary.json"
    if not path.is_file():
        raise InputError(
            f"{place} is neither a run with a result nor a sweep: {path} does not exist; "
            f"evaluate it first (task=evaluate run_dir={place})"
        )
    return [(name, {seed_of(place): place})]


def of_sweep(sweep: Path, name: str) -> list[tuple[str, dict[int, Path]]]:
    """Finished jobs of every configuration, by seed."""
    jobs = sweeps.read_jobs(sweep)
    words = [dict(word.lstrip("+~").split("=", 1) for word in job["overrides"]) for job in jobs]
    keys = dict.fromkeys(key for row in words for key in row)
    varying = [key for key in keys if key != "seed" and len({row.get(key) for row in words}) > 1]
    found: dict[str, dict[int, Path]] = {}
    for job, own in zip(jobs, words, strict=True):
        if job["status"] == "finished":
            place = sweep / job["run_dir"]
            label = ", ".join(f"{key}={own[key]}" for key in varying if key in own) or name
            found.setdefault(label, {})[seed_of(place)] = place
    return list(found.items())


def seed_of(place: Path) -> int:
    """The seed a run was trained with."""
    seed = read_summary(place / "results" / "summary.json").get("protocol", {}).get("seed", 0)
    return seed if isinstance(seed, int) else 0
