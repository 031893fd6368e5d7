"""Everything that is algebra on ``log_p`` and ``log_q``; the paper's equations are at hand as ``bounds.<name>``.

``equations`` has them with their numbers, ``running`` the same from a stream of samples, ``subsets`` and ``weights``
which members with which weights, ``diagnostics`` what the weights can be trusted with, ``quantities`` what is reported
under which name. The equations are loaded when they are asked for: ``quantities`` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miselbo.bounds.equations import Weights as Weights
    from miselbo.bounds.equations import average_elbo as average_elbo
    from miselbo.bounds.equations import average_iwelbo as average_iwelbo
    from miselbo.bounds.equations import check_densities as check_densities
    from miselbo.bounds.equations import check_scores as check_scores
    from miselbo.bounds.equations import delta as delta
    from miselbo.bounds.equations import elbo as elbo
    from miselbo.bounds.equations import iwelbo as iwelbo
    from miselbo.bounds.equations import joint_bound as joint_bound
    from miselbo.bounds.equations import jsd as jsd
    from miselbo.bounds.equations import log_ratio_to_pair as log_ratio_to_pair
    from miselbo.bounds.equations import miselbo as miselbo
    from miselbo.bounds.equations import own_density as own_density
    from miselbo.bounds.equations import pairwise_jsd as pairwise_jsd
    from miselbo.bounds.equations import responsibilities as responsibilities
    from miselbo.bounds.equations import slack as slack

__all__ = [
    "Weights", "average_elbo", "average_iwelbo", "check_densities", "check_scores", "delta", "elbo", "iwelbo",
    "joint_bound", "jsd", "log_ratio_to_pair", "miselbo", "own_density", "pairwise_jsd", "responsibilities", "slack",
]  # fmt: skip


def __getattr__(name: str) -> object:
    """An equation (PEP 562)."""
    if name in __all__:
        return getattr(import_module("miselbo.bounds.equations"), name)
    raise AttributeError(f"module 'miselbo.bounds' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
