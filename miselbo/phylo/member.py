"""The training of one member of a VBPI ensemble: its state, one iteration, one epoch, the check after a round."""

import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from miselbo.errors import InputError, TrainingDivergedError
from miselbo.noise import derive
from miselbo.phylo import rounds
from miselbo.phylo.objective import Objective, bound, coefficients
from miselbo.phylo.refit import Refit, refit
from miselbo.phylo.vbpi import Posterior, Vbpi
from miselbo.runs.tidy import Recorder
from miselbo.runtime import stopping

COUNTS = ("step", "skipped", "skipped_in_a_row", "seconds", "cpu_seconds")
MONITOR = 100  # samples of the bound at the end of an epoch
CHUNK = 1000  # of a check's samples at once


class Training:
    """The state of one member's training.

    Args:
        target: the posterior.
        member: trained in place.
        objective: hyper-parameters.
        epochs: of the whole training at most, which the schedules follow.
        seed: decides all draws.

    Raises:
        InputError: ``objective.dreg`` with a flow whose inverse has no gradient.

    Example:
        >>> from miselbo.phylo.data import simulated
        >>> data = simulated()
        >>> data.setup()
        >>> posterior = Posterior(data.spec)
        >>> training = Training(posterior, Vbpi(posterior), Objective(steps_per_epoch=2), epochs=9, seed=0)
        >>> sorted(training.epoch())
        ['beta', 'learning_rate_branch', 'train/bound', 'val/elbo', 'val/iwelbo']
    """

    def __init__(self, target: Posterior, member: Vbpi, objective: Objective, epochs: int, seed: int):
        if objective.dreg and not member.branches.flow.differentiable_inverse:
            raise InputError(
                "model.objective.dreg=true needs a flow with an inverse in closed form, which "
                f"{type(member.branches.flow).__name__} is not: give model.objective.dreg=false"
            )
        self.target, self.member, self.objective, self.seed = target, member, objective, seed
        self.generator = torch.Generator().manual_seed(seed % 2**63)
        tree, branch = list(member.sbn.parameters()), list(member.branches.parameters())
        groups = [{"params": part, "lr": 0.0} for part in (tree, branch)]
        self.parameters: list[nn.Parameter] = [*tree, *branch]
        self.optimiser = torch.optim.Adam(groups, fused=True)
        self.total = epochs * objective.steps_per_epoch
        self.step = self.skipped = self.skipped_in_a_row = 0
        self.seconds = self.cpu_seconds = 0.0  # by the clock; of this process, user and system
        self.bounds: list[float] = []  # of this epoch's iterations
        self.checks: list[rounds.Check] = []  # at the end of every round, where there may be several
        self.refit: Refit | None = None  # once it is done
        self.save: Callable[[], None] | None = None
        self.recorder = Recorder()

    @property
    def last_step(self) -> int:
        """Iterations up to the end of the round that is under way, or of the last one."""
        objective, done = self.objective, len(self.checks)
        ends = objective.ends(self.total)
        enough = (len(ends), objective.enough_ess, objective.least_gain)
        return ends[done if not done or rounds.goes_on(self.checks, *enough) else done - 1]

    @property
    def finished(self) -> bool:
        """Whether nothing is left to train."""
        return self.step >= self.last_step

    def draw(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Uniform and normal numbers for as many trees, from the member's generator."""
        choices, others = self.target.num_taxa - 1, self.target.num_continuous
        uniforms = torch.rand(count, choices, dtype=torch.float64, generator=self.generator)
        return uniforms, torch.randn(count, others, dtype=torch.float64, generator=self.generator)

    def iteration(self) -> float:
        """One step; returns the K-sample bound at beta = 1, nats (NaN for a skipped step)."""
        rates = self.objective.rates(self.step, self.total)
        for group, rate in zip(self.optimiser.param_groups, rates, strict=True):
            group["lr"] = rate
        uniforms, eps = self.draw(self.objective.num_particles)
        log_probabilities = self.member.sbn.log_probabilities()
        trees = self.member.sbn.sample(uniforms, log_probabilities)
        log_q_tree = self.member.sbn.log_prob(trees, log_probabilities)
        x, log_q_branch = self.member.branches.sample(trees, eps)
        log_lik, log_prior = self.target.log_likelihood(trees, x), self.target.log_branch_prior(x)
        given = self.objective.beta(self.step, self.total) * log_lik + log_prior
        rest = given - log_q_branch
        with np.errstate(invalid="ignore"):  # a bound that is no number is found below
            to_rest, to_tree = coefficients((rest - log_q_tree).detach().numpy())
        if self.objective.dreg and self.objective.second_stage(self.step, self.total):
            rest, to_rest = given - self.member.branches.path_log_prob(trees, x), to_rest**2
        self.optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward((rest, log_q_tree), (-torch.from_numpy(to_rest), -torch.from_numpy(to_tree)))
        self.step += 1
        size = sum(float(p.grad.abs().sum()) for p in self.parameters if p.grad is not None)
        if not math.isfinite(size) or not np.isfinite(to_tree).all():
            self.skip()
            return math.nan
        self.skipped_in_a_row = 0
        self.optimiser.step()
        value = bound((log_lik + log_prior - log_q_branch - log_q_tree).detach().numpy())
        return value + self.target.log_p_topology

    def skip(self) -> None:
        """Count a step with a non-finite bound or gradient, which changes nothing.

        Raises:
            TrainingDivergedError: too many in a row.
        """
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.objective.max_skipped_steps:
            raise TrainingDivergedError(
                f"{self.skipped_in_a_row} steps in a row gave a non-finite bound or gradient (iteration {self.step}): "
                "lower model.objective.learning_rate_branch, or anneal longer (model.objective.anneal_portion)"
            )

    def epoch(self) -> dict[str, float]:
        """The iterations of one epoch, or what is left of it; returns what is logged at its end.

        Raises:
            Stopped: a stop was asked for (:mod:`miselbo.runtime.stopping`); :attr:`save` was called.
        """
        start, before = (time.perf_counter(), time.process_time()), (self.seconds, self.cpu_seconds)

        def count_time() -> None:
            self.seconds = before[0] + time.perf_counter() - start[0]
            self.cpu_seconds = before[1] + time.process_time() - start[1]

        with stopping.holding():
            while len(self.bounds) < self.objective.steps_per_epoch:
                self.bounds.append(self.iteration())
                if self.save is not None and stopping.requested():
                    count_time()
                    self.save()
                    stopping.check()
        finite = [value for value in self.bounds if math.isfinite(value)]
        self.bounds = []
        values = self.close_round()
        if self.finished and self.objective.refit:
            self.refit = refit(
                self.target, self.member, self.objective.refit, derive(self.seed, self.step, 0)
            )
        weights = self.monitor()
        count_time()
        return {
            "train/bound": sum(finite) / len(finite) if finite else math.nan,
            "val/elbo": float(weights.mean()),
            "val/iwelbo": bound(weights.numpy()),
            "beta": self.objective.beta(self.step - 1, self.total),
            "learning_rate_branch": self.optimiser.param_groups[1]["lr"],
            **values,
        }

    def close_round(self) -> dict[str, float]:
        """At the end of a round, where there may be several: the check that decides on the next one, to be logged."""
        if len(self.objective.ends(self.total)) == 1 or not self.finished:
            return {}
        chunks = range(0, rounds.DRAWS, CHUNK)
        found = rounds.check(torch.cat([self.monitor(CHUNK, 1 + start) for start in chunks]))
        self.checks.append(found)
        return dict(zip(("check/iwelbo", "check/ess"), found, strict=True))

    @torch.no_grad()
    def monitor(self, count: int = MONITOR, *path: int) -> torch.Tensor:
        """log p - log q [count] of fresh samples, whose mean is the ELBO; other ones for another ``path``."""
        generator = torch.Generator().manual_seed(derive(self.seed, self.step, *path) % 2**63)
        own, self.generator = self.generator, generator
        uniforms, eps = self.draw(count)
        self.generator = own
        trees = self.member.sbn.sample(uniforms)
        x, log_q = self.member.branches.sample(trees, eps)
        return self.target.log_joint(trees, x) - log_q - self.member.sbn.log_prob(trees)

    def state(self) -> dict[str, object]:
        """Everything a later process needs to go on exactly."""
        return {
            "member": self.member.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "generator": self.generator.get_state(),
            "counts": {name: getattr(self, name) for name in COUNTS},
            "bounds": list(self.bounds),
            "checks": list(self.checks),
            "curve": self.recorder.kept(),
            "seed": self.seed,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state`; a ValueError where it is of another member or run."""
        if state.get("seed", self.seed) != self.seed:
            raise ValueError("of another member, or of a run with another seed")
        self.member.load_state_dict(state["member"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.generator.set_state(state["generator"])
        for name in COUNTS:
            setattr(self, name, state["counts"].get(name, 0.0))  # an older state lacks cpu_seconds
        self.bounds = list(state.get("bounds", []))
        self.checks = [tuple(found) for found in state.get("checks", [])]
        self.recorder.restore(state.get("curve"))
