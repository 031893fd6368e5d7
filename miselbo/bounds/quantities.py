"""Every reported number, once: tables, headline, report, sweeps, training's monitor and dashboards go by this list.

A new diagnostic is one entry here and one function of the running sums in :mod:`miselbo.bounds.values`. Nothing here
imports torch.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Quantity:
    """A number per example, nested ensemble and L.

    Args:
        name: of its column; ``<name>_var`` is its Monte Carlo variance.
        label: for readers.
        kind: a ``bound`` on log p(x) has a code length; a ``difference`` is nats of such bounds or densities.
        meaning: a sentence for the report; {size} is S, {most} log S.
        of: its function in :mod:`miselbo.bounds.values`; empty where the blocks of the samples make it
            (:mod:`miselbo.bounds.blocks`) or another column does.
        weights: whose weights decide whether its Monte Carlo error can be trusted: of the ``mixture``, of the
            ``members`` alone; None for a plain mean.
        trusted_with: names whose errors must be trusted for its own to be.
        limit: how it is told what L to infinity would bring: by the ``jackknife``, as it does not change (``itself``),
            or not at all.
        monitored: on validation data in training.
        tunes: whether a tuning sweeper may maximise it.
        needed: whether a run folder without it is none; false for what later versions have added.
        tabled: in the tables of every S' and L', and not in the headline alone.
    """

    name: str
    label: str
    kind: Literal["bound", "difference"]
    meaning: str
    of: str = ""
    weights: Literal["mixture", "members"] | None = None
    trusted_with: tuple[str, ...] = ()
    limit: Literal["jackknife", "itself"] | None = None
    monitored: bool = False
    tunes: bool = False
    needed: bool = False
    tabled: bool = True


QUANTITIES = (
    Quantity(
        "miselbo", "MISELBO", "bound",
        "Lower bound on log p(x) of the whole ensemble, scored as one mixture. Higher is better.",
        weights="mixture", limit="jackknife", monitored=True, tunes=True, needed=True,
    ),
    Quantity(
        "joint_bound", "Joint bound", "bound",
        "All samples of all members under one logarithm: never below MISELBO on the same samples.",
        weights="mixture", limit="jackknife", monitored=True, tunes=True, needed=True,
    ),
    Quantity(
        "average_iwelbo", "Average IWELBO", "bound",
        "Each member scored alone with its own samples, then averaged: the baseline.",
        weights="members", limit="jackknife", monitored=True, tunes=True, needed=True,
    ),
    Quantity(
        "average_elbo", "Average ELBO", "bound",
        "The same without importance weighting: the mean of the members' ELBOs.",
        of="average_elbo", limit="itself", monitored=True, tunes=True, needed=True,
    ),
    Quantity(
        "delta", "Delta", "difference",
        "MISELBO minus average IWELBO: what scoring as a mixture adds (may be negative for L > 1).",
        trusted_with=("miselbo", "average_iwelbo"), limit="jackknife", monitored=True, needed=True,
    ),
    Quantity(
        "joint_gain", "Joint gain", "difference",
        "Joint bound minus MISELBO on the same draws, never negative: what the one logarithm adds.", tabled=False,
    ),
    Quantity(
        "jsd", "JSD", "difference",
        "How much the members differ: 0 if all are equal, log {size} = {most} if none overlap.",
        of="jsd", limit="itself", monitored=True, needed=True,
    ),
    Quantity(
        "slack", "Slack", "difference",
        "How unequally the members share the posterior: 0 if equally. MISELBO stays this far below "
        "log p(x) however large L is.",
        of="slack", trusted_with=("joint_bound",), needed=True,
    ),
)  # fmt: skip

NEEDED = tuple(quantity.name for quantity in QUANTITIES if quantity.needed)  # what every run folder has


def names(kind: str | None = None, tabled: bool = True) -> tuple[str, ...]:
    """Names of the quantities in the tables, or of all, in their order.

    Example:
        >>> names("bound")
        ('miselbo', 'joint_bound', 'average_iwelbo', 'average_elbo')
    """
    return tuple(
        quantity.name
        for quantity in QUANTITIES
        if kind in (None, quantity.kind) and (quantity.tabled or not tabled)
    )
