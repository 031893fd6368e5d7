"""The report's parts on a multilevel evaluation (what each level cost and whether it paid) and on an annealed one."""

from miselbo.report.summary import Annealed, Multilevel
from miselbo.report.tables import NAMES, Table, plus_minus, significant
from miselbo.report.texts import paragraphs

TEXT = """
Most examples had few draws and few had many: level k adds the expected change of a bound from the draws of the level
before to its own, measured on the examples of that level (docs/multilevel.md). The sums estimate what the full run at
this L estimates. V is the variance of that change over examples and draws; a level has examples in proportion to
sqrt(V / cost).

{sentence}
"""


def text(about: Multilevel) -> list[str]:
    """What stands above the table."""
    return paragraphs(TEXT, sentence=about["sentence"])


def table(about: Multilevel) -> Table:
    """One row per level, and the sum of the passes against the full run's.

    Example:
        >>> row = {"L": 1, "variance_miselbo": 0.5, "passes_each": 2, "examples": 10, "replicates": 1, "passes": 20}
        >>> shown = table({"levels": [row], "pilot_passes": 4, "passes": 24, "full_passes": 80})
        >>> shown.columns, shown.rows[-1]
        (['Draws', 'V of MISELBO', 'Passes of one', 'Examples', 'Times', 'Passes'], ['sum', '', '', '', '', '24 of 80'])
    """
    rows, levels = [], about["levels"]
    variances = [name for name in NAMES if f"variance_{name}" in levels[0]]
    for level in levels:
        rows.append(
            [
                f"{level['L']:,}",
                *(f"{level[f'variance_{name}']:.2g}" for name in variances),
                significant(level["passes_each"]),
                f"{level['examples']:,}",
                f"{level['replicates']:,}",
                f"{level['passes']:,}",
            ]
        )
    rows.append(["pilot", *[""] * (len(variances) + 3), f"{about['pilot_passes']:,}"])
    rows.append(["sum", *[""] * (len(variances) + 3), f"{about['passes']:,} of {about['full_passes']:,}"])
    columns = ["Draws", *(f"V of {NAMES[name]}" for name in variances)]
    columns += ["Passes of one", "Examples", "Times", "Passes"]
    return Table(columns, rows, "r" * len(columns), total=True)


def annealed_table(about: Annealed) -> Table:
    """The annealed bound beside the joint bound of the same examples, with its passes.

    Example:
        >>> found = {"annealed": -2.0, "annealed_se": 0.1, "annealed_se_mc": 0.01, "joint_bound": -2.5, "gain": 0.5,
        ...          "gain_se": 0.02, "acceptance": 0.75, "passes": 100, "full_passes": 50, "num_data": 7}
        >>> [row[0] for row in annealed_table(found).rows]
        ['Annealed', 'Joint bound', 'Difference']
    """
    count = f"{about['num_data']:,}"
    rows = [
        [
            "Annealed",
            plus_minus(about["annealed"], about["annealed_se"]),
            plus_minus(0.0, about["annealed_se_mc"]).split("± ")[-1],
            f"{about['passes']:,} with gradient",
            count,
        ],
        [
            "Joint bound",
            plus_minus(about["joint_bound"], None),
            "",
            f"{about['full_passes']:,} forward",
            count,
        ],
        ["Difference", plus_minus(about["gain"], about["gain_se"]), "", "", count],
    ]
    return Table(["", "Nats", "MC s.e.", "Passes of one example", "Examples"], rows, "lrrrr")
