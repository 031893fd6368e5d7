r"""Which members: the bounds of every subset of an ensemble from the one pass, and a path through them.

A subset m of the S members is an ensemble of its own with weights 1/|m|,

    miselbo_m     = 1/|m| sum_{s in m} log 1/L sum_l p / q_m at the samples of s,    q_m = 1/|m| sum_{j in m} q_j,
    joint_bound_m = log 1/|m| sum_{s in m} 1/L sum_l p / q_m.

Up to 8 members all 2^S - 1 subsets are scored (:class:`RunningSubsets`). Above that a path is chosen by forward
selection from a few kept scores (:class:`FirstSamples`), on half of them, and measured on the other half. The
tables are in :mod:`miselbo.evaluation.subset_tables`.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds.sums import WeightSums
from miselbo.errors import InputError

MOST_MEMBERS = 8
NAMES = ("miselbo", "joint_bound", "average_iwelbo")
KEPT_SAMPLES, KEPT_PAIRS = 32, 3200  # at most so many samples, and about so many values of log_q per example


def list_subsets(num_members: int) -> list[tuple[int, ...]]:
    """Every non-empty subset of members 0..S-1, by size, then in order: the order of all results here.

    Example:
        >>> list_subsets(3)
        [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]
    """
    sizes = range(1, num_members + 1)
    return [subset for size in sizes for subset in itertools.combinations(range(num_members), size)]


class RunningSubsets:
    """Bounds of all subsets of up to 8 members for one batch of examples, updated sample by sample.

    At a sample of member s the log-densities of all mixtures that hold s are built from q_s by doubling: each
    other member j is added to every mixture so far by one logaddexp. So no mixture is got by subtraction or
    from a common scale, and one that leaves out a dominating member keeps all its digits.

    Args:
        num_members: S, 1 to 8.
        num_samples: L.

    Raises:
        InputError: S not within 1 to 8, or L below 1.

    Example:
        >>> log_p, log_q = torch.randn(4, 3, 10), torch.randn(4, 3, 10, 3)
        >>> running = RunningSubsets(num_members=3, num_samples=10)
        >>> running.update(log_p, log_q)
        >>> values = running.result()["subset_miselbo"]         # [B, M], M = 7
        >>> pair = bounds.miselbo(log_p[:, [0, 2]], log_q[:, [0, 2]][..., [0, 2]])
        >>> torch.allclose(values[:, list_subsets(3).index((0, 2))], pair)
        True
    """

    def __init__(self, num_members: int, num_samples: int):
        if not isinstance(num_members, int) or not 1 <= num_members <= MOST_MEMBERS:
            raise InputError(
                f"every subset is scored for 1 to {MOST_MEMBERS} members, got num_members = {num_members!r}"
            )
        self.num_members = num_members
        self.total = _positive(num_samples)
        self.num_samples = 0
        members = range(num_members)
        self._order = torch.tensor([[s, *(j for j in members if j != s)] for s in members])  # [S, S]
        self._mixture: WeightSums | None = None  # p / q_m, [B, subsets that hold s, s]
        self._own: WeightSums | None = None  # p / q_s, [B, s]

    @torch.no_grad()
    def update(self, log_p: Tensor, log_q: Tensor) -> None:
        """Absorb the next samples of the batch, any number of them.

        Args:
            log_p: [B, S, l].
            log_q: [B, S, l, S].

        Raises:
            InputError: dtype or shape, or more samples than L.
        """
        log_p, log_q = _piece(log_p, log_q, self.num_members)
        samples = log_p.shape[2]
        if self.num_samples + samples > self.total:
            raise InputError(f"L = {self.total}: after {self.num_samples} samples got {samples} more")
        if self._mixture is None or self._own is None:
            with_s = 2 ** (self.num_members - 1)
            self._mixture = WeightSums(log_p.new_zeros(len(log_p), with_s, self.num_members))
            self._own = WeightSums(log_p.new_zeros(log_p.shape[:2]))
        order = self._order.to(log_p.device)[None, :, None].expand(log_q.shape)
        log_density = log_q.gather(-1, order).movedim(-1, 0)  # [S, B, s, l], own first, then the others
        mixtures = log_density[:1]
        for other in log_density[1:]:
            mixtures = torch.cat([mixtures, torch.logaddexp(mixtures, other)])
        self._mixture.add((log_p - mixtures).movedim(0, 1))
        self._own.add(log_p - log_density[0])
        self.num_samples += samples

    @torch.no_grad()
    def result(self) -> dict[str, Tensor]:
        """All values, float64, examples first, subsets in the order of :func:`list_subsets`.

        Returns:
            ``subset_miselbo``, ``subset_joint_bound`` and ``subset_average_iwelbo``, each [B, 2^S - 1].

        Raises:
            InputError: fewer than L samples were given.
        """
        if self._mixture is None or self._own is None or self.num_samples < self.total:
            raise InputError(
                f"L = {self.total} but only {self.num_samples} samples were given: update with all"
            )
        iwelbo = self._own.log_sum()[:, None] - math.log(self.total)
        inside, place, size = self._layout(iwelbo)
        log_sums = self._mixture.log_sum()[:, place, torch.arange(self.num_members)]  # [B, M, s]
        strata = log_sums + size.log()[:, None] - math.log(self.total)  # q_m has 1/|m|

        def average(values: Tensor) -> Tensor:
            return values.where(inside, 0.0).sum(-1) / size

        joint = strata.masked_fill(~inside, -math.inf).logsumexp(-1) - size.log()
        values = {"miselbo": average(strata), "joint_bound": joint, "average_iwelbo": average(iwelbo)}
        return {f"subset_{name}": values[name] for name in NAMES}

    def _layout(self, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which member is in which subset [M, S], where :meth:`update` put the subset [M, S], its size [M]."""
        subsets, members = list_subsets(self.num_members), range(self.num_members)
        inside = torch.tensor([[s in subset for s in members] for subset in subsets], device=like.device)
        place = torch.tensor([[self._place(subset, s) for s in members] for subset in subsets])
        return inside, place.to(like.device), inside.sum(-1).to(like)

    def _place(self, subset: tuple[int, ...], s: int) -> int:
        """Where doubling put this subset among those that hold s: the (i + 1)-th other member is bit i."""
        others = self._order[s, 1:].tolist()
        return sum(1 << bit for bit, other in enumerate(others) if other in subset)


class FirstSamples:
    """The first samples' scores of one batch as they are, for what needs the draws again.

    Args:
        num_members: S.
        num_samples: L; kept are min(L, 32) samples, fewer above 10 members (:func:`num_kept`).

    Raises:
        InputError: L below 1.

    Example:
        >>> kept = FirstSamples(num_members=2, num_samples=3)
        >>> kept.update(torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 2))
        >>> kept.update(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1, 2))
        >>> {name: tuple(value.shape) for name, value in kept.result().items()}
        {'kept_log_p': (1, 2, 3), 'kept_log_q': (1, 2, 3, 2)}
    """

    def __init__(self, num_members: int, num_samples: int):
        self.num_members = num_members
        self.missing = num_kept(num_members, num_samples)
        self._pieces: list[tuple[Tensor, Tensor]] = []

    def update(self, log_p: Tensor, log_q: Tensor) -> None:
        """Keep what is still missing: log_p [B, S, l] and log_q [B, S, l, S].

        Raises:
            InputError: dtype or shape.
        """
        if self.missing:
            _piece(log_p, log_q, self.num_members)
            take = min(self.missing, log_p.shape[2])
            self._pieces.append((log_p[:, :, :take].float().clone(), log_q[:, :, :take].float().clone()))
            self.missing -= take

    def result(self) -> dict[str, Tensor]:
        """``kept_log_p`` [B, S, K] and ``kept_log_q`` [B, S, K, S], float32.

        Raises:
            InputError: fewer samples than are to be kept were given.
        """
        if self.missing:
            raise InputError(f"{self.missing} samples are still to come: update with all")
        log_p, log_q = (torch.cat(list(pieces), 2) for pieces in zip(*self._pieces, strict=True))
        return {"kept_log_p": log_p, "kept_log_q": log_q}


def num_kept(num_members: int, num_samples: int) -> int:
    """How many samples :class:`FirstSamples` keeps: few enough for about 13 kB per example, at least 2 of L.

    Example:
        >>> num_kept(5, 1000), num_kept(20, 1000), num_kept(5, 10), num_kept(100, 1)
        (32, 8, 10, 1)
    """
    return min(_positive(num_samples), KEPT_SAMPLES, max(2, KEPT_PAIRS // num_members**2))


def subset_bounds(log_p: Tensor, log_q: Tensor, subset: Sequence[int]) -> dict[str, Tensor]:
    """The bounds of one subset from scores of all members.

    Args:
        log_p: [..., S, L].
        log_q: [..., S, L, S].
        subset: members, counted from 0.

    Returns:
        ``miselbo``, ``joint_bound`` and ``average_iwelbo``, [...].

    Raises:
        InputError: dtype or shape.

    Example:
        >>> sorted(subset_bounds(torch.zeros(2, 1), torch.zeros(2, 1, 2), [1]))
        ['average_iwelbo', 'joint_bound', 'miselbo']
    """
    chosen = torch.as_tensor(list(subset), device=log_q.device)
    p, q = log_p.index_select(-2, chosen), log_q.index_select(-3, chosen).index_select(-1, chosen)
    return {name: getattr(bounds, name)(p, q) for name in NAMES}


def greedy_path(value_of: dict[tuple[int, ...], float]) -> list[int]:
    """Forward selection: begin with the best member, then always add the one that leaves the best subset.

    Args:
        value_of: a value for every subset.

    Returns:
        All members, counted from 0, in the order in which they were added. Ties go to the earlier member, and a
        subset whose value is NaN comes last.

    Example:
        >>> greedy_path({(0,): 1.0, (1,): 2.0, (0, 1): 1.5})
        [1, 0]
    """
    return _forward_selection(max(map(len, value_of)), lambda subset: value_of[subset])


def greedy_path_from_scores(log_p: Tensor, log_q: Tensor, name: str = "miselbo") -> list[int]:
    """:func:`greedy_path` by the mean of a bound over the examples; S (S + 1) / 2 subsets are scored.

    Args:
        log_p: [B, S, L].
        log_q: [B, S, L, S].
        name: which bound to go by.

    Returns:
        All members, counted from 0, in the order in which they were added.

    Raises:
        InputError: dtype or shape.

    Example:
        >>> greedy_path_from_scores(torch.tensor([[[1.0], [2.0]]]), torch.zeros(1, 2, 1, 2))
        [1, 0]
    """
    bounds.check_scores(log_p, log_q)
    return _forward_selection(
        log_p.shape[1], lambda subset: float(subset_bounds(log_p, log_q, subset)[name].mean())
    )


def _forward_selection(num_members: int, value_of: Callable[[tuple[int, ...]], float]) -> list[int]:
    path: list[int] = []
    while len(path) < num_members:
        values = {s: value_of(tuple(sorted([*path, s]))) for s in range(num_members) if s not in path}
        path.append(max(values, key=lambda s: -math.inf if math.isnan(values[s]) else values[s]))
    return path


def _positive(num_samples: int) -> int:
    if not isinstance(num_samples, int) or num_samples < 1:
        raise InputError(f"num_samples must be a whole number of at least 1, got {num_samples!r}")
    return num_samples


def _piece(log_p: Tensor, log_q: Tensor, num_members: int) -> tuple[Tensor, Tensor]:
    log_p, log_q = bounds.check_scores(log_p, log_q)
    if log_p.ndim != 3 or log_p.shape[1] != num_members:
        raise InputError(f"log_p must be [B, S, l] with S = {num_members}, got {list(log_p.shape)}")
    return log_p, log_q
