"""Everything that is algebra on ``log_p`` and ``log_q``; the paper's equations are at hand as ``bounds.<name>``.

``equations`` has them with their numbers, ``running`` the same from a stream of samples, ``subsets`` and ``weights``
which members with which weights, ``diagnostics`` what the weights can be trusted with.
"""

from miselbo.bounds.equations import (
    Weights,
    average_elbo,
    average_iwelbo,
    check_densities,
    check_scores,
    delta,
    elbo,
    iwelbo,
    joint_bound,
    jsd,
    log_ratio_to_pair,
    miselbo,
    own_density,
    pairwise_jsd,
    responsibilities,
    slack,
)

__all__ = [
    "Weights",
    "average_elbo",
    "average_iwelbo",
    "check_densities",
    "check_scores",
    "delta",
    "elbo",
    "iwelbo",
    "joint_bound",
    "jsd",
    "log_ratio_to_pair",
    "miselbo",
    "own_density",
    "pairwise_jsd",
    "responsibilities",
    "slack",
]
