"""Files of many trees: Newick, NEXUS tree blocks and tables of topologies, read to topologies with weights."""

import re
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from miselbo.errors import InputError
from miselbo.phylo.text.newick import (
    COMMENT,
    LENGTH,
    QUOTED,
    Topology,
    inner_splits,
    parse_newick,
    taxon_numbers,
    taxon_of,
    without,
)
from miselbo.phylo.text.sequences import read_text

# up to a semicolon that is neither quoted nor in a comment
COMMAND = re.compile(rf"(?:[^;'\"\[]+|{QUOTED}|\[[^\]]*\]|[^;])+")
TREE_HEAD = re.compile(rf"^(?:{QUOTED}|\[[^\]]*\]|[^=\[])*?=")
ENTRY = re.compile(rf"\s*({QUOTED}|[^\s,]+)\s+({QUOTED}|[^,]+?)\s*(?:,|$)")  # of a translate table
TABLE = re.compile(r"\)[^()\t]*\t\s*[^\s()]")  # in a line of a table
LABEL = re.compile(rf"{QUOTED}|\S+")
WEIGHT = re.compile(r"\[&W\s+([^\]\s]+)\s*\]", re.IGNORECASE)


def check_binary(tree: Mapping[int, float], num_taxa: int, source: str) -> None:
    """InputError unless the tree is fully resolved."""
    if len(tree) != 2 * num_taxa - 3:
        raise InputError(
            f"{source} is not fully resolved: {len(tree)} edges, a binary unrooted tree of {num_taxa} taxa has "
            f"{2 * num_taxa - 3}"
        )


def read_topologies(path: str | Path, names: Sequence[str]) -> tuple[list[Topology], np.ndarray]:
    """Topologies of a tree file with their weights.

    Reads Newick (one tree per ``;``), NEXUS with or without a translate block (MrBayes ``.t``, and ``.trprobs`` whose
    weights are taken), and tables: Newick topology, a tab, its weight or its counts in several replicates. The taxa of
    a table may be numbers from 0 on; a line ``# taxa: name name ...`` gives their order, else it is the alignment's.

    Args:
        path: file, gzipped or not.
        names: of the taxa, in the alignment's order.

    Returns:
        T distinct topologies in order of appearance, and their weights [T, R] (R = 1 but for tables with replicates).
        A tree without a weight counts 1; trees that occur again are added up.

    Raises:
        InputError: no tree in the file, names that differ from the alignment's, or a tree that is not binary.
    """
    path = Path(path)
    found: dict[Topology, list[float]] = {}
    known: dict[str, Topology] = {}
    columns: int | None = None
    for position, (text, weights, taxa) in enumerate(tree_texts(read_text(path), names, str(path))):
        shape = without(LENGTH, without(COMMENT, text))  # files of samples repeat their topologies many times
        topology = known.get(shape)
        if topology is None:
            source = f"tree {position + 1} of {path}"
            tree = parse_newick(shape, taxa, source)
            check_binary(tree, len(names), source)
            topology = known[shape] = inner_splits(tree, len(names))
        if columns not in (None, len(weights)):
            raise InputError(f"{path} has {columns} weights for some trees and {len(weights)} for others")
        columns = len(weights)
        before = found.get(topology, [0.0] * columns)
        found[topology] = [one + other for one, other in zip(before, weights, strict=True)]
    if not found:
        raise InputError(f"{path} holds no tree: expected Newick, NEXUS or a table of topologies and weights")
    return list(found), np.array(list(found.values()))


def tree_texts(
    text: str, names: Sequence[str], source: str
) -> Iterator[tuple[str, list[float], dict[str, int]]]:
    """Newick text, weights and names of every tree in a file's text."""
    if text.lstrip()[:6].upper() == "#NEXUS":
        yield from nexus_trees(text, names, source)
        return
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    taxa = taxon_numbers(names)
    if lines and TABLE.search(lines[0]):
        header = re.search(r"^#\s*taxa\b[^:\n]*:(.*)$", text, re.MULTILINE)
        order = header.group(1).split() if header else list(names)
        numbers = labelled({str(i): name for i, name in enumerate(order)}, taxa, source)
        for line in lines:
            tree, _, rest = line.partition("\t")
            yield tree, table_weights(rest, source), numbers
        return
    for part in COMMAND.findall("\n".join(lines)):
        if without(COMMENT, part).strip():
            yield part, [weight_of(part, source)], taxa


def table_weights(text: str, source: str) -> list[float]:
    """The numbers of the first column after the topology."""
    return [weight(word, source) for word in text.split("\t")[0].split()]


def weight_of(text: str, source: str) -> float:
    """MrBayes' tree weight ``[&W 0.25]``, 1 without one."""
    found = WEIGHT.search(text)
    return 1.0 if found is None else weight(found.group(1), source)


def nexus_trees(
    text: str, names: Sequence[str], source: str
) -> Iterator[tuple[str, list[float], dict[str, int]]]:
    """The trees of all tree blocks, with their translate tables; without one a number counts the taxon labels."""
    taxa = taxon_numbers(names)
    counted, numbers, inside = taxa, taxa, False
    for command in COMMAND.findall(text.lstrip()[len("#NEXUS") :]):
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
            f"{'and others ' if len(unknown) > 10 else ''}not in the alignment"
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


def unquoted(name: str) -> str:
    """A name without its quotes."""
    if name[:1] == "'":
        return name[1:-1].replace("''", "'")
    return name.strip('"')
