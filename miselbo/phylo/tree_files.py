"""The name :mod:`miselbo.phylo.text.tree_files` had before."""

from miselbo.phylo.text.tree_files import read_topologies, read_tree_files

__all__ = ["read_topologies", "read_tree_files"]
