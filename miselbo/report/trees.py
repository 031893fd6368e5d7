"""The report's section on trees: the consensus drawn, split probabilities, the log marginal likelihood."""

import math
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
from matplotlib.figure import Figure

from miselbo.errors import InputError
from miselbo.report.checked import read_table
from miselbo.report.style import BLUE, INK, new_figure
from miselbo.report.tables import Table, fixed
from miselbo.runtime.reading import read_json

MOST_SPLITS = 30
NEEDED = {"log_marginal", "log_marginal_se", "draws", "ess", "names", "consensus"}


class Distances(TypedDict, total=False):
    """``distances.json``: rows of numbers for each member and the mixture, and what to say of them."""

    members: list[dict[str, float]]
    mixture: dict[str, float]
    between: dict[str, float]
    consensus: dict[str, int]
    warnings: list[str]


class Trees(TypedDict, total=False):
    """``trees.json``, with the ``table`` of ``splits.csv`` and the distances beside it where there are any."""

    log_marginal: float
    log_marginal_se: float  # null where unknown
    log_marginal_k: float | None
    log_marginal_se_trusted: bool
    ess: float
    draws: int
    sample: str
    kl: float
    mass_outside: float
    names: list[str]
    consensus: list[tuple[int, float]]
    splits: list[dict[str, Any]]
    table: pd.DataFrame
    distances: Distances
    evidence: dict[str, object]


def text(found: Trees) -> list[str]:
    """Sentences on the log marginal likelihood and the distance to the posterior."""
    value, error, k = found["log_marginal"], found["log_marginal_se"], found.get("log_marginal_k")
    spread = "its error is not known"
    if error is not None:
        spread = f"95% interval {value - 1.96 * error:.2f} to {value + 1.96 * error:.2f}"
    tail = ""
    if k is not None:
        narrow = "" if found.get("log_marginal_se_trusted", True) else ", so the interval is too narrow"
        tail = f", Pareto k-hat {k:.2f}{narrow}"
    lines = [
        f"Log marginal likelihood: {value:.2f} nats, {spread} by importance sampling with the mixture of all members "
        f"({found['draws']} draws, effective sample size {found['ess']:.0f}{tail}; with few effective draws the value "
        "is too low)."
    ]
    if "kl" in found:
        lines.append(
            f"Against the posterior given as dataset.posterior: KL {found['kl']:.3f} nats over the topologies in the "
            f"support, and {found['mass_outside']:.4f} of its mass lies outside the support."
        )
    lines += distance_text(found.get("distances", {}))
    lines += [str(found["evidence"]["sentence"])] if "evidence" in found else []
    lines.append(
        "Splits with probability above one half form the majority-rule consensus (results/consensus.nwk); all splits "
        "are in results/splits.csv. q: frequency under the mixture; weighted: the same with importance weights, an "
        "estimate of the posterior."
    )
    return lines


def distance_text(distances: Distances) -> list[str]:
    """Sentences on the trees of the mixture and of its members, from fresh draws."""
    lines, mixture = list[str](), distances.get("mixture", dict[str, float]())
    if "tv" in mixture:
        lines.append(
            f"Total variation from that posterior {mixture['tv']:.3f}, of the importance-weighted trees "
            f"{mixture['weighted_tv']:.3f}; {mixture['q_outside']:.3f} of q is on topologies that the posterior lacks."
        )
    if distances.get("between"):
        between = distances["between"]
        lines.append(
            f"Between the members: average standard deviation of split frequencies {between['asdsf']:.4f}, largest "
            f"difference of a split {between['largest_split_difference']:.3f}."
        )
    different = distances.get("consensus", {}).get("different_splits", 0)
    if different:
        lines.append(
            f"The consensus of the weighted trees (results/consensus_weighted.nwk) differs from that of q in "
            f"{different} splits."
        )
    return lines + distances.get("warnings", [])


COLUMNS = {
    "elbo": ("ELBO", 2),
    "log_marginal": ("Log marginal", 2),
    "ess": ("ESS", 0),
    "kl": ("KL", 3),
    "tv": ("TV", 3),
    "q_outside": ("q outside", 3),
    "asdsf": ("ASDSF", 4),
    "largest_split_difference": ("Largest split", 3),
    "weighted_tv": ("TV, weighted", 3),
    "weighted_asdsf": ("ASDSF, weighted", 4),
}


def distance_table(distances: Distances) -> Table:
    """Every member and the mixture: what fresh draws give, and the distance to the posterior where there is one."""
    labelled = [(f"q_{row['member']}", row) for row in distances["members"]] + [
        ("mixture", distances["mixture"])
    ]
    used = [name for name in COLUMNS if name in distances["members"][0]]
    rows = [[label, *(fixed(row.get(name), COLUMNS[name][1]) for name in used)] for label, row in labelled]
    return Table(["Trees of", *(COLUMNS[name][0] for name in used)], rows, "l" + "r" * len(used))


def split_table(found: Trees) -> Table:
    """The most probable splits."""
    columns = ["q", "weighted"] + (["posterior"] if "kl" in found else [])
    rows = [
        [str(row["split"]), *(fixed(row[column], 3) for column in columns)]
        for row in found["table"].head(MOST_SPLITS).to_dict("records")
    ]
    return Table(["Split", *columns], rows, "l" + "r" * len(columns))


def consensus_figure(found: Trees, footer: str) -> Figure:
    """The consensus as a cladogram from taxon 0, with its splits' probabilities."""
    names = found["names"]
    splits = {int(split): value for split, value in found["consensus"]}
    root = (1 << len(names)) - 1
    children: dict[int, list[int]] = {}
    top = {taxon: 1 << taxon for taxon in range(len(names))}
    for split in [*sorted(splits), root]:
        children[split] = list(dict.fromkeys(top[taxon] for taxon in taxa_of(split)))
        top |= dict.fromkeys(taxa_of(split), split)
    figure, (axis,) = new_figure(1.2 + 0.22 * len(names), footer=footer)
    rows = iter(range(len(names)))
    deepest = depth(children, root)

    def draw(node: int, x: float) -> float:
        if node not in children:
            y = float(next(rows))
            axis.plot([x, deepest], [y, y], color=INK, linewidth=1)
            axis.text(deepest + 0.1, y, names[node.bit_length() - 1], va="center", fontsize=8)
            return y
        heights = [draw(child, x + (child in children)) for child in children[node]]
        axis.plot([x, x], [min(heights), max(heights)], color=INK, linewidth=1)
        middle = (min(heights) + max(heights)) / 2
        for child, y in zip(children[node], heights, strict=True):
            if child in children:
                axis.plot([x, x + 1], [y, y], color=INK, linewidth=1)
                axis.text(
                    x + 0.95, y, f"{splits[child]:.2f}", ha="right", va="bottom", fontsize=7, color=BLUE
                )
        return middle

    draw(root, 0.0)
    axis.set_xlim(-0.2, deepest + max(2.0, math.ceil(0.5 * deepest)))
    axis.axis("off")
    return figure


def depth(children: dict[int, list[int]], node: int) -> int:
    """Levels of inner nodes below a node."""
    return 1 + max((depth(children, child) for child in children[node] if child in children), default=0)


def taxa_of(split: int) -> list[int]:
    """Numbers of the taxa on the side of a split that its bits name.

    Example:
        >>> taxa_of(0b1101)
        [0, 2, 3]
    """
    return [taxon for taxon in range(split.bit_length()) if split >> taxon & 1]


def load(results: Path) -> Trees | None:
    """What :func:`save` wrote, with the ``distances`` and ``evidence`` if there are any; None when it is not there."""
    try:
        found = read_json(results / "trees.json")
        files = {name: results / f"{name}.json" for name in ("distances", "evidence")}
        distances = {name: read_json(file) for name, file in files.items() if file.is_file()}
        table = read_table(results / "splits.csv")
        whole = (
            isinstance(found, dict)
            and set(found) >= NEEDED
            and {"split", "q", "weighted"} <= set(table.columns)
        )
        if not whole:
            return None
        trees: Trees = found | distances | {"table": table}
        return trees
    except InputError:
        return None
