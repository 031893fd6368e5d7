"""PHYLIP as people have it: names strict (ten characters) or relaxed (to the first blank, or to two blanks as in PAML),
sequences interleaved or sequential, with the numbers of the header deciding what fits."""

import itertools
from collections.abc import Callable, Sequence

from miselbo.errors import InputError

Records = list[tuple[str, str]]  # names and sequences
Split = Callable[[str], tuple[str, str]]
LETTERS = frozenset("ACGTURYSWKMBDHVNX-?.~acgturyswkmbdhvnx")


def phylip_records(text: str, num_taxa: int, sites: int, source: str) -> Records:
    """PHYLIP after its header: the first way to read the lines that gives what the header announces.

    Of several ways one that gives nucleotides is taken.

    Raises:
        InputError: no way does.

    Example:
        >>> phylip_records("Alpha ACGT\\nBeta  ACGA\\n\\nTTTT\\nTTTA", 2, 8, "text")
        [('Alpha', 'ACGTTTTT'), ('Beta', 'ACGATTTA')]
    """
    lines = [line for line in text.split("\n") if line.strip()]
    fitting = []
    for split_name, layout in itertools.product(
        (relaxed_name, spaced_name, strict_name), (interleaved, sequential)
    ):
        records = layout(lines, num_taxa, sites, split_name)
        if len(records) != num_taxa or any(not name or len(row) != sites for name, row in records):
            continue
        different = len({name for name, _ in records}) == num_taxa
        if different and all(LETTERS.issuperset(row) for _, row in records):
            return records
        fitting.append((not different, records))
    if fitting:  # protein data or mistakes, for the caller to name
        return min(fitting, key=lambda found: found[0])[1]
    raise InputError(
        f"{source} cannot be read as an alignment (PHYLIP: its header announces {num_taxa} sequences of {sites} "
        f"characters, and its {len(lines)} lines cannot be read as that, neither interleaved nor sequential)"
    )


def relaxed_name(line: str) -> tuple[str, str]:
    """Name to the first blank, and the rest without blanks."""
    name, *rest = line.split()
    return name, "".join(rest)


def spaced_name(line: str) -> tuple[str, str]:
    """Name to the first two blanks or tab, and the rest without blanks.

    Example:
        >>> spaced_name("Homo sapiens  ACGT ACGT")
        ('Homo sapiens', 'ACGTACGT')
    """
    name, _, rest = line.strip().replace("\t", "  ").partition("  ")
    return name, "".join(rest.split())


def strict_name(line: str) -> tuple[str, str]:
    """Name of ten characters, and the rest without blanks."""
    return line[:10].strip(), "".join(line[10:].split())


def interleaved(lines: Sequence[str], num_taxa: int, sites: int, split_name: Split) -> Records:
    """Blocks of one line per taxon; later blocks may repeat the names."""
    if not num_taxa or len(lines) % num_taxa:
        return []
    names = [split_name(line) for line in lines[:num_taxa]]
    rows = [row for _, row in names]
    for number, line in enumerate(lines[num_taxa:]):
        taxon = number % num_taxa
        name, rest = split_name(line)
        rows[taxon] += rest if name == names[taxon][0] else "".join(line.split())
    return [(name, row) for (name, _), row in zip(names, rows, strict=True)]


def sequential(lines: Sequence[str], num_taxa: int, sites: int, split_name: Split) -> Records:
    """One taxon after another, each on as many lines as it needs."""
    records: Records = []
    for line in lines:
        if records and len(records[-1][1]) < sites:
            records[-1] = (records[-1][0], records[-1][1] + "".join(line.split()))
        else:
            records.append(split_name(line))
    return records
