"""Ten lines with types: ``mypy --strict`` accepts them against the installed package and an editable one."""

import torch
from torch import Tensor
from torch.distributions import Independent, Normal

from miselbo import Ensemble, Result, bounds, evaluate


def log_joint(x: Tensor, z: Tensor) -> Tensor:
    """z ~ N(0, 1), x given z ~ N(z, 1): x [B], z [L, B, 1] give [L, B], nats."""
    return Normal(0.0, 1.0).log_prob(z[..., 0]) + Normal(z[..., 0], 1.0).log_prob(x)


def encoder(x: Tensor) -> Independent:
    """The exact posterior."""
    return Independent(Normal(x[:, None] / 2, 0.5**0.5), 1)


def shifted(x: Tensor) -> Independent:
    """One that is not."""
    return Independent(Normal(x[:, None] / 2 + 0.2, 1.0), 1)


result: Result = evaluate(log_joint, [encoder, shifted], torch.linspace(-1, 1, 5), num_samples=100)
print(result.bounds.tail(1).to_string(), result.trust[0], result.to_latex(), sep="\n")
log_p, log_q = Ensemble(lambda z: -z.abs(), [Normal(-1.0, 1.0), Normal(1.0, 1.0)]).score(None, num_samples=4)
print(float(bounds.miselbo(log_p, log_q)), float(bounds.jsd(log_q)))
