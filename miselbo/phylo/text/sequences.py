"""Sequences as text: FASTA, PHYLIP and NEXUS, told apart by their content.

FASTA and NEXUS are read by Biopython. PHYLIP has a reader of its own: names strict (ten characters) or relaxed (to the
first blank), sequences interleaved or sequential, with the numbers of the header deciding what fits.
"""

import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from miselbo.errors import InputError
from miselbo.runtime.gzipped import unpacked

Records = list[tuple[str, str]]  # names and sequences
DATATYPES = ("dna", "rna", "nucleotide")
CODE_OF = {
    "AG": "R", "CT": "Y", "CG": "S", "AT": "W", "GT": "K", "AC": "M", "CGT": "B", "AGT": "D", "ACT": "H", "ACG": "V",
    "ACGT": "N", "A": "A", "C": "C", "G": "G", "T": "T",
}  # fmt: skip
SET = re.compile(r"\{([ACGTU]+)\}", re.IGNORECASE)


def read_text(path: Path) -> str:
    """A text file, gzipped or not, with any line ends.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    try:
        text = unpacked(path.read_bytes(), path, "Unpack it by hand, or get it again.").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"cannot read {path}: it is no UTF-8 text ({error.reason}); save it as UTF-8"
        ) from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_records(text: str, source: str) -> Records:
    """Names and sequences of an alignment's text.

    Raises:
        InputError: none of the formats, or one with mistakes.

    Example:
        >>> read_records("2 8\\nAlpha ACGT\\nBeta  ACGA\\n\\nTTTT\\nTTTA", "text")
        [('Alpha', 'ACGTTTTT'), ('Beta', 'ACGATTTA')]
    """
    start = text.lstrip()
    if start.startswith(">"):
        return fasta(start)
    if start[:6].upper() == "#NEXUS":
        return nexus(start, source)
    header = re.match(r"(\d+)[ \t]+(\d+)[ \t]*[isIS]?[ \t]*(?:\n|$)", start)
    if header is None:
        raise InputError(
            f"{source} is no alignment known here: expected FASTA (starts with '>'), NEXUS ('#NEXUS') or "
            f"PHYLIP (two numbers), got {start[:40]!r}"
        )
    return phylip(start[header.end() :], int(header.group(1)), int(header.group(2)), source)


def fasta(text: str) -> Records:
    """FASTA; a name ends at the first blank."""
    from Bio.SeqIO.FastaIO import SimpleFastaParser

    return [
        ("".join(title.split()[:1]), sequence) for title, sequence in SimpleFastaParser(io.StringIO(text))
    ]


def nexus(text: str, source: str) -> Records:
    """The matrix of a NEXUS file; sets of bases in braces become IUPAC codes.

    Raises:
        InputError: no matrix of nucleotides.
    """
    from Bio.Nexus.Nexus import Nexus

    text = SET.sub(
        lambda found: CODE_OF["".join(sorted(set(found.group(1).upper().replace("U", "T"))))], text
    )
    try:
        content: Any = Nexus(text)
        records = [(name, str(content.matrix[name])) for name in content.taxlabels]
    except Exception as error:  # Biopython raises many kinds, NexusError among them
        raise InputError(f"{source} cannot be read as an alignment (NEXUS: {str(error)[:300]})") from None
    if not records:
        raise InputError(f"{source} cannot be read as an alignment (NEXUS: it holds no matrix)")
    if content.datatype not in DATATYPES:
        kind = "protein data" if content.datatype == "protein" else f"datatype={content.datatype}"
        raise InputError(
            f"{source} holds {kind}, expected datatype={'|'.join(DATATYPES)}: the model is for DNA or RNA"
        )
    marks = str.maketrans({content.missing or "?": "?", content.gap or "-": "-"})
    return [(name, sequence.translate(marks)) for name, sequence in records]


def phylip(text: str, num_taxa: int, sites: int, source: str) -> Records:
    """PHYLIP after its header: the first way to read the lines that gives what the header announces.

    Raises:
        InputError: no way does, or a dot, which would stand for the first sequence's letter.
    """
    lines = [line for line in text.split("\n") if line.strip()]
    layouts: Sequence[Callable[..., Records]] = (interleaved, sequential)
    for split_name in (relaxed_name, strict_name):
        for layout in layouts:
            records = layout(lines, num_taxa, sites, split_name)
            if len(records) != num_taxa or any(not name or len(row) != sites for name, row in records):
                continue
            if any("." in row for _, row in records):
                raise InputError(
                    f"{source} has dots in its sequences, which in PHYLIP stand for the first sequence's letter: "
                    "write the letters, or - for a gap"
                )
            return records
    raise InputError(
        f"{source} cannot be read as an alignment (PHYLIP: its header announces {num_taxa} sequences of {sites} "
        f"characters, and its {len(lines)} lines cannot be read as that, neither interleaved nor sequential)"
    )


def relaxed_name(line: str) -> tuple[str, str]:
    """Name to the first blank, and the rest without blanks."""
    name, *rest = line.split()
    return name, "".join(rest)


def strict_name(line: str) -> tuple[str, str]:
    """Name of ten characters, and the rest without blanks."""
    return line[:10].strip(), "".join(line[10:].split())


def interleaved(
    lines: Sequence[str], num_taxa: int, sites: int, split_name: Callable[[str], tuple[str, str]]
) -> Records:
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


def sequential(
    lines: Sequence[str], num_taxa: int, sites: int, split_name: Callable[[str], tuple[str, str]]
) -> Records:
    """One taxon after another, each on as many lines as it needs."""
    records: Records = []
    for line in lines:
        if records and len(records[-1][1]) < sites:
            records[-1] = (records[-1][0], records[-1][1] + "".join(line.split()))
        else:
            records.append(split_name(line))
    return records
