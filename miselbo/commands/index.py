"""``task=index``: one static page of all runs and sweeps below a folder, with status, progress, headline and links."""

import datetime
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from markupsafe import Markup

from miselbo.commands import sweeps
from miselbo.errors import InputError
from miselbo.report.checked import read_summary
from miselbo.report.tables import DASH, NAMES, Table, plus_minus
from miselbo.runs.folder import config_path
from miselbo.runs.status import Status, status

DEEPEST = 4
SHOWN = ("joint_bound", "miselbo", "average_iwelbo", "delta")


def index(values: Mapping[str, object]) -> Path:
    """Write ``index.html`` into the folder that ``run_dir`` names, by default ``outputs``; returns its path.

    Raises:
        InputError: something else is given, or there is no such folder.
    """
    if more := sorted(values.keys() - {"task", "run_dir"}):
        raise InputError(f"task=index takes run_dir=<a folder of runs> alone, got {', '.join(more)}")
    root = Path(str(values.get("run_dir") or "outputs")).expanduser()
    if not root.is_dir():
        raise InputError(f"task=index: {root} is no folder; expected one with run folders below it")
    from miselbo.report.html import to_html, write_together  # matplotlib is slow to import
    from miselbo.report.sections import Report, Section

    folders, groups = list(runs(root)), list(sweep_folders(root))
    run_rows, words = [], list[str]()
    for folder in folders:
        found = state(folder)
        words.append(found.word)
        run_rows.append(run_row(root, folder, found))
    counts = [f"{words.count(word)} {word}" for word in dict.fromkeys(sorted(words))]
    columns = [
        "Run",
        "Status",
        "Progress",
        "S",
        *(f"{NAMES[name]} ± s.e. (data)" for name in SHOWN),
        "Changed",
    ]
    headline = Table(columns, run_rows, "llll" + "r" * len(SHOWN) + "r")
    sweeps_table = Table(["Sweep", "Jobs"], [sweep_row(root, sweep) for sweep in groups], "ll")
    page = Report(
        title=f"MISELBO runs: {root.name or root.absolute().name}",
        protocol_line="Made by miselbo task=index from the folders' files; the same command brings it up to date. "
        "Times are UTC.",
        glance=f"{len(folders)} runs ({', '.join(counts) or 'none'}), {len(groups)} sweeps.",
        headline=headline,
        words="Runs",
        trust=[],
        protocol=Table([], [], ""),
        sections=[Section("sweeps", "Sweeps", tables=[sweeps_table])] if groups else [],
    )
    path = root / "index.html"
    write_together({path: to_html(page, {}).encode()})
    print(f"{page.glance}\n\npage: {path}")
    return path


def walk(root: Path) -> Iterator[Path]:
    """Folders below one, itself too, neither hidden nor links nor inside of a run."""
    for place, names, _ in os.walk(root):
        here = Path(place)
        yield here
        deep = len(here.relative_to(root).parts) >= DEEPEST or config_path(here).is_file()
        names[:] = [] if deep else sorted(name for name in names if not name.startswith("."))


def runs(root: Path) -> Iterator[Path]:
    """Run folders."""
    return (place for place in walk(root) if config_path(place).is_file())


def sweep_folders(root: Path) -> Iterator[Path]:
    """Folders of sweeps."""
    return (place for place in walk(root) if (place / "sweep.json").is_file() or (place / "jobs").is_dir())


def state(folder: Path) -> Status:
    """Its status; a folder that cannot be read, or whose job in a sweep failed, says so."""
    try:
        found = status(folder)
    except InputError as error:
        return Status("unreadable", str(error)[:200], 0)
    record = sweeps.read_record(folder.parent / "jobs" / f"{folder.name}.json")
    if found.word not in ("running", "finished") and record.get("status") == "failed":
        return Status("failed", str(record.get("error"))[:200], found.size)
    return found


def run_row(root: Path, folder: Path, found: Status) -> list[str]:
    """A line of the table of runs."""
    name = folder.relative_to(root).as_posix()
    values = [DASH] * len(SHOWN)
    changed = config_path(folder).stat().st_mtime
    path = folder / "results" / "summary.json"
    if path.is_file():
        changed = path.stat().st_mtime
        try:
            row = read_summary(path)["headline"]
            values = [plus_minus(row.get(one), row.get(f"{one}_se")) for one in SHOWN]
        except InputError as error:
            found = Status("unreadable", str(error)[:200], found.size)
    when = datetime.datetime.fromtimestamp(changed, datetime.UTC).strftime("%Y-%m-%d %H:%M")
    page = folder / "report.html"
    return [linked(root, page, name), found.word, found.progress, str(found.size or DASH), *values, when]


def sweep_row(root: Path, sweep: Path) -> list[str]:
    """A line of the table of sweeps."""
    name = sweep.relative_to(root).as_posix()
    try:
        jobs = [str(job["status"]) for job in sweeps.read_jobs(sweep)]
    except InputError as error:
        return [name, str(error)[:200]]
    counts = ", ".join(f"{jobs.count(word)} {word}" for word in dict.fromkeys(sorted(jobs)))
    return [linked(root, sweep / "report.html", name), f"{len(jobs)} jobs: {counts}"]


def linked(root: Path, page: Path, name: str) -> str:
    """A name with a link to its page, where there is one."""
    if not page.is_file():
        return name
    return Markup('<a href="{}">{}</a>').format(page.relative_to(root).as_posix(), name)
