"""Volume-preserving auto-regressive flows of NVAE's posteriors (they see nothing of x)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.models.nvae.convs import autoregressive_conv


class ShiftFlow(nn.Module):
    """z -> z - mu(z) with mu auto-regressive, so that log |det| = 0."""

    def __init__(self, channels: int, mirror: bool) -> None:
        super().__init__()
        hidden = 6 * channels
        self.mix = autoregressive_conv(channels, hidden, 3, bias=False, strict=True, mirror=mirror)
        self.spatial = autoregressive_conv(hidden, hidden, 5, groups=hidden, bias=False, mirror=mirror)
        self.shift = autoregressive_conv(hidden, channels, 1, mirror=mirror)
        with torch.no_grad():
            self.shift.log_gain.add_(math.log(0.1))

    def mu(self, z: Tensor) -> Tensor:
        """The shift; entry k depends on entries before k only."""
        return self.shift(F.elu(F.elu(self.spatial(F.elu(self.mix(z))))))

    def forward(self, z: Tensor) -> Tensor:
        """z - mu(z)."""
        return z - self.mu(z)

    def inverse(self, y: Tensor) -> Tensor:
        """Solve z = y + mu(z) by iteration, which is exact after as many steps as there are dimensions.

        It stops when a step changes nothing beyond round-off, usually after 10 to 15.
        """
        tolerance = 4 * torch.finfo(y.dtype).eps
        z = y + self.mu(y)
        if y.is_meta:
            return z
        for _ in range(y[0].numel()):
            previous, z = z, y + self.mu(z)
            change = ((z - previous).detach().abs().amax() / (1 + z.detach().abs().amax())).item()
            if not change > tolerance:  # also when it is not a number
                break
        return z


class FlowPair(nn.Module):
    """A shift flow in raster order, then one in the reversed order."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = ShiftFlow(channels, mirror=False)
        self.second = ShiftFlow(channels, mirror=True)

    def forward(self, z: Tensor) -> Tensor:
        """Apply both."""
        return self.second(self.first(z))

    def inverse(self, y: Tensor) -> Tensor:
        """Undo both, the last one first."""
        return self.first.inverse(self.second.inverse(y))


class Chain:
    """Several flows one after the other."""

    def __init__(self, flows: Sequence[FlowPair]) -> None:
        self.flows = flows

    def __call__(self, z: Tensor) -> Tensor:
        """Apply in order."""
        for flow in self.flows:
            z = flow(z)
        return z

    def inverse(self, z: Tensor) -> Tensor:
        """Undo in reverse order."""
        for flow in reversed(self.flows):
            z = flow.inverse(z)
        return z
