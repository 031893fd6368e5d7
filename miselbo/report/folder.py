"""Reading a run folder: which files the report needs, what they must hold, and what to do without."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from miselbo.bounds import quantities
from miselbo.errors import InputError
from miselbo.report.checked import read_summary, read_table
from miselbo.report.summary import Row, RunProtocol, Summary
from miselbo.runtime.reading import check_archive

BOUNDS = quantities.names("bound")
QUANTITIES = quantities.names()

REQUIRED_COLUMNS: dict[str, tuple[str, ...]] = {
    "results/bounds.csv": ("S", "L", *quantities.NEEDED),
    "results/per_member.csv": ("member", "L", "iwelbo", "elbo"),
    "results/per_example.parquet": ("index", *BOUNDS, "delta", "jsd"),
}
OPTIONAL_COLUMNS: dict[str, tuple[str, ...]] = {
    "results/pairwise_jsd.csv": ("member_i", "member_j", "jsd"),
    "results/subsets.csv": ("members", "size", "miselbo", "joint_bound", "best_of_size", "greedy"),
    "results/marginal.csv": ("path", "size", "member", "miselbo_gain", "joint_bound_gain"),
    "results/sandwich.csv": ("S", "L", "lower", "upper", "width"),
    "metrics.csv": ("member", "step", "metric", "value"),
}


@dataclass(frozen=True)
class RunFolder:
    """What the report knows: the files of one run, read and checked.

    ``notes`` says, by file name, why an optional file is not there (absent or unreadable).
    """

    path: Path
    summary: Summary
    bounds: pd.DataFrame
    per_member: pd.DataFrame
    per_example: pd.DataFrame
    pairwise: pd.DataFrame | None = None
    subsets: pd.DataFrame | None = None
    marginal: pd.DataFrame | None = None
    sandwich: pd.DataFrame | None = None
    metrics: pd.DataFrame | None = None
    images: dict[str, np.ndarray] | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> Row:
        """The row at full S and L: every quantity with ``_se`` (over data) and ``_se_mc`` (Monte Carlo)."""
        return self.summary["headline"]

    @property
    def protocol(self) -> RunProtocol:
        """Dataset, split, binarisation, seed, versions: plain strings and numbers."""
        return self.summary.get("protocol", {})

    @property
    def words(self) -> dict[str, str]:
        """What the texts call things, where it is not what this project calls them."""
        return self.summary.get("words", {})

    @property
    def sections(self) -> list[str]:
        """Names of the sections that not every run has."""
        return self.summary.get("sections", ["images"])

    @property
    def size(self) -> int:
        """S, the number of members."""
        return int(self.headline["S"])

    @property
    def num_samples(self) -> int:
        """L, the number of importance samples per member."""
        return int(self.headline["L"])


def number(value: object) -> float:
    """A float; None and text that is no number become NaN.

    >>> number("2.5"), number(None)
    (2.5, nan)
    """
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return math.nan


def member_label(member: object) -> str:
    """The name shown for a member: 3 and "3" become q3, 0 (all members jointly) is joint, other names stay.

    >>> member_label(3), member_label("3"), member_label(3.0), member_label("q3")
    ('q3', 'q3', 'q3', 'q3')
    """
    value = number(member)
    if value == 0:
        return "joint"
    return f"q{int(value)}" if value.is_integer() else str(member)


def read(run_dir: Path) -> RunFolder:
    """Read a run folder.

    Raises:
        InputError: no such folder; a required file is absent, damaged, empty, or without a needed column.
    """
    if not run_dir.is_dir():
        raise InputError(
            f"no run folder at {run_dir}; expected the folder of a finished run. "
            "Make one with `python run.py run_dir=...`, or give the right `run_dir=`."
        )
    summary = _read_summary(run_dir)
    required = {name: _read_required(run_dir, name) for name in REQUIRED_COLUMNS}
    notes: dict[str, str] = {}
    optional = {name: _read_optional_table(run_dir, name, notes) for name in OPTIONAL_COLUMNS}
    return RunFolder(
        path=run_dir,
        summary=summary,
        bounds=required["results/bounds.csv"].sort_values(["S", "L"], ignore_index=True),
        per_member=required["results/per_member.csv"],
        per_example=required["results/per_example.parquet"],
        pairwise=optional["results/pairwise_jsd.csv"],
        subsets=optional["results/subsets.csv"],
        marginal=optional["results/marginal.csv"],
        sandwich=optional["results/sandwich.csv"],
        metrics=_clean_metrics(optional["metrics.csv"], notes),
        images=_read_images(run_dir, notes),
        notes=notes,
    )


def _fix(run_dir: Path) -> str:
    return f"Make it with `python run.py task=evaluate run_dir={run_dir}`."


def _read_required(run_dir: Path, name: str) -> pd.DataFrame:
    path = run_dir / name
    if not path.is_file():
        raise InputError(f"{path} is missing, and the report needs it. {_fix(run_dir)}")
    try:
        frame = read_table(path, REQUIRED_COLUMNS[name])
    except InputError as error:
        raise InputError(f"{error}. {_fix(run_dir)}") from None
    if frame.empty:
        raise InputError(f"{path} has no rows; expected at least one. {_fix(run_dir)}")
    return frame


def _read_summary(run_dir: Path) -> Summary:
    path = run_dir / "results/summary.json"
    if not path.is_file():
        raise InputError(f"{path} is missing, and the report needs it. {_fix(run_dir)}")
    return read_summary(path, ("S", "L", *quantities.NEEDED), _fix(run_dir))


def _read_optional_table(run_dir: Path, name: str, notes: dict[str, str]) -> pd.DataFrame | None:
    path = run_dir / name
    if not path.is_file():
        notes[name] = f"{name} is not in the run folder."
        return None
    try:
        frame = read_table(path, OPTIONAL_COLUMNS[name])
    except InputError as error:
        notes[name] = f"{str(error).replace(str(path), name)}."
        return None
    if frame.empty:
        notes[name] = f"{name} has no rows."
        return None
    return frame


def _clean_metrics(metrics: pd.DataFrame | None, notes: dict[str, str]) -> pd.DataFrame | None:
    """Numbers only: a cut last line (a killed run) is dropped, a repeated step keeps its last value."""
    if metrics is None:
        return None
    metrics = metrics.assign(
        step=pd.to_numeric(metrics["step"], errors="coerce"),
        value=pd.to_numeric(metrics["value"], errors="coerce"),
    ).dropna(subset=["member", "step", "metric", "value"])
    metrics = metrics.assign(member=metrics["member"].map(member_label))
    metrics = metrics[np.isfinite(metrics["value"])].drop_duplicates(
        ["member", "step", "metric"], keep="last"
    )
    if metrics.empty:
        notes["metrics.csv"] = "metrics.csv has no finite values."
        return None
    return metrics.sort_values(["metric", "member", "step"], ignore_index=True)


def _read_images(run_dir: Path, notes: dict[str, str]) -> dict[str, np.ndarray] | None:
    """originals [N, C, H, W], reconstructions [S, N, C, H, W], samples [M, C, H, W]: whichever are there."""
    name, dimensions = "results/images.npz", {"originals": 4, "reconstructions": 5, "samples": 4}
    path = run_dir / name
    if not path.is_file():
        notes[name] = f"{name} is not in the run folder."
        return None
    try:
        check_archive(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: np.asarray(archive[key], dtype=float) for key in dimensions if key in archive}
    except Exception as error:
        notes[name] = f"{name} cannot be read ({error})."
        return None
    wrong = [
        f"{key} has shape {array.shape}" for key, array in arrays.items() if array.ndim != dimensions[key]
    ]
    if wrong or not arrays:
        notes[name] = f"{name} does not hold images: {'; '.join(wrong) or 'no known array'}."
        return None
    return arrays
