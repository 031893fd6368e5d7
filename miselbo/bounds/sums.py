"""Sums over importance samples that arrive in pieces, in float64 and safe for log-weights of any size.

Weights are summed in units of the largest one so far, and the unit is raised when a larger one comes.
"""

import math

import torch
from torch import Tensor


def sample_factor(n: int) -> float:
    """Mean square about the mean -> variance of a mean of n draws; NaN for n = 1."""
    return 1 / (n - 1) if n > 1 else math.nan


class WeightSums:
    """sum_l w and sum_l w^2 in units of the largest w so far (its square), from log-weights."""

    def __init__(self, zeros: Tensor):
        self.peak = torch.full_like(zeros, -math.inf)
        self.first = zeros
        self.second = zeros.clone()

    def add(self, log_w: Tensor) -> None:
        """Absorb log_w [..., l]."""
        self.peak, scale = raise_peak(self.peak, log_w.amax(-1))
        w = (log_w - unit_of(self.peak)[..., None]).exp()
        self.first = self.first * scale + w.sum(-1)
        self.second = self.second * scale.square() + w.square().sum(-1)

    def log_sum(self) -> Tensor:
        """log sum_l w."""
        return self.first.log() + unit_of(self.peak)


class ShareSums:
    """sum_l y_j [B, N, j, s], sum_{s,l} y_i y_j [B, N, i, j] of y_j = W q_j / q_mix, the largest as unit."""

    def __init__(self, zeros: Tensor, zeros_by_member: Tensor):
        self.peak = torch.full_like(zeros, -math.inf)
        self.first = zeros_by_member
        self.second = zeros_by_member.clone()

    def add(self, log_y: Tensor) -> None:
        """Absorb log_y [B, N, j, s, l], which is overwritten."""
        self.peak, scale = raise_peak(self.peak, log_y.flatten(-2).amax(-1))
        y = log_y.sub_(unit_of(self.peak)[..., None, None]).exp_()
        self.first = self.first * scale[..., None] + y.sum(-1)
        y = y.flatten(-2)
        self.second = self.second * (scale[..., None] * scale[..., None, :]) + y @ y.mT


class PlainSums:
    """sum_l v and the sum of squares about the first draw, which keeps digits when v is far from 0."""

    def __init__(self, zeros: Tensor):
        self.first = zeros
        self.second = zeros.clone()
        self.origin: Tensor | None = None

    def add(self, values: Tensor) -> None:
        """Absorb values [..., l]."""
        if self.origin is None:
            self.origin = unit_of(values[..., 0])
        shifted = values - self.origin[..., None]
        self.first = self.first + shifted.sum(-1)
        self.second = self.second + shifted.square().sum(-1)

    def mean(self, n: int) -> Tensor:
        """1/n sum_l v."""
        return self.first / n + (0.0 if self.origin is None else self.origin)

    def variance_of_mean(self, n: int) -> Tensor:
        """Sample variance over l, divided by n."""
        return sample_factor(n) * (self.second / n - (self.first / n).square()).clamp(min=0)


class Tail:
    """The ``size`` largest log-weights per row."""

    def __init__(self, size: int):
        self.size = size
        self.pieces: list[Tensor] = []
        self.width = 0

    def add(self, log_w: Tensor) -> None:
        """Absorb log_w [..., l]; pieces are collected, and cut to size now and then."""
        self.pieces.append(log_w)
        self.width += log_w.shape[-1]
        if self.width > 4 * self.size:
            self.pieces = [self.largest()]
            self.width = self.pieces[0].shape[-1]

    def largest(self) -> Tensor:
        """The largest log-weights so far, [..., size] or fewer, in no order."""
        log_w = torch.cat(self.pieces, -1)
        return log_w.topk(min(self.size, log_w.shape[-1]), sorted=False).values


def raise_peak(peak: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The larger of both, and the old unit in terms of the new one (0 while nothing was summed)."""
    raised = torch.maximum(peak, seen)
    return raised, (peak - unit_of(raised)).exp()


def unit_of(peak: Tensor) -> Tensor:
    """The log of the unit that goes with a running maximum: the maximum, or 0 where it is not finite."""
    return peak.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
