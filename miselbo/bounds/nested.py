"""The nested ensembles S' = 1..S of S members: which member is in which, and their bounds from log-means."""

import math

import torch
from torch import Tensor


class Nested:
    """Axes: N = S nested ensembles, s members; R = S (S + 1) / 2 rows, one for every member of every ensemble.

    Args:
        num_members: S.
        like: gives device and dtype.
    """

    def __init__(self, num_members: int, like: Tensor):
        self.size = torch.arange(1, num_members + 1, device=like.device, dtype=like.dtype)  # S' of [N]
        order = torch.arange(num_members, device=like.device)
        self.inside = order <= order[:, None]  # [N, s]: member s belongs to nested ensemble N
        self.ensemble, self.member = self.inside.nonzero(
            as_tuple=True
        )  # of every row; the last S are all members

    def spread(self, rows: Tensor, fill: float) -> Tensor:
        """Rows [..., R] as [..., N, s], ``fill`` outside."""
        members = len(self.size)
        dense = rows.new_full((*rows.shape[:-1], members, members), fill)
        dense[..., self.ensemble, self.member] = rows
        return dense

    def average(self, values: Tensor) -> Tensor:
        """Mean over the members of each nested ensemble: [..., N or 1, s] -> [..., N]."""
        return values.where(self.inside, 0.0).sum(-1) / self.size

    def average_rows(self, rows: Tensor) -> Tensor:
        """The same of [..., R]."""
        return self.spread(rows, 0.0).sum(-1) / self.size

    def log_rest(self, log_means: Tensor) -> Tensor:
        """Log of the sum of the other strata's means: [..., R] of [..., R]."""
        strata = self.spread(log_means, -math.inf)
        itself = torch.eye(len(self.size), dtype=torch.bool, device=strata.device)
        others = strata[..., :, None, :].masked_fill(itself, -math.inf)  # [..., N, s, the others]
        return others[..., self.ensemble, self.member, :].logsumexp(-1)

    def log_mean_bounds(self, mixture: Tensor, own: Tensor) -> dict[str, Tensor]:
        """Bounds from the log-means of p / q_mix [..., R] and of p / q_s [..., s]: [..., N] and ``member_iwelbo``."""
        strata = self.spread(mixture, -math.inf)
        miselbo, average_iwelbo = self.average(strata), self.average(own[..., None, :])
        return {
            "miselbo": miselbo,
            "joint_bound": strata.logsumexp(-1) - self.size.log(),
            "average_iwelbo": average_iwelbo,
            "delta": miselbo - average_iwelbo,
            "member_iwelbo": own,
        }
