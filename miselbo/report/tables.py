"""Numbers as text: sensible digits, and the tables of the report as plain rows of strings."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from miselbo.bounds import quantities
from miselbo.report.folder import BOUNDS, QUANTITIES, RunFolder, member_label, number

DASH = "–"  # noqa: RUF001  an en dash stands for "no value"
NAMES = {quantity.name: quantity.label for quantity in quantities.QUANTITIES}
MEANINGS = {quantity.name: quantity.meaning for quantity in quantities.QUANTITIES}
ROWS = quantities.names(tabled=False)  # of the headline, those that it has


@dataclass(frozen=True)
class Table:
    """Rows of text; ``align``: a letter per column, l or r (numbers); ``total``: the last row is a sum."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    align: str
    total: bool = False


def decimals(error: float) -> int:
    """Decimals that show two significant digits of a standard error; 3 when there is none, between 0 and 4.

    >>> decimals(0.5172), decimals(0.00996), decimals(13.0), decimals(float("nan"))
    (2, 3, 0, 3)
    """
    if not math.isfinite(error) or error <= 0:
        return 3
    return min(max(1 - math.floor(math.log10(float(f"{error:.1e}"))), 0), 4)


def fixed(value: object, places: int) -> str:
    """A number with that many decimals; a dash for NaN or None, never a negative zero.

    >>> fixed(-0.0004, 2), fixed(float("nan"), 2), fixed(-26.414, 2)
    ('0.00', '–', '-26.41')
    """
    shown = number(value)
    if math.isnan(shown):
        return DASH
    if math.isinf(shown):
        return "inf" if shown > 0 else "-inf"
    text = f"{shown:.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text


def error_text(error: object) -> str:
    """A standard error to two significant digits.

    >>> error_text(0.5172), error_text(1e-9), error_text(0.0), error_text(None)
    ('0.52', '<0.0001', '0', '–')
    """
    size = number(error)
    if size == 0:
        return "0"
    return "<0.0001" if 0 < size < 5e-5 else fixed(size, decimals(size))


def monte_carlo_text(row: Mapping[str, object], name: str) -> str:
    """The Monte Carlo error of a cell, behind a ">" where it is known to be too small.

    >>> monte_carlo_text({"jsd_se_mc": 0.5172, "jsd_se_mc_trusted": False}, "jsd"), monte_carlo_text({}, "jsd")
    ('>0.52', '–')
    """
    text = error_text(row.get(f"{name}_se_mc"))
    small = str(row.get(f"{name}_se_mc_trusted")) == "False" and text != DASH
    return f">{text.lstrip('<')}" if small else text


def plus_minus(value: object, error: object) -> str:
    """Value and standard error, both to two significant digits of the standard error.

    >>> plus_minus(-26.4142, 0.5172), plus_minus(1.5, None), plus_minus(None, None)
    ('-26.41 ± 0.52', '1.500', '–')
    """
    size = number(error)
    text = fixed(value, decimals(size))
    return text if math.isnan(number(value)) or math.isnan(size) else f"{text} ± {error_text(size)}"


def precise(value: float, *errors: float) -> str:
    """A value to two digits of the smallest of its errors: what differs beyond its Monte Carlo error looks different.

    >>> precise(-23.43842, 0.29, 0.0031), precise(1.5, math.nan)
    ('-23.4384', '1.500')
    """
    known = [decimals(error) for error in errors if math.isfinite(error) and error > 0]
    return fixed(value, max(known, default=3))


def significant(value: object, digits: int = 3) -> str:
    """A number to some significant digits, without an exponent; thousands keep all their digits.

    >>> significant(12.3456), significant(12345.6), significant(0.01234), significant(None), significant(0)
    ('12.3', '12346', '0.0123', '–', '0')
    """
    shown = number(value)
    if not math.isfinite(shown) or shown == 0:
        return fixed(shown, 0)
    return fixed(shown, max(digits - 1 - math.floor(math.log10(abs(shown))), 0))


def bits_per_dim(nats: float, num_dims: float) -> float:
    """-nats / (num_dims log 2): the code length of one dimension when ``nats`` is a bound on log p(x).

    >>> round(bits_per_dim(-44.361, 64), 3)
    1.0
    """
    return -nats / (num_dims * math.log(2))


def headline(run: RunFolder) -> Table:
    """The headline, one quantity per line; bits/dim for the bounds only, when ``num_dims`` is known."""
    row, num_dims = run.headline, number(run.summary.get("num_dims"))
    with_bits = num_dims > 0
    with_interval = "delta_low" in row
    rows = []
    for name in ROWS:
        if name not in row:
            continue
        value, error = number(row[name]), number(row.get(f"{name}_se"))
        cells = [
            NAMES[name],
            precise(value, error, number(row.get(f"{name}_se_mc"))),
            error_text(error),
            monte_carlo_text(row, name),
            *[interval(row, name)] * with_interval,
        ]
        if with_bits:
            bits = fixed(bits_per_dim(value, num_dims), decimals(bits_per_dim(-error, num_dims)))
            cells.append(bits if name in BOUNDS else "")
        rows.append([*cells, MEANINGS[name].format(size=run.size, most=f"{math.log(run.size):.3f}")])
    columns = ["", "nats", "s.e. (data)", "s.e. (Monte Carlo)"]
    columns += [*["95% interval"] * with_interval, *["bits/dim"] * with_bits, "What it is"]
    return Table(columns, rows, "lrrr" + "r" * (with_interval + with_bits) + "l")


def interval(row: Mapping[str, object], name: str) -> str:
    """The 95% interval of a difference, or nothing where there is none.

    >>> interval({"gain_se": 0.01, "gain_low": -0.0012, "gain_high": 0.038}, "gain"), interval({}, "gain")
    ('-0.001 to 0.038', '')
    """
    if math.isnan(number(row.get(f"{name}_low"))):
        return ""
    places = decimals(number(row.get(f"{name}_se")))
    return f"{fixed(row[f'{name}_low'], places)} to {fixed(row[f'{name}_high'], places)}"


def per_member(run: RunFolder) -> Table:
    """One line per member at its largest L, with its mean posterior responsibility where it was recorded."""
    frame = run.per_member[run.per_member["L"] == run.per_member["L"].max()]
    optional = [column for column in ("ess", "max_weight") if column in frame.columns]
    shares = [f"responsibility_{s}" for s in range(1, run.size + 1)]
    with_shares = len(frame) == run.size and all(column in run.per_example.columns for column in shares)
    with_gaps = len(frame) > 1 and "iwelbo_to_best" in frame.columns
    rows = []
    for position, (_, row) in enumerate(frame.iterrows()):
        cells = [member_label(row["member"])]
        for name in ("iwelbo", "elbo"):
            error = row.get(f"{name}_se")
            cells += [plus_minus(row[name], error), monte_carlo_text(row, name)]
        if with_gaps:
            cells.append(interval(row, "iwelbo_to_best"))
        cells += [significant(row[column]) for column in optional]
        if with_shares:
            cells.append(fixed(run.per_example[shares[position]].mean(), 3))
        rows.append(cells)
    titles = {"ess": "Effective samples", "max_weight": "Largest weight"}
    columns = ["Member", "IWELBO", "MC s.e.", "ELBO", "MC s.e.", *["Behind the best"] * with_gaps]
    columns += [titles[column] for column in optional]
    columns += ["Responsibility"] * with_shares
    return Table(columns, rows, "l" + "r" * (len(columns) - 1))


def cost(run: RunFolder) -> Table | None:
    """Seconds, decoder passes and share of the time of every stage, with a sum."""
    stages = run.summary.get("cost") or []
    if not stages:
        return None
    seconds = [number(stage.get("seconds")) for stage in stages]
    passes = [number(stage.get("decoder_passes")) for stage in stages]
    total = sum(value for value in seconds if math.isfinite(value))
    counted = [value for value in passes if math.isfinite(value)]
    rows = [
        [str(stage.get("stage", "")), significant(time), _thousands(count), _percent(time, total)]
        for stage, time, count in zip(stages, seconds, passes, strict=True)
    ]
    count = sum(counted) if counted else math.nan
    rows.append(["sum", significant(total), _thousands(count), _percent(total, total)])
    return Table(["Stage", "Seconds", "Decoder passes", "Share of time"], rows, "lrrr", total=True)


def _thousands(value: float) -> str:
    return f"{value:,.0f}" if math.isfinite(value) else DASH


def _percent(part: float, total: float) -> str:
    return f"{100 * part / total:.1f} %" if total > 0 and math.isfinite(part) else DASH


def grid(bounds: pd.DataFrame) -> Table:
    """Every (S', L') cell: values to two digits of the Monte Carlo error; what speaks against its weights, if known."""
    titles = {"share_k_above_0.7": "k > 0.7", "non_finite": "Not finite"}
    present = [name for name in titles if name in bounds.columns]
    shown = [name for name in QUANTITIES if name in bounds.columns]
    rows = []
    for _, row in bounds.iterrows():
        cells = [
            precise(*(number(row.get(f"{name}{tail}")) for tail in ("", "_se", "_se_mc"))) for name in shown
        ]
        if "share_k_above_0.7" in present:
            share = number(row["share_k_above_0.7"])
            cells.append(f"{100 * share:.0f} %" if math.isfinite(share) else DASH)
        if "non_finite" in present:
            cells.append(fixed(row["non_finite"], 0))
        rows.append([f"{row['S']:.0f}", f"{row['L']:.0f}", *cells])
    columns = ["S", "L", *(NAMES[name] for name in shown), *(titles[name] for name in present)]
    return Table(columns, rows, "r" * len(columns))


def protocol(run: RunFolder) -> Table:
    """Everything the run says about how its numbers were made."""
    rows = [
        [key, ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else str(value)]
        for key, value in run.protocol.items()
    ]
    return Table(["Key", "Value"], rows, "ll")
