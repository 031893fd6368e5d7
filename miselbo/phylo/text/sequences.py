"""Sequences as text: FASTA, PHYLIP, NEXUS and Clustal, told apart by their content."""

import re
from collections import Counter

from miselbo.errors import InputError
from miselbo.phylo.text.nexus import Records, nexus_records
from miselbo.phylo.text.phylip import phylip_records
from miselbo.phylo.text.reading import is_nexus

FORMATS = "FASTA (starts with '>'), NEXUS ('#NEXUS'), PHYLIP (two numbers) or Clustal ('CLUSTAL')"
CLUSTAL = re.compile(r"(CLUSTAL|MUSCLE|PROBCONS|MSAPROBS|KALIGN|T-COFFEE|PROMALS)\b[^\n]*\n", re.IGNORECASE)
HEADER = re.compile(r"(\d+)[ \t]+(\d+)[ \t]*[a-zA-Z]*[ \t]*(?:\n|$)")
PIR = re.compile(r">(P1|F1|DL|DC|RL|RC|N1|N3|XX);")


def read_records(text: str, source: str) -> Records:
    """Names and sequences of an alignment's text, with letters for the dots that stand for the first sequence's.

    Raises:
        InputError: none of the formats, or one with mistakes.

    Example:
        >>> read_records("2 8\\nAlpha ACGT\\nBeta  ACGA\\n\\nTTTT\\nTT.A", "text")
        [('Alpha', 'ACGTTTTT'), ('Beta', 'ACGATTTA')]
    """
    start = text.lstrip()
    if is_nexus(text):
        return without_dots(nexus_records(text, source), source)
    fasta_start = re.sub(r"\A(?:[;#][^\n]*\n|\s)*", "", text)
    if fasta_start.startswith(">") and not PIR.match(fasta_start):
        return without_dots(fasta_records(fasta_start, source), source)
    if CLUSTAL.match(start):
        return clustal_records(start, source)
    header = HEADER.match(start)
    if header is None:
        if start.startswith("("):
            raise InputError(f"{source} holds trees (Newick), expected an alignment: {FORMATS}")
        raise InputError(f"{source} is no alignment known here: expected {FORMATS}, got {start[:40]!r}")
    records = phylip_records(start[header.end() :], int(header.group(1)), int(header.group(2)), source)
    return without_dots(records, source, matching=True)


def fasta_records(text: str, source: str) -> Records:
    """FASTA; a name ends at the first blank, or is the whole title where the first words are not different.

    Raises:
        InputError: a sequence without a title.

    Example:
        >>> fasta_records(">Homo sapiens\\nAC\\nGT\\n>Homo erectus\\nACGA\\n", "text")
        [('Homo sapiens', 'ACGT'), ('Homo erectus', 'ACGA')]
    """
    titles: list[str] = []
    rows: list[list[str]] = []
    for line in text.split("\n"):
        if line.startswith(">"):
            titles.append(" ".join(line[1:].split()))
            rows.append([])
        elif not line.startswith(";"):
            rows[-1].append("".join(line.split()))
    if not all(titles):
        raise InputError(
            f"{source} has no name for its sequence {titles.index('') + 1} (FASTA: a line with '>' alone)"
        )
    words = [title.split()[0] for title in titles]
    names = words if len(set(words)) == len(words) else titles
    return [(name, "".join(row)) for name, row in zip(names, rows, strict=True)]


def clustal_records(text: str, source: str) -> Records:
    """Clustal and the programs that write it: blocks of a name, its letters and perhaps their count.

    Raises:
        InputError: a line that is none of these, or a name twice in a block.

    Example:
        >>> clustal_records("CLUSTAL W (1.8)\\n\\nowl  AC 2\\nwren AG 2\\n     *\\n\\nowl  GT\\nwren GT\\n", "text")
        [('owl', 'ACGT'), ('wren', 'AGGT')]
    """
    rows: dict[str, str] = {}
    block: set[str] = set()
    for line in text.split("\n")[1:]:
        if not line.strip() or line[0].isspace():  # the end of a block, or how alike its columns are
            block = set()
            continue
        found = re.fullmatch(r"(\S+)\s+(\S+)(?:\s+\d+)?\s*", line)
        if found is None or found.group(1) in block:
            raise InputError(f"{source} cannot be read as an alignment (Clustal: the line {line[:60]!r})")
        block.add(found.group(1))
        rows[found.group(1)] = rows.get(found.group(1), "") + found.group(2)
    return list(rows.items())


def without_dots(records: Records, source: str, matching: bool = False) -> Records:
    """Dots replaced by the first sequence's letters, which they stand for unless the first sequence has dots itself.

    Where only the ends of sequences are dots they may also be missing data (as mothur and ARB write it), and where the
    first sequence's ends are dots and the inside of another one is too they may be either: both are refused.

    Args:
        records: names and sequences.
        source: for messages.
        matching: whether the format says that dots stand for the first sequence's letters (PHYLIP).

    Returns:
        Records; those of a first sequence with dots inside or everywhere at the ends alone keep them (missing data).

    Raises:
        InputError: dots that may be either.

    Example:
        >>> without_dots([("a", "ACGT"), ("b", "A..C")], "text")
        [('a', 'ACGT'), ('b', 'ACGC')]
    """
    dotted = [row for _, row in records if "." in row]
    if not dotted or len({len(row) for _, row in records}) > 1:
        return records
    first = records[0][1]
    ends = Counter("." in row.strip(".") for row in dotted)  # by whether there are dots between letters
    if "." in first:
        if matching or ("." not in first.strip(".") and ends[True]):
            raise InputError(
                f"{source} has dots in its first sequence, so they cannot stand for its letters: write - or ? for "
                "missing data"
            )
        return records
    if not matching and not ends[True]:
        raise InputError(
            f"{source} has dots at the ends of sequences alone: they may stand for the first sequence's letters or for "
            "missing data. Write the letters, or - for missing data"
        )
    return [
        (name, "".join(own if own != "." else letter for own, letter in zip(row, first, strict=True)))
        for name, row in records
    ]
