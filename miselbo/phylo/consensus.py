"""The majority-rule consensus of split probabilities, as splits and as Newick text."""

from collections.abc import Mapping, Sequence

from miselbo.phylo.tree import bits, quote

MAJORITY = 0.5


def consensus(probability: Mapping[int, float]) -> dict[int, float]:
    """The majority-rule consensus: splits of more than one half, which always fit together.

    Example:
        >>> consensus({0b1100: 0.75, 0b1010: 0.25})
        {12: 0.75}
    """
    return {split: value for split, value in sorted(probability.items()) if value > MAJORITY}


def consensus_newick(splits: Mapping[int, float], names: Sequence[str]) -> str:
    """Newick text of a consensus, its splits' probabilities as node labels; seen from taxon 0.

    Example:
        >>> consensus_newick({0b1100: 0.75}, ["a", "b", "c", "d"])
        '(a,b,(c,d)0.750);'
    """
    text = {1 << taxon: quote(name) for taxon, name in enumerate(names)}
    top = dict(enumerate(text))  # largest clade so far of each taxon
    for split in sorted(splits):
        parts = list(dict.fromkeys(top[taxon] for taxon in bits(split)))
        text[split] = f"({','.join(text[part] for part in parts)}){splits[split]:.3f}"
        top |= dict.fromkeys(bits(split), split)
    return f"({','.join(text[part] for part in dict.fromkeys(top.values()))});"
