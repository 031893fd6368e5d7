"""Phylogenetics: the posterior over unrooted trees and branch lengths, and its approximations (VBPI).

numba is imported where it is used, so that the other families do not pay for it.
"""

from miselbo.phylo.alignment import Alignment
from miselbo.phylo.likelihood import log_likelihood
from miselbo.phylo.substitution import Substitution

__all__ = ["Alignment", "Substitution", "log_likelihood"]
