"""The Newick texts of a file of trees, with weights and names: Newick, NEXUS and two kinds of tables."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

from miselbo.errors import InputError
from miselbo.phylo.text.newick import COMMENT, QUOTED, collisions, taxon_numbers, taxon_of, without
from miselbo.phylo.text.nexus import unquoted
from miselbo.phylo.text.reading import is_nexus, nexus_start

TreeText = tuple[str, list[float], dict[str, int]]  # Newick, weights, taxon number by name
# up to a semicolon that is neither quoted nor in a comment
COMMAND = re.compile(rf"(?:[^;'\"\[]+|{QUOTED}|{COMMENT}|[^;])+")
TREE_HEAD = re.compile(rf"^(?:{QUOTED}|{COMMENT}|[^=\[])*?=")
ENTRY = re.compile(rf"\s*({QUOTED}|[^\s,]+)\s+({QUOTED}|[^,]+?)\s*(?:,|$)")  # of a translate table
TABLE = re.compile(r"\)[^()\t]*\t\s*[^\s()]")  # in a line of a table of topologies
LABEL = re.compile(rf"{QUOTED}|\S+")
WEIGHT = re.compile(r"\[&W\s*([^\]\s]+)\s*\]", re.IGNORECASE)
COUNTS = re.compile(
    r"\A\s*\d+(?:[ \t]+\d+)?[ \t]*\n(?=\s*\()"
)  # of taxa and trees, before PHYLIP's and PAML's trees


def tree_texts(text: str, names: Sequence[str], source: str) -> Iterator[TreeText]:
    """Newick text, weights and names of every tree in a file's text.

    Raises:
        InputError: XML, names that are not the alignment's, or a weight that is none.

    Example:
        >>> [tree for tree, *_ in tree_texts("#NEXUS begin trees; tree one = [&U] (a,b,c); end;", "abc", "text")]
        [' [&U] (a,b,c)']
    """
    if is_nexus(text):
        yield from nexus_trees(text, names, source)
        return
    if text.lstrip().startswith("<"):
        raise InputError(f"{source} is XML (NeXML, phyloXML, BEAST?): write its trees as Newick or NEXUS")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    taxa = taxon_numbers(names)
    column = column_of_trees(lines)
    if column is not None:
        for line in lines[1:]:
            yield cells(line, column, source), [1.0], taxa
    elif lines and TABLE.search(lines[0]):
        header = re.search(r"^#\s*taxa\b[^:\n]*:(.*)$", text, re.MULTILINE)
        order = header.group(1).split() if header else list(names)
        numbers = labelled({str(i): name for i, name in enumerate(order)}, taxa, source)
        for line in lines:
            tree, _, rest = line.partition("\t")
            yield tree, table_weights(rest, source), numbers
    else:
        for part in COMMAND.findall(COUNTS.sub("", "\n".join(lines))):
            if without(COMMENT, part).strip():
                yield part, [weight_of(part, source)], taxa


def column_of_trees(lines: Sequence[str]) -> int | None:
    """The column of a table of samples that holds trees; None for another file.

    Such a table has a line of names, without a parenthesis, and as many columns in every line.

    Example:
        >>> column_of_trees(["Iteration\\tPrior\\tpsi", "0\\t-2.5\\t(a,b,(c,d));"]), column_of_trees(["(a,b,(c,d));"])
        (2, None)
    """
    if len(lines) < 2 or "\t" not in lines[0] or "(" in lines[0]:
        return None
    width = lines[0].count("\t")
    columns = [
        place for place, cell in enumerate(lines[1].split("\t")) if cell.lstrip(" \"'[&RU]").startswith("(")
    ]
    return columns[-1] if columns and lines[1].count("\t") == width else None


def cells(line: str, column: int, source: str) -> str:
    """One cell of a table's line; InputError when the line is too short."""
    parts = line.split("\t")
    if len(parts) <= column:
        raise InputError(f"{source} has a line without its column {column + 1} of trees: {line[:40]!r}")
    return parts[column]


def table_weights(text: str, source: str) -> list[float]:
    """The numbers of the first column after the topology."""
    return [weight(word, source) for word in text.split("\t")[0].split()]


def weight_of(text: str, source: str) -> float:
    """MrBayes' tree weight ``[&W 0.25]``, 1 without one."""
    found = WEIGHT.search(text)
    return 1.0 if found is None else weight(found.group(1), source)


def nexus_trees(text: str, names: Sequence[str], source: str) -> Iterator[TreeText]:
    """The trees of all tree blocks, with their translate tables; without one a number counts the taxon labels."""
    taxa = taxon_numbers(names)
    counted, numbers, inside = taxa, taxa, False
    for command in COMMAND.findall(nexus_start(text)[len("#NEXUS") :]):
        start = without(COMMENT, command).strip()
        word = start[:9].lower()
        if re.match(r"begin\s", word):
            inside, numbers = re.fullmatch(r"begin\s+trees", start, re.IGNORECASE) is not None, counted
        elif word in ("end", "endblock"):
            inside = False
        elif word == "taxlabels":
            labels = [unquoted(label) for label in LABEL.findall(start[9:])]
            if all(taxon_of(label, taxa) is not None for label in labels):
                places = {str(place): taxon_of(label, taxa) for place, label in enumerate(labels, start=1)}
                counted = {place: taxon for place, taxon in places.items() if taxon is not None} | taxa
        elif inside and word == "translate":
            numbers = labelled(dict(ENTRY.findall(start[9:])), taxa, source)
        elif inside and re.match(r"u?tree\b", start, re.IGNORECASE):
            yield TREE_HEAD.sub("", command), [weight_of(command, source)], numbers


def labelled(names: Mapping[str, str], taxa: Mapping[str, int], source: str) -> dict[str, int]:
    """Taxon numbers by name and by label; InputError listing names the alignment does not have."""
    plain = {unquoted(label): unquoted(name) for label, name in names.items()}
    numbers = {label: taxon_of(name, taxa) for label, name in plain.items()}
    unknown = [plain[label] for label, taxon in numbers.items() if taxon is None]
    if unknown:
        raise InputError(
            f"{source} and the alignment have different taxa: {', '.join(unknown[:10])} "
            f"{'and others ' if len(unknown) > 10 else ''}not in the alignment{collisions(unknown, taxa)}"
        )
    return {**taxa, **{label: taxon for label, taxon in numbers.items() if taxon is not None}}


def weight(text: str, source: str) -> float:
    """The weight of a tree, also as a fraction (1/3); InputError when it is none."""
    try:
        value = float(Fraction(text))
    except (ValueError, ZeroDivisionError, OverflowError):
        raise InputError(f"{source} has a weight that is no number: {text[:40]!r}") from None
    if value < 0:
        raise InputError(f"{source} has the weight {text}: expected a number of at least 0")
    return value
