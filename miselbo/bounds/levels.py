r"""Multilevel: means, errors and the number of examples of every level.

Level k of :mod:`miselbo.bounds.multilevel` has its corrections Y at n of the N examples, chosen at random without
replacement, from r_i independent replicates each. Over examples the expectation of Y varies by S^2, within an example
Y varies by sigma^2, and

    Var(mean) = (1 - n/N) S^2 / n + sigma^2 mean(1/r) / n.

sigma^2 comes from the examples with two replicates or more, S^2 is what is left of the variance over examples. Without
a second replicate all of the variance counts as sigma^2, which is too large by the factor 1 / (1 - n/N) at most.

Few examples at the top levels: their variance is pooled with the one that the levels below foretell (a line through
the logarithms), as if PRIOR examples more had been seen; and the error of the sum is widened so that value +- 1.96
errors holds the expectation 95 times in 100: by Student's t over 1.96 with Satterthwaite's degrees of freedom, fewer
where the examples have a high kurtosis, and by the skewness g of the sum, 1 + (z^4 + 2 z^2 - 3) / 18 g^2 at z = 1.96
(the term in g^2 of the Edgeworth expansion of a studentised mean: Hall, The Bootstrap and Edgeworth Expansion, 1992).

A level's units are as many as the variances of the OTHER levels ask for (:func:`by_the_others`).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.stats import t as student
from torch import Tensor

from miselbo.errors import InputError

Z95 = 1.959964  # half the width of a 95% interval in standard errors, for many degrees of freedom
SKEWED = (Z95**4 + 2 * Z95**2 - 3) / 18
PRIOR = 5.0  # examples that the decay of the levels below is worth
ENOUGH = 24  # examples from which on a level's variance takes part in the decay
TWICE = 100  # examples that are taken twice to know the spread within an example
REACH = 4  # levels below that the line goes through, at most
ROUNDS = 6
LEAST = 6  # units of every level at least
AIM = 0.9  # part of a goal that is aimed at, as errors have errors


@dataclass(frozen=True)
class Level:
    """One level's corrections, [C] for C quantities.

    Args:
        examples: n, distinct ones.
        num_examples: N.
        mean: over examples of their mean over replicates.
        between: S^2, at least 0.
        within: sigma^2.
        inverse: mean(1/r).
        freedom: degrees of freedom of the estimate of the error.
        skew: of the examples' means.
        kurtosis: theirs, that of a normal being 0.
    """

    examples: int
    num_examples: int
    mean: Tensor
    between: Tensor
    within: Tensor
    inverse: float
    freedom: float
    skew: Tensor
    kurtosis: Tensor

    @property
    def error2(self) -> Tensor:
        """Variance of the mean."""
        share = self.examples / self.num_examples
        return ((1 - share) * self.between + self.inverse * self.within) / self.examples

    @property
    def variance(self) -> Tensor:
        """V = S^2 + sigma^2, of a unit."""
        return self.between + self.within


def level(index: Tensor, corrections: Tensor, num_examples: int) -> Level:
    """Summary of one level.

    Args:
        index: [U] example of each unit (an example's replicate).
        corrections: [U, C].
        num_examples: N.

    Raises:
        InputError: a single unit.

    Example:
        >>> one = level(torch.tensor([0, 1, 0, 1]), torch.tensor([[1.0], [3.0], [2.0], [4.0]]), 2)
        >>> one.mean.tolist(), one.error2.tolist()            # n = N: the examples do not count, sigma^2 = 1/2 does
        ([2.5], [0.125])
    """
    if len(index) < 2:
        raise InputError(f"the error of a level needs 2 units at least, got {len(index)}")
    examples, place, repeats = torch.unique(index, return_inverse=True, return_counts=True)
    n, counts = len(examples), repeats.double()[:, None]
    y = corrections.double()
    first = y.new_zeros(n, y.shape[1]).index_add(0, place, y) / counts
    inverse, pairs = float((1 / counts).mean()), float((counts - 1).sum())
    total = first.var(0) if n > 1 else torch.zeros_like(first[0])
    shape = _shape(first)
    if not pairs:
        none = torch.zeros_like(total)
        return Level(n, num_examples, first.mean(0), none, total, 1.0, n - 1, *shape)
    within = (y - first[place]).square().sum(0) / pairs
    between = (total - inverse * within).clamp(min=0)
    freedom = pairs if n == num_examples else min(pairs, n - 1)
    return Level(n, num_examples, first.mean(0), between, within, inverse, freedom, *shape)


def _shape(values: Tensor) -> tuple[Tensor, Tensor]:
    """Skewness, corrected for few rows, and excess kurtosis of the columns of [n, C]; 0 where nothing varies."""
    n, away = len(values), values - values.mean(0)
    spread = away.square().mean(0)
    if n < 3:
        return torch.zeros_like(spread), torch.zeros_like(spread)
    skew = away.pow(3).mean(0) / spread.pow(1.5) * math.sqrt(n * (n - 1)) / (n - 2)
    kurtosis = away.pow(4).mean(0) / spread.square() - 3
    varies = spread > 1e-20
    return torch.where(varies, skew, 0.0), torch.where(varies, kurtosis, 0.0)


def estimates(levels: Sequence[Level]) -> tuple[Tensor, Tensor]:
    """Value and Monte Carlo error at the draws of every level, [K + 1, C] each.

    Example:
        >>> low = level(torch.tensor([0, 1, 0, 1]), torch.tensor([[1.0], [3.0], [2.0], [4.0]]), 2)
        >>> high = level(torch.tensor([0, 1]), torch.tensor([[0.5], [0.7]]), 2)
        >>> [round(float(v), 3) for v in estimates([low, high])[0]]
        [2.5, 3.1]
    """
    parts = smoothed(levels)
    means = torch.stack([part.mean for part in parts]).cumsum(0)
    error2 = torch.stack([part.error2 for part in parts])
    # of a variance of n values with excess kurtosis c: 2 / (2 / (n - 1) + c / n)
    freedom = 1 / torch.stack([1 / p.freedom + p.kurtosis.clamp(min=0) / (2 * p.examples) for p in parts])
    total = error2.cumsum(0)
    effective = total.square() / (error2.square() / freedom).cumsum(0).clamp(min=1e-300)
    wide = student.ppf(0.975, effective.nan_to_num(nan=1.0).clamp(1.0, 1e6).numpy()) / Z95
    third = torch.stack([p.skew * p.error2.pow(1.5) / math.sqrt(p.examples) for p in parts]).cumsum(0)
    skew2 = (third / total.pow(1.5)).nan_to_num(0.0, 0.0, 0.0).square()
    return means, total.sqrt() * (torch.from_numpy(np.asarray(wide)) + SKEWED * skew2)


def smoothed(levels: Sequence[Level]) -> list[Level]:
    """The levels with the variance of few examples pooled with the decay of the levels below."""
    parts = list(levels)
    for k, this in enumerate(levels):
        known = [j for j in range(max(1, k - REACH), k) if levels[j].examples >= ENOUGH]
        if k == 0 or this.examples >= ENOUGH or len(known) < 2:
            continue
        foretold = _foretold([levels[j].variance for j in known], known, k)
        weight = PRIOR / (PRIOR + this.examples - 1)
        pooled = weight * foretold + (1 - weight) * this.variance
        scale = torch.where(foretold.isfinite() & (this.variance > 0), pooled / this.variance, 1.0)
        parts[k] = replace(
            this, between=scale * this.between, within=scale * this.within, freedom=this.freedom + PRIOR
        )
    return parts


def by_the_others(levels: Sequence[Level], lowest: Level) -> list[Level]:
    """The levels with the variance that the others within REACH foretell, for how many units to take.

    Level 0 is no correction: its variances are those of ``lowest``, its pilot.

    Corrections are skewed: a variance that is large by chance comes with a mean that is. More units where the variance
    of the same units is large would pull high means down and leave low ones, a bias; the noise of the other levels is
    independent of a level's own.
    """
    parts = list(levels)
    for k, this in enumerate(levels):
        known = [j for j in range(max(1, k - REACH), min(len(levels), k + REACH + 1)) if j != k]
        if k == 0 or len(known) < 2:
            continue
        weights = torch.tensor([levels[j].examples - 1.0 for j in known], dtype=torch.float64)
        foretold = _foretold([levels[j].variance for j in known], known, k, weights)
        good = foretold.isfinite() & (this.variance > 0)
        scale = torch.where(good, foretold / this.variance, 1.0)
        parts[k] = replace(this, between=scale * this.between, within=scale * this.within)
    parts[0] = replace(levels[0], between=lowest.between, within=lowest.within)
    return parts


def _foretold(totals: Sequence[Tensor], at: Sequence[int], k: int, weights: Tensor | None = None) -> Tensor:
    """exp of the straight line through log total at levels ``at``, at level k; NaN where a total is 0 or unknown."""
    x = torch.tensor(at, dtype=torch.float64)
    share = torch.ones_like(x) if weights is None else weights
    share = share / share.sum()
    log_v = torch.stack(list(totals)).log()
    middle, mean = float(share @ x), share @ log_v
    away = x - middle
    slope = ((share * away)[:, None] * (log_v - mean)).sum(0) / (share * away.square()).sum()
    return (mean + slope.clamp(max=0.0) * (k - middle)).exp()


def pilot(draws: Sequence[int], num_examples: int) -> list[int]:
    """Units of the lower levels in the pilot: 256 of level 0, 32 of the next two and of those of L / 32 draws at most.

    Example:
        >>> pilot([1, 2, 4, 8, 16, 32, 64, 128, 256], 1000), pilot([1, 4, 16], 3)
        ([256, 32, 32, 32], [258, 33, 33])
    """
    lower = [n for k, n in enumerate(draws) if k < 3 or 32 * n <= draws[-1]]
    return [whole(32 if k else 256, num_examples) for k in range(len(lower))]


def extended(levels: Sequence[Level], draws: Sequence[int]) -> list[Level]:
    """The levels of a pilot and, above them, what their decay foretells."""
    parts, last = list(levels), len(levels)
    known = list(range(max(1, last - REACH), last))
    for k in range(last, len(draws)):
        variances = [levels[j].variance for j in known]
        foretold = _foretold(variances, known, k) if len(known) > 1 else variances[0]
        variance = torch.where(foretold.isfinite(), foretold, variances[-1])
        parts.append(replace(levels[-1], examples=LEAST, between=0 * variance, within=variance, inverse=1.0))
    return parts


def whole(units: int, num_examples: int) -> int:
    """Units rounded up to a multiple of N where they are more than N.

    Example:
        >>> whole(7, 10), whole(11, 10)
        (7, 20)
    """
    return units if units <= num_examples else num_examples * -(-units // num_examples)


def replicates(units: int, num_examples: int, level: int, of_pilot: bool = False) -> list[int]:
    """How many examples replicate 0, 1, ... of a level takes, each the first so many of the level's random order.

    Some are taken twice, to tell sigma^2 from S^2: in the pilot, at level 0, and where a quarter of the examples or
    more take part.

    Example:
        >>> replicates(5, 100, 1), replicates(30, 100, 1), replicates(300, 100, 0)
        ([5], [30, 30], [100, 100, 100])
    """
    rounds, rest = divmod(units, num_examples)
    sizes = [num_examples] * rounds + [rest] * (rest > 0)
    twice = _twice(units, num_examples, level, of_pilot)
    return sizes + [twice] * (twice > 0)


def _twice(units: int, num_examples: int, level: int, of_pilot: bool) -> int:
    """How many examples a level takes twice although it has no more units than there are examples."""
    if units > num_examples or not (of_pilot or level == 0 or 4 * units >= num_examples):
        return 0
    return min(units, TWICE if level else max(TWICE, num_examples // 20))


def allocate(levels: Sequence[Level], draws: Sequence[int], goals: Tensor, least: Sequence[int]) -> list[int]:
    """Units (an example's replicate) of every level, so that the errors of some quantities reach their goals.

    n_k = min(N, x sqrt(V_k / C_k)); above N every example is taken again, by sqrt(sigma_k^2 / C_k); x is the smallest
    that reaches all goals. V and sigma^2 are the largest over the quantities, each in units of its goal.

    Args:
        levels: of a pilot, [C] those quantities.
        draws: n_k; C_k = n_k + 1, the encoding of x counts as one more draw.
        goals: [C] nats.
        least: units that a level has already.

    Returns:
        Units of each level: up to N that many examples, above it a multiple of N.

    Example:
        >>> one = torch.tensor([1.0])
        >>> low = Level(100, 100, one, 0 * one, one, 1.0, 99, 0 * one, 0 * one)
        >>> high = Level(8, 100, one, 0 * one, one / 100, 1.0, 7, 0 * one, 0 * one)
        >>> allocate([low, high], [1, 2], torch.tensor([0.05]), [100, 8])
        [500, 37]
    """
    parts, scale, total = smoothed(levels), goals.square(), levels[0].num_examples
    between = torch.stack([(part.between / scale).nan_to_num() for part in parts])  # [K + 1, C]
    within = torch.stack([(part.within / scale).nan_to_num() for part in parts])
    cost = torch.tensor(draws, dtype=torch.float64) + 1
    few = ((between + within).amax(1) / cost).sqrt().tolist()
    many = (within.amax(1) / cost).sqrt().tolist()

    def units(x: float) -> list[int]:
        sizes = []
        for v, w, has in zip(few, many, least, strict=True):
            size = math.ceil(x * v)
            if size > total:
                size = total * max(1, round(x * w / total))
            sizes.append(max(has, size))
        return sizes

    def missed(sizes: Sequence[int]) -> bool:
        n = torch.tensor(sizes, dtype=torch.float64)[:, None]
        return bool((((1 / n - 1 / total).clamp(min=0) * between + within / n).sum(0) > 1).any())

    low, high = 0.0, 1.0
    while missed(units(high)) and high < 1e12:
        high *= 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if missed(units(middle)) else (low, middle)
    return units(high)


def passes(
    units: Sequence[int], draws: Sequence[int], num_examples: int, size: int, of_pilot: bool = False
) -> int:
    """Decoder passes of so many units of every level with ``size`` members.

    Example:
        >>> passes([10, 4], [1, 2], 10, 3)                     # 20 x 1 + 8 x 2 draws, with those taken twice
        108
    """
    taken = (n + _twice(n, num_examples, k, of_pilot) for k, n in enumerate(units))
    return size * sum(n * each for n, each in zip(draws, taken, strict=False))


def reach(
    measure: Callable[[list[int], bool], list[Level]],
    goals: Callable[[list[Level]], Tensor],
    draws: Sequence[int],
    num_examples: int,
    of: Sequence[int],
    limit: int,
) -> tuple[list[int], list[Level]]:
    """Pilot, allocation and more units until the errors at L reach their goals.

    The units of the pilot tell how many each level gets and are then left out: a variance that is large by chance comes
    with a mean that is, so to stop by the same units would be a bias. The upper levels, where a unit is dear, have no
    pilot but the decay of the lower ones.

    Every step is a function of the steps before it alone, so an interrupted run takes the same ones again.

    Args:
        measure: units of each level, and whether they are the pilot's own -> the levels.
        goals: the levels -> [len(of)] nats.
        draws: n_k.
        num_examples: N.
        of: the quantities with a goal, among C.
        limit: draws per member in all that are not exceeded after the pilot.

    Returns:
        Units of each level, and the levels.
    """
    chosen = list(of)
    first = measure(pilot(draws, num_examples), True)
    aim = AIM * goals(first)
    units = [num_examples, *[whole(LEAST, num_examples)] * (len(draws) - 1)]
    few = [_only(part, chosen) for part in extended(first, draws)]
    units = _within(limit, few, draws, aim, units)
    short = torch.ones_like(aim)
    for _ in range(ROUNDS):
        levels = measure(units, False)
        errors, wanted = estimates(levels)[1][-1, chosen], goals(levels)
        few = [_only(part, chosen) for part in levels]
        # the factor over 1.96, and the error's own error, in what is aimed at
        now = torch.stack([part.error2 for part in smoothed(few)]).sum(0).sqrt()
        aim = wanted * (now / errors).nan_to_num(nan=1.0).clamp(0.5, 1.0) * AIM
        few = by_the_others(few, _only(first[0], chosen))
        found = _within(limit, few, draws, aim * short, units)
        if found == units:
            if bool((errors <= wanted).all()) or passes(units, draws, num_examples, 1) >= limit:
                break
            short = short * (AIM * wanted / errors).clamp(max=1.0)
            found = _within(limit, few, draws, aim * short, units)
            if found == units:
                break
        units = found
    else:
        levels = measure(units, False)
    return units, levels


def _within(
    limit: int, few: Sequence[Level], draws: Sequence[int], aim: Tensor, least: list[int]
) -> list[int]:
    """:func:`allocate` with goals as close to ``aim`` as the limit allows."""
    found = allocate(few, draws, aim, least)
    while passes(found, draws, few[0].num_examples, 1) > limit and found != least:
        aim = aim * 1.2
        found = allocate(few, draws, aim, least)
    return found


def _only(part: Level, chosen: list[int]) -> Level:
    at = {name: getattr(part, name)[chosen] for name in ("mean", "between", "within", "skew", "kurtosis")}
    return replace(part, **at)
