"""A short script with types: ``mypy --strict`` accepts it against the installed package and an editable one."""

import math

import torch
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal

from miselbo import Ensemble, Result, bounds, evaluate


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    """z ~ N(0, 1), x given z ~ N(z, 1): x [B], z [L, B, 1] give [L, B], nats."""
    first = z[..., 0]
    return -0.5 * (first.square() + (x - first).square()) - math.log(2 * math.pi)


def encoder(x: Tensor) -> Distribution:
    """The exact posterior."""
    return Independent(Normal(x[:, None] / 2, 0.5**0.5), 1)


def shifted(x: Tensor) -> Distribution:
    """One that is not."""
    return Independent(Normal(x[:, None] / 2 + 0.2, 1.0), 1)


result: Result = evaluate(log_joint, [encoder, shifted], torch.linspace(-1, 1, 5), num_samples=100)
print(result.bounds.tail(1).to_string(), result.trust[0], result.to_latex(), sep="\n")
log_p, log_q = Ensemble(lambda z: -z.abs(), [Normal(-1.0, 1.0), Normal(1.0, 1.0)]).score(None, num_samples=4)
print(float(bounds.miselbo(log_p, log_q)), float(bounds.jsd(log_q)))
