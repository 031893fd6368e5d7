"""The headline for a paper: one booktabs table, its protocol in the caption."""

import math

from miselbo.report.folder import RunFolder, number
from miselbo.report.heading import short_protocol
from miselbo.report.tables import BOUNDS, NAMES, ROWS, bits_per_dim, error_text, precise

SYMBOLS = {"delta": r"$\Delta$"}


def escape(text: str) -> str:
    r"""Text as LaTeX takes it.

    Example:
        >>> print(escape("a_b 5%"))
        a\_b 5\%
    """
    parts = {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": "$<$",
        ">": "$>$",
    }
    return "".join(parts.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)


def headline(run: RunFolder) -> str:
    """The headline as a float with caption and label: value, error over the data, Monte Carlo error, bits/dim."""
    dims = number(run.summary.get("num_dims"))
    heads = ["", "nats", "s.e.\\ (data)", "s.e.\\ (Monte Carlo)", *(["bits/dim"] if dims > 0 else [])]
    lines = [
        "% \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{caption(run)}}}",
        r"\label{tab:miselbo}",
        rf"\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
        r"\midrule",
    ]
    for name in ROWS:
        if name not in run.headline:
            continue
        if name == "delta":
            lines.append(r"\midrule")
        value, error, noise = (number(run.headline.get(f"{name}{tail}")) for tail in ("", "_se", "_se_mc"))
        cells = [SYMBOLS.get(name, escape(NAMES[name])), precise(value, error, noise)]
        cells += [error_text(error), error_text(noise)]
        if dims > 0:
            cells.append(
                f"{bits_per_dim(value, dims):.4f}" if name in BOUNDS and math.isfinite(value) else ""
            )
        lines.append(" & ".join(cells).replace("\N{EN DASH}", "--").replace("<", "$<$") + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}"]) + "\n"


def caption(run: RunFolder) -> str:
    """What a reader of the table alone must know."""
    has = run.protocol
    words = [f"{has.get('model', 'Ensemble')} on {short_protocol(run)}"]
    words += [str(has[key]) for key in ("binarisation", "replicates") if has.get(key)]
    return escape(". ".join(words).replace("|", " ") + ".")
