"""Is one run better than another? Paired differences of every bound, with intervals, for runs of one protocol."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from miselbo.errors import InputError

if TYPE_CHECKING:
    from miselbo.report.sections import Report

__all__ = ["write"]


def write(
    entries: Sequence[tuple[str, Mapping[int, Path]]], folder: str | Path, allow: Sequence[str] = ()
) -> dict[str, object]:
    """Compare runs with the first one and write ``compare.csv``, ``.md``, ``.tex``, ``.html`` and the figure.

    Args:
        entries: name and run folders by seed of each; a single run has one. The first is the reference.
        folder: where to write.
        allow: keys of the protocol that may differ although they change what the numbers mean.

    Returns:
        ``verdicts`` (sentences), ``over`` ("examples" or "seeds"), ``differences``, ``protocols`` and, for trees,
        ``bayes_factors``: rows of ``compare.csv``, of ``protocols.csv`` and of ``bayes_factors.csv``.

    Raises:
        InputError: fewer than two entries, one without a result, nothing to pair, or numbers that do not mean the same;
            nothing is written then.

    Example:
        >>> write([("a", {0: Path("no/such/a")}), ("b", {0: Path("no/such/b")})], "out")
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: no run folder at no/such/a...
    """
    import pandas as pd

    from miselbo.report.compare import evidence, page, pairs, protocols
    from miselbo.report.folder import read
    from miselbo.report.html import to_markdown, to_page, write_together

    if len(entries) < 2:
        raise InputError(
            f"a comparison needs two runs, or configurations of sweeps, got {len(entries)}: runs=[a,b]"
        )
    found = [pairs.Entry(name, {seed: read(path) for seed, path in runs.items()}) for name, runs in entries]
    over, reference = pairs.unit(found), found[0]
    for entry in found:
        for run in entry.runs.values():
            if run.protocol.get("method") == "multilevel":
                raise InputError(
                    f"{run.path} was evaluated by evaluation.method=multilevel: examples have other numbers of draws "
                    "each and cannot be paired; evaluate it with evaluation.method=full"
                )
    told = []
    for entry in found[1:]:
        each = [(couple, protocols.differences(*couple)) for couple in pairs.couples(reference, entry, over)]
        for (one, two), differing in each:
            names = (reference.name, entry.name) if over == "examples" else (str(one.path), str(two.path))
            protocols.check(differing, names, allow)
        told.append((entry.name, each[0][1]))
    differences = pairs.table(found, over)
    factors = evidence.table(found, over)
    report = page.build(found, over, differences, factors, told)
    rows = [
        {"run": name, "key": d.key, "first": d.first, "other": d.other, "blocks": d.blocks}
        for name, listed in told
        for d in listed
    ]
    place = Path(folder)
    html, figures = to_page(report, place)
    columns = ["run", "key", "first", "other", "blocks"]
    texts = {
        "compare.csv": differences.to_csv(index=False),
        "protocols.csv": pd.DataFrame(rows, columns=columns).to_csv(index=False),
        "compare.md": to_markdown(report),
        "compare.tex": page.to_latex(differences) + "\n",
        **({"bayes_factors.csv": factors.to_csv(index=False)} if len(factors) else {}),
    }
    files = {place / "compare.html": html, **{place / name: text.encode() for name, text in texts.items()}}
    write_together(files | figures)
    return {
        "verdicts": page.verdicts(differences),
        "over": over,
        "differences": differences.to_dict("records"),
        "protocols": rows,
        "bayes_factors": factors.to_dict("records"),
        "report": str(place / "compare.html"),
        "text": to_text(report),
    }


def to_text(report: "Report") -> str:
    """Verdict and table for the terminal."""
    table = report.headline
    rows = [list(table.columns), *map(list, table.rows)]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table.columns))]
    lines = [
        "  ".join(
            cell.ljust(width) if side == "l" else cell.rjust(width)
            for cell, width, side in zip(row, widths, table.align, strict=True)
        ).rstrip()
        for row in rows
    ]
    return "\n".join(["", report.protocol_line, "", *lines, "", report.glance])
