"""Trees as text: a fast reader of Newick strings.

An unrooted tree is the set of its splits. A split is a bit mask, bit i = taxon i, of its side without taxon 0, so the
two edges at a root of degree two are one split. Bits are Python integers: there is no limit on the number of taxa.
"""

import re
from collections.abc import Mapping, Sequence

from miselbo.errors import InputError

Tree = dict[int, float]  # split -> length; NaN where the text gives none
Topology = tuple[int, ...]  # sorted inner splits
TOKEN = re.compile(
    r"\s*(?:([(),;])|:\s*([^\s,();:]+)|'((?:[^']|'')*)'|\"([^\"]*)\"|([^\s():,;'\"][^\s():,;\"]*))"
)
QUOTED = r"'(?:[^'\n]|'')*'|\"[^\"\n]*\""
LENGTH, COMMENT = r":[^,();]*", r"\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]"  # a comment may hold others
RENAMED = re.compile(r"[^A-Za-z0-9._-]")  # what IQ-TREE replaces by an underscore


def parse_newick(text: str, taxa: Mapping[str, int], source: str = "tree") -> Tree:
    """Splits and lengths of one Newick tree over all ``taxa``; node labels and comments are skipped.

    Args:
        text: Newick; the root may have any degree.
        taxa: number of each name; an underscore also stands for a blank, and the reverse.
        source: for messages.

    Raises:
        InputError: no Newick, a length that is no number, or names that are not those of ``taxa`` (they are listed).

    Example:
        >>> tree = parse_newick("((a:1,b:2):0.25,(c:3,d:4):0.25);", {"a": 0, "b": 1, "c": 2, "d": 3})
        >>> {f"{split:04b}": length for split, length in sorted(tree.items())}
        {'0010': 2.0, '0100': 3.0, '1000': 4.0, '1100': 0.5, '1110': 1.0}
    """
    clades, total = read_clades(text, taxa, source)
    full = (1 << len(set(taxa.values()))) - 1
    if total != full:
        raise InputError(f"{source} lacks taxa of the alignment: {missing_names(taxa, total)}")
    tree: Tree = {}
    for mask, length in clades:
        if mask != full:
            split = full ^ mask if mask & 1 else mask
            tree[split] = tree[split] + length if split in tree else length
    return tree


def read_clades(text: str, taxa: Mapping[str, int], source: str) -> tuple[list[tuple[int, float]], int]:
    """Every node's mask and the length above it (NaN where there is none), in postorder, and the mask of all."""
    text = without(COMMENT, text)
    clades: list[tuple[int, float]] = []
    open_masks: list[int] = []
    unknown: list[str] = []
    mask = seen = position = 0
    waiting = False  # a node that is read, whose length may follow
    end = len(text)
    match = TOKEN.match
    while position < end:
        found = match(text, position)
        if found is None:
            if text[position:].strip():
                raise InputError(
                    f"{source} is no Newick tree: cannot read {text[position : position + 30]!r}"
                )
            break
        position = found.end()
        mark, length, quoted, double, plain = found.groups()
        if length is not None:
            clades[-1:] = [(mask, number(length, source))] if waiting else unexpected(":", source)
        elif mark == "(":
            if waiting:
                unexpected("(", source)
            open_masks.append(0)
        elif mark == "," or mark == ")":
            if not open_masks or not waiting:
                unexpected(mark, source)
            open_masks[-1] |= mask
            waiting = mark == ")"
            if waiting:
                mask = open_masks.pop()
                clades.append((mask, float("nan")))
        elif mark == ";":
            if text[position:].strip():
                raise InputError(f"{source} goes on after its end: {text[position:].strip()[:30]!r}")
            break
        elif not waiting:  # else the label of an inner node
            name = (
                quoted.replace("''", "'") if quoted is not None else double if double is not None else plain
            )
            taxon = taxon_of(name, taxa)
            if taxon is None:
                unknown.append(name)
                taxon = len(taxa) + len(unknown)
            mask = 1 << taxon
            if seen & mask:
                raise InputError(f"{source} holds the taxon {name} more than once")
            seen |= mask
            clades.append((mask, float("nan")))
            waiting = True
    if unknown:
        absent = missing_names(taxa, seen)
        raise InputError(
            f"{source} and the alignment have different taxa: {', '.join(unknown[:10])} "
            f"{'and others ' if len(unknown) > 10 else ''}not in the alignment"
            + (f"; {absent} not in the tree" if absent else "")
            + collisions(unknown, taxa)
        )
    if open_masks or not clades or not waiting:
        raise InputError(f"{source} is no complete Newick tree: {text.strip()[:60]!r}")
    return clades, seen


def missing_names(taxa: Mapping[str, int], seen: int) -> str:
    """The names whose bits are not set, at most ten of them."""
    absent: dict[int, str] = {}
    for name, taxon in taxa.items():
        if not seen >> taxon & 1:
            absent.setdefault(taxon, name)
    names = list(absent.values())
    return ", ".join(names[:10]) + (" and others" if len(names) > 10 else "")


def number(text: str, source: str) -> float:
    """A branch length; InputError when it is none."""
    try:
        value = float(text)
    except ValueError:
        raise InputError(f"{source} has a branch length that is no number: {text!r}") from None
    if not 0 <= value < float("inf"):
        raise InputError(f"{source} has the branch length {text}: expected a finite number of at least 0")
    return value


def unexpected(mark: str, source: str) -> list[tuple[int, float]]:
    """Raise for a character out of place."""
    raise InputError(f"{source} is no Newick tree: '{mark}' out of place")


def taxon_numbers(names: Sequence[str]) -> dict[str, int]:
    """Number of each name, and of the form IQ-TREE gives it where that is one name's alone.

    IQ-TREE writes every character but letters, digits, ``. - _`` as an underscore.

    Example:
        >>> taxon_numbers(["AY27|wren", "owl(1)", "owl/1/"])
        {'AY27|wren': 0, 'owl(1)': 1, 'owl/1/': 2, 'AY27_wren': 0}
    """
    numbers = {name: number for number, name in enumerate(names)}
    forms: dict[str, list[str]] = {}
    for name in numbers:
        forms.setdefault(RENAMED.sub("_", name), []).append(name)
    return numbers | {form: numbers[same[0]] for form, same in forms.items() if len(same) == 1}


def collisions(unknown: Sequence[str], taxa: Mapping[str, int]) -> str:
    """The reason why unknown names of a tree are not found, when IQ-TREE gives one form to several names."""
    for name in unknown:
        same = [other for other in taxa if RENAMED.sub("_", other) == name]
        if len(same) > 1:
            return (
                f". IQ-TREE writes every character but letters, digits, . - _ as _, so {name} may be any of "
                f"{', '.join(same[:10])}: rename them"
            )
    return ""


def taxon_of(name: str, taxa: Mapping[str, int]) -> int | None:
    """Number of a name, a blank and an underscore being the same where nothing else fits."""
    found = taxa.get(name, taxa.get(name.replace("_", " ")))
    return taxa.get(name.replace(" ", "_")) if found is None else found


def without(pattern: str, text: str) -> str:
    """The text without what matches outside quotes.

    Example:
        >>> without(COMMENT, "('a[1]'[&x]:1,b:2)"), without(LENGTH, "('a:1':1,b:2)")
        ("('a[1]':1,b:2)", "('a:1',b)")
    """
    if "'" in text or '"' in text:
        return re.sub(rf"({QUOTED})|{pattern}", r"\1", text)
    return re.sub(pattern, "", text)


def inner_splits(tree: Mapping[int, float], num_taxa: int) -> Topology:
    """The sorted inner splits, which are the topology."""
    last = (1 << num_taxa) - 2
    return tuple(sorted(split for split in tree if split & (split - 1) and split != last))
