"""Nucleotide alignments: read, checked, and compressed to site patterns with counts.

A character is a set of the states A, C, G, T, kept as four bits: A = 1, C = 2, G = 4, T = 8; an IUPAC code is the union
of its bases, and ``- ? N X . ~`` are all four (missing). Taxa are numbered in the order of the file.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from miselbo.errors import InputError
from miselbo.phylo.text.nexus import Records
from miselbo.phylo.text.reading import read_text
from miselbo.phylo.text.sequences import read_records

MISSING = 15
CODES = {
    "A": 1, "C": 2, "G": 4, "T": 8, "U": 8, "R": 5, "Y": 10, "S": 6, "W": 9, "K": 12, "M": 3,
    "B": 14, "D": 13, "H": 11, "V": 7, "N": 15, "X": 15, "-": 15, "?": 15, ".": 15, "~": 15,
}  # fmt: skip
MIN_TAXA = 4


@dataclass(frozen=True)
class Patterns:
    """Distinct site patterns: ``codes`` [n, P] (uint8 state sets) and how often each occurs, ``counts`` [P]."""

    codes: np.ndarray
    counts: np.ndarray

    @cached_property
    def tips(self) -> np.ndarray:
        """Tip vectors [n, 4, P], 1 for every state of the set."""
        bits = (self.codes[:, None, :] >> np.arange(4, dtype=np.uint8)[None, :, None]) & 1
        return np.ascontiguousarray(bits.astype(np.uint8))


@dataclass(frozen=True, eq=False)
class Alignment:
    """Aligned nucleotide sequences.

    Args:
        names: of the n >= 4 taxa.
        codes: [n, sites] state sets, see the module.
        source: where they come from, for messages.
        notes: sentences on how the file was read.

    Raises:
        InputError: fewer than four taxa, or a name twice.

    Example:
        >>> alignment = Alignment.from_sequences({"a": "ACGT-", "b": "ACGA-", "c": "ACTA-", "d": "GCTA?"})
        >>> alignment.num_taxa, alignment.num_sites, alignment.num_missing, alignment.patterns.counts.sum()
        (4, 5, 1, np.int64(4))
    """

    names: tuple[str, ...]
    codes: np.ndarray
    source: str = field(default="alignment")
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.names) < MIN_TAXA:
            raise InputError(
                f"{self.source} holds {len(self.names)} taxa ({', '.join(self.names)}): "
                f"an unrooted tree with a choice of topology needs at least {MIN_TAXA}"
            )
        twice = [name for name, count in Counter(self.names).items() if count > 1]
        if twice:
            raise InputError(f"{self.source} holds the same taxon more than once: {', '.join(twice[:10])}")
        if self.codes.shape[1] == 0:
            raise InputError(f"{self.source} holds no sites")

    @classmethod
    def from_file(cls, path: str | Path) -> "Alignment":
        """Read FASTA, PHYLIP (relaxed or strict, interleaved or sequential), NEXUS or Clustal, gzipped or not.

        Raises:
            InputError: the file cannot be read, or does not hold aligned nucleotide sequences of four taxa or more.
        """
        path = Path(path)
        text = read_text(path)
        return cls.from_sequences(dict_of(read_records(text, str(path)), str(path)), str(path))

    @classmethod
    def from_sequences(cls, sequences: dict[str, str], source: str = "alignment") -> "Alignment":
        """From sequences by name; a dot is missing data here, and counted.

        Raises:
            InputError: unequal lengths, or characters that are no nucleotides.
        """
        lengths = Counter(len(sequence) for sequence in sequences.values())
        if len(lengths) > 1:
            usual = lengths.most_common(1)[0][0]
            odd = [f"{name} ({len(s)})" for name, s in sequences.items() if len(s) != usual]
            raise InputError(
                f"{source} is not aligned: most sequences have {usual} characters, but not {', '.join(odd[:5])}"
                f"{' and others' if len(odd) > 5 else ''}; align the sequences first"
            )
        table = np.zeros(256, dtype=np.uint8)
        for letter, code in CODES.items():
            table[ord(letter)] = table[ord(letter.lower())] = code
        rows = []
        for sequence in sequences.values():
            row = table[np.frombuffer(sequence.encode(), dtype=np.uint8)]
            if (row == 0).any():
                raise foreign_letters(sequences, source)
            rows.append(row)
        codes = np.stack(rows) if rows else np.zeros((0, 0), dtype=np.uint8)
        dots = sum(sequence.count(".") for sequence in sequences.values())
        notes = (f"{dots} dots are taken as missing data",) if dots else ()
        return cls(tuple(sequences), codes, source, notes)

    @property
    def num_taxa(self) -> int:
        """Number of taxa, n."""
        return len(self.names)

    @property
    def num_sites(self) -> int:
        """Number of columns of the file."""
        return int(self.codes.shape[1])

    @property
    def num_missing(self) -> int:
        """Columns where every taxon is missing; they have likelihood 1 and are dropped."""
        return int((self.codes == MISSING).all(0).sum())

    @cached_property
    def patterns(self) -> Patterns:
        """Distinct columns, those without any information dropped."""
        informative = self.codes[:, ~(self.codes == MISSING).all(0)]
        columns, counts = np.unique(informative, axis=1, return_counts=True)
        return Patterns(np.ascontiguousarray(columns), counts)

    @cached_property
    def merged_patterns(self) -> Patterns:
        """Distinct columns up to relabelling the four states, which have one likelihood under JC69.

        Every column is replaced by the least of its 24 relabellings; sets of states (ambiguity codes) are relabelled
        element by element, so that the merge is exact for them too.
        """
        columns, counts = self.patterns.codes, self.patterns.counts
        relabelled = [relabelling(order)[columns].T for order in itertools.permutations(range(4))]
        least = [min(rows, key=bytes) for rows in zip(*relabelled, strict=True)]
        if not least:
            return self.patterns
        merged, inverse = np.unique(np.stack(least), axis=0, return_inverse=True)
        total = np.bincount(inverse.ravel(), weights=counts).astype(counts.dtype)
        return Patterns(np.ascontiguousarray(merged.T), total)

    @cached_property
    def duplicates(self) -> list[tuple[str, ...]]:
        """Groups of taxa with identical sequences; they stay in the tree."""
        groups: dict[bytes, list[str]] = {}
        for name, row in zip(self.names, self.codes, strict=True):
            groups.setdefault(row.tobytes(), []).append(name)
        return [tuple(group) for group in groups.values() if len(group) > 1]

    def describe(self) -> str:
        """One or more sentences on size, patterns, missing columns and duplicates."""
        parts = [
            f"{self.num_taxa} taxa, {self.num_sites} sites, {len(self.patterns.counts)} patterns "
            f"({len(self.merged_patterns.counts)} up to relabelling the states)"
        ]
        if self.num_missing:
            parts.append(f"{self.num_missing} columns hold no base and add nothing")
        parts += self.notes
        parts += [f"identical sequences: {', '.join(group)}" for group in self.duplicates]
        return "; ".join(parts)


def relabelling(order: Sequence[int]) -> np.ndarray:
    """Table of 16 state sets after state i became ``order[i]``.

    Example:
        >>> relabelling([1, 0, 2, 3])[[1, 2, 3, 4]]
        array([2, 1, 3, 4], dtype=uint8)
    """
    sets = [sum(1 << order[i] for i in range(4) if code >> i & 1) for code in range(16)]
    return np.array(sets, dtype=np.uint8)


def foreign_letters(sequences: dict[str, str], source: str) -> InputError:
    """The error for characters that are no nucleotides: protein data most often."""
    letters = Counter(letter for sequence in sequences.values() for letter in sequence.upper())
    foreign = sorted(letter for letter in letters if letter not in CODES)
    kind = "protein data" if set(foreign) & set("EFILPQZ") else "no nucleotide data"
    return InputError(
        f"{source} looks like {kind}: characters {' '.join(foreign[:12])} are no nucleotide codes; "
        "the model is for DNA or RNA (A C G T U, IUPAC ambiguity codes, - ? N for missing)"
    )


def dict_of(records: Records, source: str) -> dict[str, str]:
    """Records by name; InputError for a name twice."""
    twice = [name for name, count in Counter(name for name, _ in records).items() if count > 1]
    if twice:
        raise InputError(
            f"{source} holds the same taxon more than once: {', '.join(twice[:10])} "
            "(in relaxed PHYLIP a name ends at the first blank)"
        )
    return dict(records)
