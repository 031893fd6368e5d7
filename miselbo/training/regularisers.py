r"""NVAE's two regularisers: the sum of the kernels' largest singular values, and of max |gamma| over batch norms."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpectralNormSum(nn.Module):
    r"""Sum over convolutions of sigma_max(W), W the effective kernel as a matrix [C_out, C_in * kh * kw].

    Power iteration v = normalise(u^T W), u = normalise(W v), sigma = u^T W v, vectors kept between steps: 40 iterations
    at the first call, 4 at every later one. The gradient goes through W alone. Kernels of one shape are stacked, so the
    cost is a handful of batched products. u and v are buffers: training that goes on after a kill goes on exactly.

    Args:
        kernels: the kernels, for their shapes and number; :meth:`forward` takes them in the same order.
        seed: of the random start vectors.

    Example:
        >>> kernels = [torch.eye(3).reshape(3, 3, 1, 1), 2 * torch.eye(3).reshape(3, 3, 1, 1)]
        >>> round(float(SpectralNormSum(kernels, seed=0)(kernels)), 4)
        3.0
    """

    first: Tensor

    def __init__(self, kernels: list[Tensor], seed: int):
        super().__init__()
        self.groups: dict[tuple[int, int], list[int]] = {}
        for i, kernel in enumerate(kernels):
            self.groups.setdefault((kernel.shape[0], kernel[0].numel()), []).append(i)
        generator = torch.Generator().manual_seed(seed)
        for (rows, columns), members in self.groups.items():
            for name, size in (("u", rows), ("v", columns)):
                start = torch.randn(len(members), size, generator=generator).to(kernels[members[0]])
                self.register_buffer(f"{name}_{rows}_{columns}", F.normalize(start, dim=-1, eps=1e-3))
        self.register_buffer("first", torch.tensor(True))
        self._started = False

    def forward(self, kernels: list[Tensor]) -> Tensor:
        """The sum of the largest singular values, a scalar; updates the stored vectors."""
        if not self._started:
            self._started = not bool(self.first)  # read the device once, not at every step
        iterations = 4 if self._started else 40
        total = kernels[0].new_zeros(())
        for (rows, columns), members in self.groups.items():
            # channels last, as the kernels are stored: the order of the columns changes no singular value
            matrix = torch.stack([kernels[i].permute(0, 2, 3, 1).reshape(rows, columns) for i in members])
            u, v = self.get_buffer(f"u_{rows}_{columns}"), self.get_buffer(f"v_{rows}_{columns}")
            with torch.no_grad():
                left = u[:, None]
                for _ in range(
                    iterations
                ):  # row vectors on the left: the other way round is many times slower
                    right = F.normalize(left @ matrix, dim=-1, eps=1e-3)
                    left = F.normalize(right @ matrix.mT, dim=-1, eps=1e-3)
                u.copy_(left[:, 0])
                v.copy_(right[:, 0])
            total = total + (left @ matrix * right).sum()
        if not self._started:
            self.first.fill_(False)
            self._started = True
        return total


def batch_norm_max(norms: Sequence[nn.modules.batchnorm._BatchNorm]) -> Tensor:
    """Sum over batch norms of max |gamma|, a scalar.

    Example:
        >>> float(batch_norm_max([nn.BatchNorm2d(3), nn.BatchNorm2d(2)]))
        2.0
    """
    return torch.stack([norm.weight.abs().max() for norm in norms]).sum()
