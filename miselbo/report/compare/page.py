"""A comparison as a page: verdict, table, figure, what was measured differently."""

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from miselbo.report.compare.pairs import EXAMPLES, Entry, couples, example_differences
from miselbo.report.compare.protocols import Difference
from miselbo.report.folder import BOUNDS
from miselbo.report.latex import escape
from miselbo.report.sections import Picture, Report, Section
from miselbo.report.style import GREY, Look, label, legend_below, member_style, new_figure
from miselbo.report.tables import NAMES, Table, decimals, error_text, fixed

OVER = {"examples": "over the examples both have", "seeds": "over the seeds both have"}


def build(
    entries: Sequence[Entry],
    over: str,
    differences: pd.DataFrame,
    factors: pd.DataFrame,
    protocols: Sequence[tuple[str, Sequence[Difference]]],
) -> Report:
    """The page of a comparison; ``protocols``: what each entry after the first was measured differently in."""
    shown = [Picture("compare", ALT, figure(entries, over, differences))]
    about = [
        f"The run named minus {entries[0].name}. Intervals are 95%, Student's t, {OVER[over]}, and for one quantity at "
        "a time."
    ]
    left_out = int(differences["left_out"].sum())
    if left_out:
        about.append(f"Left out: {left_out} values of an example that are not finite in one of the two runs.")
    sections = [Section("figure", "Differences", about, shown)]
    if len(factors):
        sections.append(Section("evidence", "Bayes factors", [FACTORS], tables=[factor_table(factors)]))
    rows = [[name, d.key, d.first, d.other, d.blocks] for name, found in protocols for d in found]
    if rows:
        columns = ["Run", "Key", f"in {entries[0].name}", "in the run", "What it does to the numbers"]
        sections.append(
            Section("protocols", "Measured differently", [MEASURED], tables=[Table(columns, rows, "lllll")])
        )
    return Report(
        title=f"MISELBO comparison: {', '.join(entry.name for entry in entries)}",
        protocol_line=line(entries, over, differences),
        glance=" ".join(verdicts(differences)),
        headline=headline(differences),
        trust=[],
        protocol=Table([], [], ""),
        sections=sections,
        caption=line(entries, over, differences),
        links=("compare.csv", "protocols.csv", "compare.md", "compare.tex"),
        latex=to_latex(differences),
    )


ALT = "Left: differences of the bounds with their 95% intervals; right: the differences behind the joint bound's"
FACTORS = (
    "log BF is the difference of two log marginal likelihoods, in nats, with the error of both (taken as independent) "
    "and 1.96 of it on either side. A value that rests on fewer than 100 effective draws is marked: it is too low and "
    "its error too small."
)
MEASURED = (
    "Keys of the two protocols that differ. Those with words in the last column change what the numbers mean and were "
    "allowed by allow=; the others do not."
)


def line(entries: Sequence[Entry], over: str, differences: pd.DataFrame) -> str:
    """What was compared, in a line."""
    run = entries[0].first
    words = f"{run.protocol.get('dataset', '')} {run.protocol.get('split', '')}".strip()
    counts = differences["num"]
    low, high = int(counts.min()), int(counts.max())
    count = str(low) if low == high else f"{low} to {high}"
    return f"{words}; paired by {over[:-1]}, {count} {over}; reference {entries[0].name}"


def verdicts(differences: pd.DataFrame) -> list[str]:
    """A sentence on joint bound and MISELBO of every entry: above, below, or not shown to differ.

    Example:
        >>> row = {"run": "b", "against": "a", "quantity": "miselbo", "difference": 0.3, "difference_se": 0.05,
        ...     "difference_low": 0.2, "difference_high": 0.4}
        >>> verdicts(pd.DataFrame([row]))
        ['MISELBO of b is 0.300 nats above that of a (95% interval 0.200 to 0.400).']
        >>> verdicts(pd.DataFrame([row | {"difference_low": -0.2}]))
        ['MISELBO of b is not shown to differ from that of a: 0.300 nats, 95% interval -0.200 to 0.400.']
    """
    said = []
    for row in differences.to_dict("records"):
        if row["quantity"] not in ("joint_bound", "miselbo"):
            continue
        what = f"{NAMES[row['quantity']]} of {row['run']}"
        low, high, places = row["difference_low"], row["difference_high"], decimals(row["difference_se"])
        interval = f"95% interval {fixed(low, places)} to {fixed(high, places)}"
        value = fixed(abs(row["difference"]), places)
        if not math.isfinite(row["difference"]) or not math.isfinite(low):
            said.append(f"{what} cannot be compared with that of {row['against']}: no finite interval.")
        elif low > 0 or high < 0:
            side = "above" if low > 0 else "below"
            said.append(f"{what} is {value} nats {side} that of {row['against']} ({interval}).")
        else:
            said.append(
                f"{what} is not shown to differ from that of {row['against']}: "
                f"{fixed(row['difference'], places)} nats, {interval}."
            )
    return said


def headline(differences: pd.DataFrame) -> Table:
    """A line for every run and quantity; digits by the difference's error."""
    many = differences["run"].nunique() > 1
    rows = [
        [*([row["run"]] * many), NAMES[row["quantity"]], *cells(row)]
        for row in differences.to_dict("records")
    ]
    first = differences["against"].iloc[0]
    columns = [
        *(["Run"] * many),
        "",
        first,
        "other",
        "difference",
        "s.e.",
        "s.e. (Monte Carlo)",
        "95% interval",
    ]
    columns[columns.index("other")] = "the run" if many else str(differences["run"].iloc[0])
    return Table([*columns, "pairs"], rows, "l" * (1 + many) + "rrrrrrr")


def cells(row: dict[str, object]) -> list[str]:
    """Both values, difference, errors, interval and number of pairs, as text."""
    error = float(str(row["difference_se"]))
    places = decimals(error)
    low, high = (fixed(row[f"difference_{end}"], places) for end in ("low", "high"))
    return [
        *(fixed(row[name], places) for name in ("first", "other", "difference")),
        error_text(error),
        error_text(row.get("difference_se_mc")),
        f"{low} to {high}",
        f"{row['num']:.0f}",
    ]


def factor_table(factors: pd.DataFrame) -> Table:
    """log Bayes factors with both marginal likelihoods."""
    rows = []
    for row in factors.to_dict("records"):
        marginals = [
            f"{row[f'log_marginal_{side}']:.2f} ± {row[f'log_marginal_{side}_se']:.2f}"
            for side in ("first", "other")
        ]
        interval = f"{row['log_bayes_factor_low']:.2f} to {row['log_bayes_factor_high']:.2f}"
        mark = "" if row["trusted"] else " (few effective draws)"
        rows.append([row["run"], *marginals, f"{row['log_bayes_factor']:.2f}{mark}", interval])
    first = factors["against"].iloc[0]
    return Table(["Run", f"log p(Y) of {first}", "of the run", "log BF", "95% interval"], rows, "lrrrr")


def figure(entries: Sequence[Entry], over: str, differences: pd.DataFrame) -> Figure:
    """Left: differences of the four bounds with intervals. Right: those behind the joint bound's, sorted or by seed."""
    footer = line(entries, over, differences)
    made, (left, right) = new_figure(3.0 + 0.35 * len(entries), 1, 2, footer)
    for position, entry in enumerate(entries[1:]):
        of_run = differences[differences["run"] == entry.name].set_index("quantity")
        look = member_style(position)
        style: Look = {"color": look["color"], "marker": look["marker"]}
        names = [name for name in BOUNDS if name in of_run.index]
        at = np.arange(len(names)) + 0.7 * ((position + 0.5) / (len(entries) - 1) - 0.5)
        values = of_run.loc[names]
        bars = values["difference_high"] - values["difference"]
        left.errorbar(values["difference"], at, xerr=np.nan_to_num(bars), **style, linestyle="none", capsize=3,
                      markersize=6, label=entry.name)  # fmt: skip
        left.set_yticks(range(len(names)), [NAMES[name] for name in names])
        _behind(right, entries[0], entry, over, style)
    left.set_ylim(len(BOUNDS) - 0.4, -0.6)
    left.axvline(0.0, color=GREY, linewidth=1.0)
    right.axhline(0.0, color=GREY, linewidth=1.0)
    label(left, f"Difference to {entries[0].name}", "nats")
    if over == EXAMPLES:
        label(right, "Joint bound, examples sorted", "share of the examples", "difference (nats)")
    else:
        label(right, "Joint bound, seed by seed", "seed", "difference (nats)")
    legend_below(made, left)
    return made


def _behind(axis: Axes, first: Entry, other: Entry, over: str, style: Look) -> None:
    """Differences of the joint bound: sorted examples as a line, or a mark for each seed."""
    if over == EXAMPLES:
        values = np.sort(example_differences(first.first, other.first)["joint_bound"].to_numpy(float))
        values = values[np.isfinite(values)]
        axis.plot((np.arange(len(values)) + 0.5) / max(len(values), 1), values, color=style["color"])
        return
    seeds = sorted(first.runs.keys() & other.runs.keys())
    values = np.array(
        [example_differences(*pair)["joint_bound"].mean() for pair in couples(first, other, over)]
    )
    axis.plot(range(len(seeds)), values, linestyle="none", markersize=6, **style)
    axis.set_xticks(range(len(seeds)), [str(seed) for seed in seeds])


def to_latex(differences: pd.DataFrame) -> str:
    r"""The headline as a booktabs table, a rule between runs.

    Example:
        >>> row = {"run": "b_1", "against": "a", "quantity": "delta", "first": 0.1, "other": 0.4, "difference": 0.3,
        ...     "difference_se": 0.05, "difference_low": 0.2, "difference_high": 0.4, "num": 9}
        >>> print(to_latex(pd.DataFrame([row])))
        \begin{tabular}{llrrrrr}
        \toprule
        Run & Quantity & a & Run & Difference & 95\% interval & Pairs \\
        \midrule
        b\_1 & $\Delta$ & 0.100 & 0.400 & 0.300 & [0.200, 0.400] & 9 \\
        \bottomrule
        \end{tabular}
    """
    first = escape(str(differences["against"].iloc[0]))
    lines = [
        r"\begin{tabular}{llrrrrr}",
        r"\toprule",
        rf"Run & Quantity & {first} & Run & Difference & 95\% interval & Pairs \\",
        r"\midrule",
    ]
    rows = differences.to_dict("records")
    for row in rows:
        one, two, difference, *_ = cells(row)
        places = decimals(float(row["difference_se"]))
        low, high = (fixed(row[f"difference_{end}"], places) for end in ("low", "high"))
        name = r"$\Delta$" if row["quantity"] == "delta" else NAMES[row["quantity"]]
        entries = [
            escape(str(row["run"])),
            name,
            one,
            two,
            difference,
            f"[{low}, {high}]",
            f"{row['num']:.0f}",
        ]
        lines.append(" & ".join(entries).replace("\N{EN DASH}", "--") + r" \\")
    breaks = [at for at, (a, b) in enumerate(pairwise(rows)) if a["run"] != b["run"]]
    for at in reversed(breaks):
        lines.insert(5 + at, r"\midrule")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])
