"""The tables, the figure and the report of a sweep, made from its jobs' records and run folders alone."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup
from matplotlib.figure import Figure
from scipy.special import stdtrit

from miselbo.bounds.diagnostics import paired
from miselbo.report.checked import read_summary
from miselbo.report.folder import BOUNDS, QUANTITIES
from miselbo.report.html import to_page, write_together
from miselbo.report.sections import Picture, Report, Section
from miselbo.report.style import BLUE, BOUND_STYLES, VERMILLION, Look, label, legend_below, new_figure
from miselbo.report.tables import NAMES, Table, decimals, fixed, plus_minus

INTERVAL = "mean ± half of the 95% interval over seeds (t quantile)"


def write(sweep: Path, jobs: Sequence[Mapping[str, Any]]) -> str:
    """Write ``sweep.csv``, ``summary.csv``, ``contrasts.csv``, the figure and ``report.html``; return some lines.

    Args:
        sweep: folder of the sweep.
        jobs: records of :func:`miselbo.commands.sweeps.read_jobs`.
    """
    frame = jobs_table(sweep, jobs)
    summary = summary_table(frame)
    picture = figure(frame, summary, f"{sweep.name}, {len(frame)} jobs")
    page, figures = to_page(report(sweep, frame, summary, picture), sweep)
    tables = {
        "sweep.csv": frame.drop(columns=["configuration", "label", "name"]).to_csv(index=False),
        "summary.csv": summary.to_csv(index=False),
        "contrasts.csv": contrasts(frame).to_csv(index=False),
    }
    write_together(
        {sweep / "report.html": page}
        | figures
        | {sweep / name: content.encode() for name, content in tables.items()}
    )
    return text(sweep, frame, summary)


def jobs_table(sweep: Path, jobs: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    """One row per job: overrides (as one text, varying ones in columns of their own too), folder, status, values."""
    values = [dict(override.lstrip("+~").split("=", 1) for override in job["overrides"]) for job in jobs]
    keys = list(dict.fromkeys(key for row in values for key in row))
    varying = [key for key in keys if len({row.get(key) for row in values}) > 1]
    rows = []
    for number, (job, own) in enumerate(zip(jobs, values, strict=True)):
        name = ", ".join(f"{key}={own[key]}" for key in varying if key != "seed" and key in own)
        rows.append(
            {
                "job": number,
                **{key: own.get(key) for key in varying},
                "overrides": " ".join(job["overrides"]),
                "run_dir": job["run_dir"],
                "status": "unfinished" if job["status"] == "running" else job["status"],
                **headline(sweep / job["run_dir"] if job["status"] == "finished" else None),
                "seconds": job.get("seconds"),
                "error": job.get("error", ""),
                "configuration": job.get("configuration") or name,
                "label": name or "all jobs",
                "name": " ".join(f"{key}={own[key]}" for key in varying if key in own) or "the only job",
            }
        )
    return pd.DataFrame(rows)


def headline(folder: Path | None) -> dict[str, float]:
    """S, L, number of examples, and every quantity with its standard error over the data; NaN without a summary."""
    names = ["S", "L", "num_data", *(f"{name}{tail}" for name in QUANTITIES for tail in ("", "_se"))]
    path = folder and folder / "results" / "summary.json"
    row = read_summary(path)["headline"] if path and path.is_file() else {}
    found = (row.get(name) for name in names)
    return {name: math.nan if value is None else value for name, value in zip(names, found, strict=True)}


def summary_table(frame: pd.DataFrame) -> pd.DataFrame:
    """Mean, standard deviation and 95% interval over the finished seeds of every configuration.

    The interval is mean -+ t sd / sqrt(n) with the t quantile of n - 1 degrees of freedom; NaN for a single seed.
    """
    rows = []
    for _, group in frame.groupby("configuration", sort=False):
        done = group[group["status"] == "finished"]
        row: dict[str, object] = {"configuration": group["label"].iloc[0]}
        row |= {"num_jobs": len(group), "num_finished": len(done)}
        for name in QUANTITIES:
            row |= {f"{name}_{key}": value for key, value in spread(done[name].dropna().to_numpy()).items()}
        rows.append(row)
    return pd.DataFrame(rows)


def contrasts(frame: pd.DataFrame) -> pd.DataFrame:
    """Every configuration minus the first, paired by seed: what a seed gives to both drops out of the differences.

    Returns:
        One row per configuration and quantity: ``configuration``, ``against``, ``quantity``, ``difference`` with
        ``_se`` and the 95% interval ``_low`` .. ``_high`` (Student's t over the seeds), ``num_seeds``. Configurations
        with fewer than two finished seeds in common with the first have none.
    """
    done = frame[frame["status"] == "finished"]
    rows: list[dict[str, object]] = []
    if "seed" in done:
        done = done.drop_duplicates(["configuration", "seed"], keep="last")
        first, *others = [
            group.set_index("seed") for _, group in done.groupby("configuration", sort=False)
        ] or [done]
        for other in others:
            seeds = first.index.intersection(other.index)
            for name in QUANTITIES:
                values = np.array((other.loc[seeds, name] - first.loc[seeds, name]).dropna(), dtype=float)
                if len(values) > 1:
                    names = {"configuration": other["label"].iloc[0], "against": first["label"].iloc[0]}
                    row = {**names, "quantity": name, **paired("difference", values)}
                    rows.append({**row, "num_seeds": len(values)})
    columns = ["configuration", "against", "quantity", "difference", "difference_se", "difference_low",
               "difference_high", "num_seeds"]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


def contrast_section(found: pd.DataFrame) -> list[Section]:
    """The contrasts as a table; nothing where there are none."""
    if found.empty:
        return []
    rows = []
    for row in found.to_dict("records"):
        places = decimals(row["difference_se"])
        values = [fixed(row[f"difference{tail}"], places) for tail in ("", "_se", "_low", "_high")]
        rows.append([row["configuration"], NAMES[row["quantity"]], *values, str(row["num_seeds"])])
    text = (
        f"Each configuration minus {found['against'].iloc[0]}, seed by seed; the interval is Student's t over the "
        "seeds, for one quantity at a time. With all digits: contrasts.csv; example by example: task=compare."
    )
    columns = ["Configuration", "Bound", "difference", "s.e.", "95% from", "to", "seeds"]
    return [
        Section("contrasts", "Contrasts, paired by seed", [text], tables=[Table(columns, rows, "llrrrrr")])
    ]


def spread(values: np.ndarray) -> dict[str, float]:
    """Mean, sd (n - 1) and the 95% interval of a mean.

    Example:
        >>> {key: round(value, 3) for key, value in spread(np.array([1.0, 2.0, 3.0])).items()}
        {'mean': 2.0, 'sd': 1.0, 'low': -0.484, 'high': 4.484}
    """
    count = len(values)
    mean = float(values.mean()) if count else math.nan
    sd = float(values.std(ddof=1)) if count > 1 else math.nan
    half = float(stdtrit(count - 1, 0.975)) * sd / math.sqrt(count) if count > 1 else math.nan
    return {"mean": mean, "sd": sd, "low": mean - half, "high": mean + half}


def half_width(row: pd.Series, name: str) -> float:
    """Half of a configuration's 95% interval."""
    return float(row[f"{name}_high"] - row[f"{name}_mean"])


def figure(frame: pd.DataFrame, summary: pd.DataFrame, footer: str) -> Figure:
    """The bounds, and Delta and JSD, by configuration: a mark per seed, mean and 95% interval beside them."""
    names = [tick(name) for name in summary["configuration"]]
    lines = max(name.count("\n") for name in names) + 1
    height = 3.2 + max(0.28, 0.17 * lines) * len(summary)
    made, (left, right) = new_figure(height, 1, 2, footer)
    looks = {name: BOUND_STYLES[name] for name in BOUNDS}
    gains: dict[str, Look] = {
        "delta": {"color": BLUE, "marker": "o"},
        "jsd": {"color": VERMILLION, "marker": "s"},
    }
    keys = list(frame["configuration"].unique())
    for axis, styles in ((left, looks), (right, gains)):
        for offset, (name, look) in enumerate(styles.items()):
            style: Look = {"color": look["color"], "marker": look["marker"]}
            at = np.arange(len(summary)) + 0.16 * (offset - (len(styles) - 1) / 2)
            half = [half_width(row, name) for _, row in summary.iterrows()]
            means = summary[f"{name}_mean"]
            axis.errorbar(means, at, xerr=np.nan_to_num(half), **style, label=NAMES[name], linestyle="none",
                          markersize=6, capsize=3)  # fmt: skip
            for place, key in zip(at, keys, strict=True):
                seeds = frame.loc[frame["configuration"] == key, name].dropna()
                axis.plot(
                    seeds, np.full(len(seeds), place), linestyle="none", alpha=0.35, markersize=4, **style
                )
        axis.set_yticks(range(len(summary)), names if axis is left else [])
        axis.set_ylim(len(summary) - 0.4, -0.6)
    label(left, "Bounds", "nats")
    label(right, "Delta (circles) and JSD (squares)", "nats")
    legend_below(made, left)
    return made


def tick(configuration: str, width: int = 28) -> str:
    """A configuration as a label beside an axis: an override per line, long keys without their first parts.

    Example:
        >>> tick("ensemble.size=2, model.approximation.num_channels=16")
        'ensemble.size=2\\nnum_channels=16'
    """
    lines = []
    for override in configuration.split(", "):
        while len(override) > width and "." in override.split("=")[0]:
            override = override.split(".", 1)[1]
        lines.append(override if len(override) <= width else f"{override[: width - 1]}…")
    return "\n".join(lines)


def report(sweep: Path, frame: pd.DataFrame, summary: pd.DataFrame, picture: Figure) -> Report:
    """The sweep's page."""
    bad = frame[frame["status"] != "finished"]
    columns = ["Configuration", "seeds", *(NAMES[name] for name in (*BOUNDS, "delta", "jsd"))]
    rows = [
        [str(row["configuration"]), str(row["num_finished"]),
         *(plus_minus(row[f"{name}_mean"], half_width(row, name)) for name in (*BOUNDS, "delta", "jsd"))]
        for _, row in summary.iterrows()
    ]  # fmt: skip
    spreads = [
        [
            NAMES[name],
            str(row["configuration"]),
            *(row[f"{name}_{key}"] for key in ("mean", "sd", "low", "high")),
        ]
        for name in (*BOUNDS, "delta", "jsd")
        for _, row in summary.iterrows()
    ]
    failures = [
        Section(
            "failed",
            "Jobs without a result",
            ["The same command runs them again, and nothing else. Their links lead to records with stack traces."],
            tables=[Table(["Job", "Status", "Error"], [failure(sweep, row) for _, row in bad.iterrows()], "lll")],
        )
    ] if len(bad) else []  # fmt: skip
    return Report(
        title=f"MISELBO sweep: {sweep.name}",
        protocol_line=f"{len(frame)} jobs, {len(summary)} configurations; {INTERVAL}; nats; {common(frame)}",
        glance=count(frame),
        headline=Table(columns, rows, "l" + "r" * (len(columns) - 1)),
        trust=[],
        protocol=Table([], [], ""),
        sections=[
            *failures,
            Section("figure", "By configuration",
                    ["Faint marks are single seeds, the others their means with the 95% interval."],
                    [Picture("sweep", "Bounds, Delta and JSD by configuration", picture)]),
            *contrast_section(contrasts(frame)),
            Section("spread", "Mean, standard deviation and 95% interval over seeds",
                    tables=[Table(["Bound", "Configuration", "mean", "sd", "95% from", "to"],
                                  [[*row[:2], *interval(*row[2:])] for row in spreads], "llrrrr")]),
            Section("jobs", "Jobs", ["With all columns: sweep.csv; the table before this one: summary.csv."],
                    tables=[jobs_listed(sweep, frame)]),
        ],
    )  # fmt: skip


def interval(mean: float, sd: float, low: float, high: float) -> list[str]:
    """Mean, sd and interval with the digits that the sd leaves meaningful.

    Example:
        >>> interval(-31.68002, 0.30084, -32.42734, -30.93270), interval(-31.68002, *[math.nan] * 3)
        (['-31.68', '0.30', '-32.43', '-30.93'], ['-31.6800', '–', '–', '–'])
    """
    digits = min(6, max(0, 1 - math.floor(math.log10(sd)))) if math.isfinite(sd) and sd > 0 else 4
    return [fixed(value, digits) for value in (mean, sd, low, high)]


def failure(sweep: Path, row: pd.Series) -> list[str]:
    """A job without a result: its name, with a link to its record where there is one, status and error."""
    record = f"jobs/{row['run_dir'].replace('/', '__')}.json"
    there = bool(row["run_dir"]) and (sweep / record).is_file()
    name = Markup('<a href="{}">{}</a>').format(record, row["name"]) if there else row["name"]
    return [name, row["status"], row["error"]]


def jobs_listed(sweep: Path, frame: pd.DataFrame) -> Table:
    """One line per job, with a link to its own report where there is one."""
    rows = []
    for _, row in frame.iterrows():
        page = f"{row['run_dir']}/report.html"
        there = row["status"] == "finished" and (sweep / page).is_file()
        name = Markup('<a href="{}">{}</a>').format(page, row["name"]) if there else row["name"]
        values = [
            plus_minus(row[key], row[f"{key}_se"]) for key in ("miselbo", "joint_bound", "average_iwelbo")
        ]
        rows.append([name, row["status"], *values, fixed(row["seconds"], 0)])
    names = [NAMES[key] for key in ("miselbo", "joint_bound", "average_iwelbo")]
    return Table(["Job", "Status", *(f"{name} ± s.e. (data)" for name in names), "seconds"], rows, "llrrrr")


def common(frame: pd.DataFrame) -> str:
    """The overrides that all jobs share.

    Example:
        >>> common(pd.DataFrame({"overrides": ["seed=0 model=vae", "seed=1 model=vae"]}))
        'model=vae'
    """
    first, *others = (text.split() for text in frame["overrides"])
    return " ".join(word for word in first if all(word in other for other in others)) if others else ""


def count(frame: pd.DataFrame) -> str:
    """How many jobs have a result.

    Example:
        >>> count(pd.DataFrame({"status": ["finished", "failed"]}))
        '1 of 2 jobs finished, 1 failed.'
    """
    found = frame["status"].value_counts()
    parts = [f"{found[status]} {status}" for status in found.index if status != "finished"]
    return ", ".join([f"{found.get('finished', 0)} of {len(frame)} jobs finished", *parts]) + "."


def text(sweep: Path, frame: pd.DataFrame, summary: pd.DataFrame) -> str:
    """What the terminal shows at the end of a sweep."""
    lines = ["", f"sweep {sweep}: {count(frame)} {INTERVAL}, nats", ""]
    width = max(len(str(name)) for name in summary["configuration"])
    shown = ("miselbo", "joint_bound", "average_iwelbo")
    lines.append(" " * width + "".join(f"{NAMES[name]:>22}" for name in shown) + f"{'seeds':>7}")
    for _, row in summary.iterrows():
        cells = "".join(f"{plus_minus(row[f'{name}_mean'], half_width(row, name)):>22}" for name in shown)
        lines.append(f"{row['configuration']:<{width}}{cells}{row['num_finished']:>7}")
    bad = frame[frame["status"] != "finished"]
    lines += [f"{row['status']}: {row['name']}: {row['error']}" for _, row in bad.iterrows()]
    return "\n".join([*lines, "", f"report: {sweep / 'report.html'}"])
