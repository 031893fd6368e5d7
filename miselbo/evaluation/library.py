"""Evaluation without a configuration: any target and members, or scores made elsewhere, to a :class:`Result`."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from miselbo import bounds
from miselbo.bounds.certificate import check_confidence
from miselbo.bounds.quantities import QUANTITIES
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import annealed_run, multilevel, multilevel_tables
from miselbo.evaluation.annealed import Plan
from miselbo.evaluation.result import Result
from miselbo.evaluation.scoring import Fitting, Source, inference_form, refined
from miselbo.evaluation.settings import (
    METHODS,
    PIXELS_PER_PASS,
    Settings,
    check_goal,
    check_levels,
    check_refinement,
    make_grid,
)
from miselbo.evaluation.shards import score_all
from miselbo.evaluation.summary import About, write_results
from miselbo.models.conditional import adopt
from miselbo.protocols import EnsembleForm, fingerprint
from miselbo.report.summary import Summary
from miselbo.runtime import locks
from miselbo.runtime.progress import Meter

Weights = Tensor | Sequence[float] | None
Scores = Tensor | npt.ArrayLike
KEYS = {"evaluation.num_samples": "num_samples", "evaluation.num_examples": "the number of rows of x"}
KEYS_OF_DENSITY = {"raise evaluation.num_samples or evaluation.num_examples": "raise num_samples", **KEYS}
WEIGHTED = tuple(quantity.name for quantity in QUANTITIES if quantity.monitored)


class TensorSource:
    """Scores of examples that are rows of one tensor.

    Args:
        ensemble: scored in the form it is given.
        x: [N, ...]; None is one example of a density.
        settings: of the evaluation.
    """

    def __init__(self, ensemble: EnsembleForm, x: Tensor | None, settings: Settings):
        self.x = torch.zeros(1, 0) if x is None else x
        self.ensemble, self.settings = ensemble, settings
        self.num_members, self.num_data = len(ensemble.members), len(self.x)
        self.samples_per_pass = settings.samples_per_pass

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Rows [b] and examples of each batch."""
        rows = torch.arange(self.num_data, device=self.x.device)
        yield from zip(
            rows.split(self.settings.batch_size), self.x.split(self.settings.batch_size), strict=True
        )

    def passes(self, index: Tensor, batch: Tensor, first: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
        """The ensemble's scores."""
        settings, step = self.settings, self.samples_per_pass
        return self.ensemble.passes(batch, settings.num_samples, step, settings.seed, index, first)

    def at(self, positions: Tensor, num_samples: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [b], log_p [b, S, n] and log_q [b, S, n, S] of some rows."""
        rows = positions.to(self.x.device)
        step = min(self.samples_per_pass, num_samples)
        scores = list(self.ensemble.passes(self.x[rows], num_samples, step, seed, rows))
        log_p, log_q = (torch.cat(part, 2) for part in zip(*scores, strict=True))
        return rows, log_p, log_q


def evaluate(
    target: object,
    members: Sequence[object],
    x: Tensor | None = None,
    num_samples: int = 100,
    *,
    seed: int = 0,
    grid: Sequence[int] | None = None,
    batch_size: int = 100,
    samples_per_pass: int | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
    exact_modules: bool = False,
    confidence: float = 0.95,
    method: str = "full",
    stop_at_se: float | str = "auto",
    refine_steps: int = 0,
    plan: Plan | None = None,
) -> Result:
    """Every bound of an ensemble and of its nested parts, with errors and a verdict, from one pass over the samples.

    Args:
        target: a :class:`~miselbo.protocols.Target`, or any callable ``log_joint(x, z)`` -> log p(x, z): x [B, ...] and
            z [L, B, D...] give [L, B], nats. With ``x=None`` also any callable z -> log p(z).
        members: :class:`~miselbo.protocols.Approximation` s, or callables ``x -> torch.distributions.Distribution`` of
            batch shape [B] and event shape [D...]; with ``x=None`` distributions themselves, zuko's flows among them.
        x: [N, ...] data, each row one example; None for a density.
        num_samples: L, samples per member and example.
        seed: key of the noise, which is a function of (seed, example, member, sample).
        grid: the L' to report; 1, 2, 5, 10, ... up to L by default.
        batch_size: examples scored at once.
        samples_per_pass: samples of a member scored at once; by default as many as is fast.
        folder: keep tables and finished batches here; the same call goes on from them. None keeps all in memory.
        progress: show it, with the time left.
        exact_modules: score with the modules as they are, not in the target's faster form.
        confidence: of ``summary["certificate"]``, see :mod:`miselbo.bounds.certificate`.
        method: "full", or "multilevel": the same expectations from few examples with many draws and many with few,
            until the Monte Carlo errors of MISELBO, joint bound and average IWELBO are below ``stop_at_se``; reported
            are then the L' of :func:`miselbo.bounds.multilevel.chain`; or "annealed": the full run, and annealed
            importance sampling from the mixture of the members (``tables["annealed.csv"]``, ``summary["annealed"]``).
        stop_at_se: of multilevel: nats, or "auto" for a fifth of the error over the data.
        refine_steps: Adam steps of every member's mean and scale for every x before it is scored, see
            :mod:`miselbo.models.refined`.
        plan: of method "annealed", :class:`miselbo.evaluation.annealed.Plan`.

    Raises:
        InputError: what is given does not fit together.

    Example:
        >>> import math
        >>> prior = torch.distributions.Normal(0.0, 1.0)
        >>> def log_joint(x, z):                            # z ~ N(0, 1), x | z ~ N(z, 1)
        ...     return prior.log_prob(z[..., 0]) + torch.distributions.Normal(z[..., 0], 1.0).log_prob(x)
        >>> def encoder(shift):
        ...     def q(x):
        ...         normal = torch.distributions.Normal(x[:, None] / 2 + shift, math.sqrt(0.5))
        ...         return torch.distributions.Independent(normal, 1)
        ...     return q
        >>> result = evaluate(log_joint, [encoder(-0.1), encoder(0.1)], torch.linspace(-1, 1, 20), 50)
        >>> result.bounds[["S", "L"]].tail(1).values.tolist()
        [[2, 50]]
        >>> exact = torch.distributions.Normal(0.0, math.sqrt(2)).log_prob(torch.linspace(-1, 1, 20)).mean()
        >>> bool(abs(result.summary["headline"]["joint_bound"] - exact) < 0.01)
        True
    """
    for name, value in (("num_samples", num_samples), ("batch_size", batch_size)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name} must be a whole number of at least 1, got {value!r}")
    if x is not None and (not isinstance(x, Tensor) or x.ndim == 0 or len(x) == 0):
        got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise InputError(
            f"x must be a tensor [N, ...] of at least one example, or None for a density; got {got}"
        )
    check_confidence(confidence)
    if method not in METHODS:
        raise InputError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    check_goal(stop_at_se, "stop_at_se")
    check_refinement(refine_steps, method)
    ensemble = Ensemble(*adopt(target, members, x is not None))
    per_example = 1 if x is None else max(1, x[0].numel())
    step = samples_per_pass or max(1, PIXELS_PER_PASS // (per_example * batch_size))
    points = make_grid(grid, num_samples)
    settings = Settings(
        "test",
        num_samples,
        points,
        batch_size,
        min(step, num_samples),
        None,
        seed,
        confidence=confidence,
        refine_steps=refine_steps,
    )
    double = x is not None and x.dtype == torch.float64
    frozen, ensemble = ensemble, refined(ensemble, settings)
    scorer = ensemble if exact_modules or double else inference_form(ensemble, "float32")
    source = TensorSource(scorer, x, settings)
    protocol = {
        "model": type(target).__name__
        if hasattr(target, "draw")
        else getattr(target, "__name__", "log_joint"),
        "dataset": "x" if x is not None else "density",
        "split": "given",
        "seed": seed,
        "fingerprint": fingerprint(frozen),
        **({"refine_steps": refine_steps} if refine_steps else {}),
        "dtype": "float64" if double else "float32",
    }
    stamp = f"{protocol['fingerprint']} {_stamp(x)}"
    words = KEYS_OF_DENSITY if x is None else KEYS
    if method == "multilevel":
        return _by_levels(source, settings, grid, protocol, stamp, stop_at_se, folder, progress, words)
    if method != "annealed":
        return _results(source, settings, protocol, stamp, folder, progress, words)
    plan = plan or Plan(seed=seed)

    def examples_at(positions: Tensor) -> tuple[Tensor, Tensor]:
        rows = positions.to(source.x.device)
        return source.x[rows], rows

    def anneal(summary: Summary, place: Path) -> None:
        device = str(source.x.device)
        kind = replace(settings, dtype="float64" if double else "float32")
        annealed_run.add(summary, ensemble, examples_at, kind, plan, None, place, stamp, device, progress)

    annealed_run.check(ensemble, examples_at)
    return _results(source, settings, protocol, stamp, folder, progress, words, anneal)


def evaluate_scores(
    log_p: Scores,
    log_q: Scores,
    *,
    grid: Sequence[int] | None = None,
    weights: Weights = None,
    batch_size: int = 100,
    folder: str | Path | None = None,
    progress: bool = False,
    confidence: float = 0.95,
) -> Result:
    """The same from scores that were made elsewhere.

    Args:
        log_p: [N, S, L] array or tensor, log p(x_n, z_{s,l}), nats.
        log_q: [N, S, L, S], log q_j(z_{s,l} | x_n).
        grid: the L' to report.
        weights: [S] of the mixture; adds ``summary["weighted"]``, the bounds at L under them.
        batch_size: examples at once.
        folder: as in :func:`evaluate`.
        progress: as in :func:`evaluate`.
        confidence: as in :func:`evaluate`.

    Raises:
        InputError: a dtype, a shape, or values that no scores can have.

    Example:
        >>> generator = np.random.default_rng(0)
        >>> log_p, log_q = generator.normal(size=(5, 2, 10)), generator.normal(size=(5, 2, 10, 2))
        >>> row = evaluate_scores(log_p, log_q).bounds.iloc[-1]
        >>> expected = bounds.miselbo(torch.from_numpy(log_p), torch.from_numpy(log_q)).mean()
        >>> bool(abs(row["miselbo"] - expected) < 1e-9)
        True
    """
    from miselbo.importers.arrays import WORDS, ArraySource

    check_confidence(confidence)
    with tempfile.TemporaryDirectory() as place:
        for name, values in (("log_p", log_p), ("log_q", log_q)):
            array = values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)
            np.save(Path(place, f"{name}.npy"), array)
        source = ArraySource(Path(place), batch_size=batch_size)
        samples = source.num_samples
        points = make_grid(grid, samples)
        settings = Settings("test", samples, points, batch_size, samples, None, 0, confidence=confidence)
        protocol = {
            **source.protocol(),
            "seed": 0,
            "fingerprint": source.fingerprint,
            "scores": "given arrays",
        }
        result = _results(source, settings, protocol, source.fingerprint, folder, progress, WORDS)
    if weights is not None:
        result.summary["weighted"] = _weighted(log_p, log_q, weights)
    return result


def _weighted(log_p: Scores, log_q: Scores, weights: Weights) -> dict[str, object]:
    """Means over the examples of the bounds under given mixture weights, with standard errors over the data."""
    p, q = (torch.as_tensor(np.asarray(values), dtype=torch.float64) for values in (log_p, log_q))
    row: dict[str, object] = {"weights": [float(w) for w in torch.as_tensor(weights)]}
    for name in WEIGHTED:
        values = bounds.jsd(q, weights) if name == "jsd" else getattr(bounds, name)(p, q, weights)
        row[name] = float(values.mean())
        row[f"{name}_se"] = float(values.std() / len(values) ** 0.5) if len(values) > 1 else None
    return row


def _results(
    source: Source,
    settings: Settings,
    protocol: Mapping[str, object],
    stamp: str,
    folder: str | Path | None,
    progress: bool,
    words: Mapping[str, str],
    add: Callable[[Summary, Path], None] = lambda summary, place: None,
) -> Result:
    """Score everything, write the tables and what ``add`` does into the folder or a passing one, and read them."""
    if folder is not None:
        place = Path(folder)
        with locks.hold(place, locks.WHOLE, "in use (evaluate)"):
            values = score_all(source, settings, place / "results" / "shards", stamp, progress)
            add(write_results(values, settings, place, protocol, [], None, words), place)
            return Result.read(place)
    fitting, parts, done = Fitting(source, settings, None), [], 0
    meter = Meter("evaluate", source.num_data, progress)
    for index, batch in source.batches():
        rows = slice(done, done + len(index))
        parts.append(fitting.score(index, batch, rows))
        done = rows.stop
        meter.update(done)
    meter.close()
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    with tempfile.TemporaryDirectory() as passing:
        add(write_results(values, settings, Path(passing), protocol, [], None, words), Path(passing))
        return Result.read(Path(passing))


def _by_levels(
    source: TensorSource,
    settings: Settings,
    grid: Sequence[int] | None,
    protocol: Mapping[str, object],
    stamp: str,
    goal: float | str,
    folder: str | Path | None,
    progress: bool,
    words: Mapping[str, str],
) -> Result:
    """Multilevel evaluation into the folder or a passing one."""
    check_levels(settings, grid)
    about = About({**protocol, "method": "multilevel"}, [], None, words)
    if folder is None:
        with tempfile.TemporaryDirectory() as passing:
            found = multilevel.run(source, settings, goal, None, progress)
            multilevel_tables.write(found, settings, Path(passing), about)
            return Result.read(Path(passing))
    place = Path(folder)
    pieces = place / "results" / "shards" / multilevel.key(settings, stamp)
    with locks.hold(place, locks.WHOLE, "in use (evaluate)"):
        pieces.mkdir(parents=True, exist_ok=True)
        found = multilevel.run(source, settings, goal, pieces, progress)
        multilevel_tables.write(found, settings, place, about)
        return Result.read(place)


def _stamp(x: Tensor | None) -> str:
    """Fingerprint of the data."""
    if x is None:
        return "no data"
    module = torch.nn.Module()
    module.register_buffer("x", x)
    return fingerprint(module)
