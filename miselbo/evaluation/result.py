"""The result of an evaluation: its tables, sentences on trust and summary, in memory."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from miselbo.bounds.quantities import names as names_of
from miselbo.errors import InputError
from miselbo.report.checked import read_summary, read_table
from miselbo.report.summary import Summary
from miselbo.runtime.files import write_csv, write_json, write_parquet

TABLES = (
    "bounds.csv",
    "per_member.csv",
    "pairwise_jsd.csv",
    "subsets.csv",
    "marginal.csv",
    "worth.csv",
    "sandwich.csv",
    "annealed.csv",
    "precision.csv",
    "per_example.parquet",
)
LABELS = {"miselbo": "MISELBO", "joint_bound": "joint bound", "delta": r"$\Delta$", "jsd": "JSD"}


@dataclass(frozen=True)
class Result:
    """What :func:`miselbo.evaluate` and :func:`miselbo.load_run` give.

    Attributes:
        tables: every table of ``results/`` by its file's name.
        summary: content of ``summary.json``.

    Example:
        >>> import torch, miselbo
        >>> normals = [torch.distributions.Normal(shift, 1.0) for shift in (-0.5, 0.5)]
        >>> result = miselbo.evaluate(lambda z: -z.square() / 2, normals, None, 100)
        >>> list(result.bounds.columns[:3]), len(result.members), len(result.examples)
        (['S', 'L', 'miselbo'], 14, 1)
        >>> result.trust[0][:20] != "", result.to_latex().startswith(r"\\begin{tabular}")
        (True, True)
    """

    tables: dict[str, pd.DataFrame]
    summary: Summary

    @classmethod
    def read(cls, folder: str | Path) -> "Result":
        """The result in a run folder.

        Raises:
            InputError: there is none.
        """
        results = Path(folder) / "results"
        path = results / "summary.json"
        if not path.is_file():
            raise InputError(
                f"{folder} holds no result: {path} does not exist; evaluate it first (task=evaluate)"
            )
        tables = {name: read_table(results / name) for name in TABLES if (results / name).is_file()}
        return cls(tables, read_summary(path))

    @property
    def bounds(self) -> pd.DataFrame:
        """One row per (S', L'): the columns of ``bounds.csv``."""
        return self.tables["bounds.csv"]

    @property
    def members(self) -> pd.DataFrame:
        """One row per (member, L')."""
        return self.tables["per_member.csv"]

    @property
    def examples(self) -> pd.DataFrame:
        """One row per example, at S and L."""
        return self.tables["per_example.parquet"]

    @property
    def subsets(self) -> pd.DataFrame:
        """One row per subset of the members; empty for one member."""
        return self.tables.get("subsets.csv", pd.DataFrame())

    @property
    def trust(self) -> list[str]:
        """Sentences on what the numbers can be trusted with."""
        return list(self.summary["trust"]["sentences"])

    def to_latex(self) -> str:
        """``bounds`` as a booktabs table, each value with its standard error over the data."""
        names = [name for name in names_of() if name in self.bounds]
        heads = ["$S$", "$L$", *(LABELS.get(name, name.replace("_", " ")) for name in names)]
        lines = [
            rf"\begin{{tabular}}{{{'r' * len(heads)}}}",
            r"\toprule",
            " & ".join(heads) + r" \\",
            r"\midrule",
        ]
        for row in self.bounds.to_dict("records"):
            cells = [str(row["S"]), str(row["L"]), *(_cell(row[name], row[f"{name}_se"]) for name in names)]
            lines.append(" & ".join(cells) + r" \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def save(self, folder: str | Path) -> Path:
        """Write the tables and the summary into ``<folder>/results``; returns that folder."""
        results = Path(folder) / "results"
        for name, table in self.tables.items():
            (write_parquet if name.endswith(".parquet") else write_csv)(table, results / name)
        write_json(results / "summary.json", self.summary)
        return results

    def report(self, folder: str | Path) -> Path:
        """Save, and write ``report.html``, ``report.md`` and figures beside; returns the page's path."""
        from miselbo import report

        self.save(folder)
        return report.write(folder)


def _cell(value: float, error: float) -> str:
    if pd.isna(value):
        return "--"
    return f"{value:.3f}" if pd.isna(error) else f"{value:.3f} ({error:.3f})"
