"""Trees as Newick text for other programs: rooted where one likes, with MrBayes' and FigTree's annotations."""

from collections.abc import Callable, Mapping, Sequence

from miselbo.errors import InputError
from miselbo.phylo.text.newick import Tree
from miselbo.phylo.tree import bits


def outgroup_mask(names: Sequence[str], outgroup: str | Sequence[str] | None) -> int:
    """The taxa of an outgroup as a mask; 0 without one.

    Raises:
        InputError: a name the alignment does not have, or all of them.

    Example:
        >>> outgroup_mask(["a", "b", "c", "d"], ["b", "c"])
        6
    """
    wanted = [outgroup] if isinstance(outgroup, str) else list(outgroup or ())
    unknown = [name for name in wanted if name not in names]
    if unknown:
        raise InputError(
            f"dataset.outgroup: {', '.join(unknown)} not in the alignment, whose taxa are {', '.join(names)}"
        )
    if len(set(wanted)) == len(names):
        raise InputError("dataset.outgroup holds all taxa of the alignment: name some of them")
    return sum(1 << names.index(name) for name in set(wanted))


def root_split(splits: Mapping[int, object], num_taxa: int, outgroup: int) -> int:
    """The split whose edge holds the root: the outgroup's if the tree has it, else that of its first taxon.

    Args:
        splits: of the tree, sides without taxon 0.
        num_taxa: n.
        outgroup: mask.
    """
    full = (1 << num_taxa) - 1
    split = full ^ outgroup if outgroup & 1 else outgroup
    if split in splits:
        return split
    first = outgroup & -outgroup
    return full ^ first if first & 1 else first


def newick_of(
    splits: Tree,
    labels: Sequence[str],
    outgroup: int = 0,
    annotate: Callable[[int], tuple[str, str]] | None = None,
    digits: int = 8,
) -> str:
    """Newick text of a tree given by its splits, resolved or not.

    Args:
        splits: length by split (side without taxon 0), pendant edges included.
        labels: of the taxa, as they are to stand in the text.
        outgroup: mask; the tree is rooted on its edge, the length being halved. 0: unrooted, seen from taxon 0.
        annotate: gives two texts for a split: after the label of its lower node, and after its length.
        digits: of a length.

    Example:
        >>> tree = {0b1110: 1.0, 0b10: 2.0, 0b100: 3.0, 0b1000: 4.0, 0b1100: 0.5}
        >>> newick_of(tree, "abcd"), newick_of(tree, "abcd", outgroup=0b1100)
        ('(a:1,b:2,(c:3,d:4):0.5);', '((a:1,b:2):0.25,(c:3,d:4):0.25);')
    """
    num_taxa = len(labels)
    full = (1 << num_taxa) - 1
    if outgroup:
        root = root_split(splits, num_taxa, outgroup)
        clades = {full ^ split if root & ~split == 0 else split: split for split in splits if split != root}
        clades |= {root: root, full ^ root: root}
    else:
        root = -1
        clades = {1 if split == full - 1 else split: split for split in splits}
    text: dict[int, str] = {}
    top: dict[int, int] = {}  # largest clade so far of each taxon
    for clade in sorted(clades, key=int.bit_count):
        split = clades[clade]
        node, edge = annotate(split) if annotate else ("", "")
        parts = dict.fromkeys(top[taxon] for taxon in bits(clade)) if clade & (clade - 1) else {}
        inside = f"({','.join(text[part] for part in parts)})" if parts else labels[clade.bit_length() - 1]
        length = splits[split] / 2 if split == root else splits[split]
        text[clade] = f"{inside}{node}:{length:.{digits}g}{edge}"
        top |= dict.fromkeys(bits(clade), clade)
    return f"({','.join(text[clade] for clade in dict.fromkeys(top[taxon] for taxon in range(num_taxa)))});"
