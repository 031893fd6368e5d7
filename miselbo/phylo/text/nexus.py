"""The matrix of a NEXUS file (Maddison, Swofford and Maddison 1997), as people and programs write it.

Labels may hold hyphens, apostrophes and what else is no blank, or anything in quotes; rows stand in one piece, on
several lines or interleaved, whatever the file says of it. Sets of bases become IUPAC codes; a set with a gap or a
missing character in it is missing, as a gap is to the model.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from miselbo.errors import InputError
from miselbo.phylo.text.reading import QUOTED_WORD, nexus_start, without_comments

Records = list[tuple[str, str]]  # names and sequences
Rows = list[tuple[str, list[str]]]  # names and states
NUCLEOTIDES = ("dna", "rna", "nucleotide")
BLOCKS = ("data", "characters")
COMMAND = re.compile(rf"(?:[^;']+|{QUOTED_WORD}|')+")
LABEL = re.compile(rf"\s*({QUOTED_WORD}|\"[^\"\n]*\"|\S+)")
OPTION = re.compile(
    r"(missing|gap|matchchar)\s*=\s*([\"']?)(\S)\2|(\w+)(?:\s*=\s*(\"[^\"]*\"|\w+\s*\([^)]*\)|\S+))?",
    re.IGNORECASE,
)
EQUATE = re.compile(r"(\S)\s*=\s*(\{[^}]*\}|\([^)]*\)|\S)")
STATES = re.compile(r"\{[^}]*\}|\([^)]*\)|\S")
CODE_OF = {
    "AG": "R", "CT": "Y", "CG": "S", "AT": "W", "GT": "K", "AC": "M", "CGT": "B", "AGT": "D", "ACT": "H", "ACG": "V",
    "ACGT": "N", "A": "A", "C": "C", "G": "G", "T": "T",
}  # fmt: skip
BASES_OF = {code: bases for bases, code in CODE_OF.items()} | {"U": "T"}


@dataclass
class Matrix:
    """A matrix with what its block says of it."""

    text: str
    labels: list[str]
    num_taxa: int | None = None
    num_sites: int | None = None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def datatype(self) -> str:
        """In small letters; empty where the block names none."""
        return self.options.get("datatype", "").lower()


def commands(text: str) -> Iterator[tuple[str, str, str]]:
    """Block, first word and the rest of every command, the words in small letters; comments are left out.

    Example:
        >>> list(commands("#NEXUS\\nBegin Data; Dimensions [x] ntax=4; end;"))
        [('data', 'dimensions', 'ntax=4'), ('', 'end', '')]
    """
    block = ""
    for command in COMMAND.findall(without_comments(nexus_start(text)[len("#NEXUS") :])):
        head = re.match(r"\s*(\S+)\s*", command)
        if head is None:
            continue
        word, rest = head.group(1).lower(), command[head.end() :].strip()
        if word == "begin":
            block = rest.lower().split()[0] if rest else ""
            continue
        if word in ("end", "endblock"):
            block = ""
        yield block, word, rest


def nexus_records(text: str, source: str) -> Records:
    """Names and sequences of a NEXUS file's matrix of nucleotides.

    Raises:
        InputError: no such matrix or more than one, or a matrix that is not what its block says.

    Example:
        >>> head = "#NEXUS begin data; dimensions ntax=2 nchar=4; format datatype=dna gap=-; "
        >>> nexus_records(head + "matrix\\n Wren-north AC{GT}-\\n 'the owl' ACGT\\n; end;", "text")
        [('Wren-north', 'ACK-'), ('the owl', 'ACGT')]
    """
    found = matrices(text)
    if not found:
        raise InputError(f"{source} cannot be read as an alignment (NEXUS: it holds no matrix)")
    wanted = [matrix for matrix in found if matrix.datatype in ("", *NUCLEOTIDES)]
    if not wanted:
        kinds = sorted({matrix.datatype for matrix in found})
        kind = "protein data" if kinds == ["protein"] else " and ".join(f"datatype={kind}" for kind in kinds)
        raise InputError(
            f"{source} holds {kind}, expected datatype={'|'.join(NUCLEOTIDES)}: the model is for DNA or RNA"
        )
    if len(wanted) > 1:
        raise InputError(
            f"{source} holds {len(wanted)} matrices of nucleotides, expected one: keep the block that is meant, or "
            "join them to one matrix"
        )
    return records_of(wanted[0], source)


def matrices(text: str) -> list[Matrix]:
    """The matrices of all DATA and CHARACTERS blocks."""
    found: list[Matrix] = []
    labels: list[str] = []
    matrix = Matrix("", labels)
    for block, word, rest in commands(text):
        if word == "taxlabels":
            labels = [unquoted(label) for label in LABEL.findall(rest)]
        if block not in BLOCKS:
            matrix = Matrix("", labels)
        elif word == "dimensions":
            numbers = {key.lower(): int(value) for key, value in re.findall(r"(\w+)\s*=\s*(\d+)", rest)}
            matrix.num_taxa, matrix.num_sites = numbers.get("ntax"), numbers.get("nchar")
        elif word == "format":
            for sign, _, mark, key, value in OPTION.findall(rest):
                matrix.options[(sign or key).lower()] = mark or value.strip("\"'")
        elif word == "matrix":
            matrix.text, matrix.labels = rest, labels
            found.append(matrix)
            matrix = Matrix("", labels)
    return found


def records_of(matrix: Matrix, source: str) -> Records:
    """Rows of a matrix, every one as long as announced.

    Raises:
        InputError: no layout gives what the block announces.
    """
    options = matrix.options
    if "transpose" in options or "tokens" in options:
        raise InputError(
            f"{source} has a NEXUS matrix in the format transpose or tokens: write one row per taxon"
        )
    interleave = options.get("interleave", "no" if "interleave" not in options else "yes").lower() != "no"
    layouts = (by_line, by_length) if interleave or not matrix.num_sites else (by_length, by_line)
    reason = ""
    for layout in layouts:
        rows = layout(matrix)
        wrong = mistake(rows, matrix)
        if not wrong:
            return translated(rows, options, source)
        reason = reason or wrong
    raise InputError(f"{source} cannot be read as an alignment (NEXUS: {reason})")


def mistake(rows: Rows, matrix: Matrix) -> str:
    """What is wrong with the rows, in words; empty when nothing is."""
    sites = matrix.num_sites or max((len(row) for _, row in rows), default=0)
    odd = [f"{name} has {len(row)}" for name, row in rows if len(row) != sites]
    if len(rows) != (matrix.num_taxa or len(rows)) or not rows:
        return f"{matrix.num_taxa or 'some'} taxa are announced, the matrix has {len(rows)}"
    if odd:
        tail = " and others" if len(odd) > 3 else ""
        return f"expected {sites} characters in every row, {', '.join(odd[:3])}{tail}; a name with a blank needs quotes"
    return ""


def by_line(matrix: Matrix) -> Rows:
    """Rows whose every line begins with the label, a blank and an underscore in it being the same."""
    rows: dict[str, tuple[str, list[str]]] = {}
    lines = [line for line in matrix.text.split("\n") if line.strip()]
    for place, line in enumerate(lines):
        name, rest = labelled(line, matrix, place)
        rows.setdefault(name.replace(" ", "_"), (name, []))[1].extend(STATES.findall(rest))
    return list(rows.values())


def by_length(matrix: Matrix) -> Rows:
    """Rows one after another, each on as many lines as it needs."""
    rows: Rows = []
    for line in matrix.text.split("\n"):
        if not line.strip():
            continue
        if not rows or len(rows[-1][1]) >= (matrix.num_sites or 0):
            name, line = labelled(line, matrix, len(rows))
            rows.append((name, []))
        rows[-1][1].extend(STATES.findall(line))
    return rows


def labelled(line: str, matrix: Matrix, place: int) -> tuple[str, str]:
    """Label and rest of a line; a number that is no label counts the labels, and so do lines without labels."""
    labels = matrix.labels
    if "nolabels" in matrix.options:
        return (labels[place % len(labels)] if labels else str(place + 1)), line
    found = LABEL.match(line)
    name = unquoted(found.group(1)) if found else ""
    if name.isdecimal() and name not in labels and 0 < int(name) <= len(labels):
        name = labels[int(name) - 1]
    return name, line[found.end() if found else 0 :]


def translated(rows: Rows, options: Mapping[str, str], source: str) -> Records:
    """Rows with ``?`` for missing, ``-`` for a gap, one code for a set, and the first row's for the matching character.

    Raises:
        InputError: a matching character in the first row.
    """
    missing, gap, match = options.get("missing", "?"), options.get("gap", "-"), options.get("matchchar", "")
    marks = {missing.lower(): "?", missing.upper(): "?", gap: "-"}
    equates = dict(EQUATE.findall(options.get("equate", "")))
    first: list[str] = []
    found: Records = []
    for name, row in rows:
        letters = []
        for place, state in enumerate(row):
            if match and state.lower() == match.lower():
                if not first:
                    raise InputError(f"{source} has its matchchar {match} in the first row of the matrix")
                letters.append(first[place])
                continue
            state = equates.get(state, state)
            letters.append(marks.get(state) or (state if len(state) == 1 else code_of(state[1:-1], marks)))
        first = first or letters
        found.append((name, "".join(letters)))
    return found


def code_of(states: str, marks: Mapping[str, str]) -> str:
    """IUPAC code of a set of states; ``?`` with a gap or a missing character in it, or none of the bases.

    Example:
        >>> code_of("A,g", {}), code_of("RC", {}), code_of("AC-", {"-": "-"})
        ('R', 'V', '?')
    """
    letters = [letter for letter in states.upper() if letter not in " \t\n,"]
    if not letters or any(letter in marks or letter not in BASES_OF for letter in letters):
        return "?" if all(letter in marks or letter in BASES_OF for letter in letters) else states[0]
    return CODE_OF["".join(sorted(set("".join(BASES_OF[letter] for letter in letters))))]


def unquoted(name: str) -> str:
    """A name without its quotes.

    Example:
        >>> unquoted("'it''s'"), unquoted("it's")
        ("it's", "it's")
    """
    if len(name) > 1 and name[0] == name[-1] == "'":
        return name[1:-1].replace("''", "'")
    return name[1:-1] if len(name) > 1 and name[0] == name[-1] == '"' else name
