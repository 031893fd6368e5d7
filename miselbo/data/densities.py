r"""Unnormalised log-densities z [..., d] -> [...], nats: the targets of the paper's sections 5.1.1, 5.1.2, and more.

U_1..U_4: Rezende and Mohamed, "Variational inference with normalizing flows", ICML 2015, table 1; log p(z) = -U(z),

    w_1 = sin(2 pi z_1 / 4),  w_2 = 3 exp(-((z_1 - 1) / 0.6)^2 / 2),  w_3 = 3 sigmoid((z_1 - 1) / 0.3).

U_2, U_3 and U_4 do not decay along z_1 (and U_3, U_4 have a floor of 10^-6, as in the published MISELBO script), so
they have no normaliser on R^2, only on a box.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from miselbo import noise
from miselbo.errors import InputError

FLOOR = 1e-6
LOG_2PI = math.log(2 * math.pi)


def normal_log_density(z: Tensor, mean: float | Tensor, sd: float | Tensor) -> Tensor:
    """log N(z; mean, sd^2), elementwise.

    Example:
        >>> round(float(normal_log_density(torch.zeros(1), 0.0, 1.0)), 4)
        -0.9189
    """
    sd = torch.as_tensor(sd, dtype=z.dtype, device=z.device)
    return -0.5 * ((z - mean) / sd).square() - sd.log() - 0.5 * LOG_2PI


def _bump(z: Tensor, sd: float) -> Tensor:
    return -0.5 * (z / sd).square()


def _wave(z: Tensor) -> Tensor:
    return torch.sin(2 * math.pi * z[..., 0] / 4)


def ring(z: Tensor) -> Tensor:
    """-((|z| - 2) / 0.4)^2 / 2: a ring of radius 2.

    Example:
        >>> float(ring(torch.tensor([2.0, 0.0])))
        -0.0
    """
    return _bump(z.norm(dim=-1) - 2, 0.4)


def u1(z: Tensor) -> Tensor:
    """The ring with two modes, at z_1 = -2 and 2."""
    return ring(z) + torch.logaddexp(_bump(z[..., 0] - 2, 0.6), _bump(z[..., 0] + 2, 0.6))


def u2(z: Tensor) -> Tensor:
    """A wave: -((z_2 - w_1) / 0.4)^2 / 2.

    Example:
        >>> round(float(u2(torch.tensor([1.0, 1.4]))), 4)
        -0.5
    """
    return _bump(z[..., 1] - _wave(z), 0.4)


def u3(z: Tensor) -> Tensor:
    """A wave that splits: log(exp(-((z_2 - w_1) / .35)^2 / 2) + exp(-((z_2 - w_1 + w_2) / .35)^2 / 2) + 10^-6)."""
    shift = 3 * _bump(z[..., 0] - 1, 0.6).exp()
    return _two_waves(z, 0.35, shift, 0.35)


def u4(z: Tensor) -> Tensor:
    """A wave that forks: log(exp(-((z_2 - w_1) / .4)^2 / 2) + exp(-((z_2 - w_1 + w_3) / .35)^2 / 2) + 10^-6)."""
    shift = 3 * torch.sigmoid((z[..., 0] - 1) / 0.3)
    return _two_waves(z, 0.4, shift, 0.35)


def _two_waves(z: Tensor, sd: float, shift: Tensor, shifted_sd: float) -> Tensor:
    height = z[..., 1] - _wave(z)
    return torch.log(_bump(height, sd).exp() + _bump(height + shift, shifted_sd).exp() + FLOOR)


def normal_mixture(
    z: Tensor, means: Sequence[float], sds: Sequence[float], weights: Sequence[float] | None = None
) -> Tensor:
    """log sum_k w_k N(z; m_k, s_k^2), with equal weights by default; z [..., 1].

    Example:
        >>> round(float(normal_mixture(torch.zeros(1), [0.0, 0.0], [1.0, 1.0])), 4)
        -0.9189
    """
    mean, sd, weight = (
        torch.tensor(list(values), dtype=z.dtype, device=z.device)
        for values in (means, sds, weights or [1 / len(means)] * len(means))
    )
    return torch.logsumexp(normal_log_density(z, mean, sd) + weight.log(), -1)


def hierarchical(z: Tensor, mean: float = 10.0, sd: float = 3.0, conditional_sd: float = 2.0) -> Tensor:
    """z = (m, x): log N(m; 10, 3^2) + log N(x; m, 2^2), the second panel of section 5.1.2.

    Example:
        >>> round(float(hierarchical(torch.tensor([10.0, 10.0]))), 4)
        -3.6296
    """
    top, bottom = z[..., 0], z[..., 1]
    return normal_log_density(top, mean, sd) + normal_log_density(bottom, top, conditional_sd)


def coln(z: Tensor, median: Sequence[float], variance: float, covariance: float) -> Tensor:
    """Composition of log-normals on theta in (0, 1)^2, as a density of z = logit(theta) on R^2.

    log LN(theta; m, C) + log LN(1 - theta; m, C) + log theta (1 - theta), where m = log ``median``, C has
    ``variance`` on and ``covariance`` off its diagonal, and the last term is the Jacobian, so the normaliser is that on
    (0, 1)^2 (Kviman's thesis, section 4.2.3; the Gaussians there are on theta, whose density ends at 0 and 1).

    Args:
        z: [..., 2].
        median: exp(m).
        variance: C_ii.
        covariance: C_ij.
    """
    log_theta, log_rest = F.logsigmoid(z), F.logsigmoid(-z)
    both = [_log_normal(log_theta, median, variance, covariance)]
    both.append(_log_normal(log_rest, median, variance, covariance))
    return both[0] + both[1] + (log_theta + log_rest).sum(-1)


def _log_normal(log_value: Tensor, median: Sequence[float], variance: float, covariance: float) -> Tensor:
    """log LN(v; m, C) at log v [..., 2]: a normal density of log v, and the Jacobian -sum log v."""
    centred = log_value - torch.tensor(list(median), dtype=log_value.dtype, device=log_value.device).log()
    a, b = centred.unbind(-1)
    determinant = variance**2 - covariance**2
    square = (variance * (a.square() + b.square()) - 2 * covariance * a * b) / determinant
    return -0.5 * square - 0.5 * math.log(determinant) - LOG_2PI - log_value.sum(-1)


class LinearGaussian:
    """A VAE with linear decoder at one observation x: z -> log N(z; 0, I) + log N(x; W z + b, sd^2 I).

    log p(x) = log N(x; b, W W' + sd^2 I) is exact, and so is the posterior. W, b and then x are drawn from the seed
    (W and b standard normal, x from the model).

    Args:
        dim: of z.
        num_observed: of x.
        sd: of the observation noise.
        seed: of W, b and x.

    Attributes:
        log_normaliser: log p(x), nats.
        posterior: p(z | x), a MultivariateNormal in float64.

    Example:
        >>> model = LinearGaussian(dim=1, num_observed=2)
        >>> z = torch.tensor([0.3], dtype=torch.float64)
        >>> bool((model(z) - model.posterior.log_prob(z) - model.log_normaliser).abs() < 1e-12)
        True
    """

    def __init__(self, dim: int = 2, num_observed: int = 4, sd: float = 0.7, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        draw = {"generator": generator, "dtype": torch.float64}
        self.weight, self.bias = torch.randn(num_observed, dim, **draw), torch.randn(num_observed, **draw)  # type: ignore[call-overload]
        self.sd = sd
        error = torch.randn(num_observed, **draw)  # type: ignore[call-overload]
        self.x = self.weight @ torch.randn(dim, **draw) + self.bias + sd * error  # type: ignore[call-overload]
        eye = torch.eye(num_observed, dtype=torch.float64)
        marginal = torch.distributions.MultivariateNormal(
            self.bias, self.weight @ self.weight.T + sd**2 * eye
        )
        self.log_normaliser = float(marginal.log_prob(self.x))
        precision = torch.eye(dim, dtype=torch.float64) + self.weight.T @ self.weight / sd**2
        mean = torch.linalg.solve(precision, self.weight.T @ (self.x - self.bias) / sd**2)
        self.posterior = torch.distributions.MultivariateNormal(mean, precision_matrix=precision)

    def __call__(self, z: Tensor) -> Tensor:
        """log p(x, z), z [..., dim]."""
        weight, bias, x = (value.to(z) for value in (self.weight, self.bias, self.x))
        prior = normal_log_density(z, 0.0, 1.0).sum(-1)
        return prior + normal_log_density(x, z @ weight.T + bias, self.sd).sum(-1)


def exact_draws(density: object, index: Tensor, seed: int) -> Tensor:
    """z ~ p(z) / Z, [B, dim] float32, for the densities above that have a sampler, a function of (seed, index).

    Another density may have a method ``draws(index, seed)``, or be ``log_prob`` of a torch ``Distribution``, whose
    draws depend on how many are asked for.

    Raises:
        InputError: no exact draws of this density are known.

    Example:
        >>> import functools
        >>> density = functools.partial(normal_mixture, means=[-3.0, 3.0], sds=[0.1, 0.1])
        >>> z = exact_draws(density, torch.arange(1000), seed=0)
        >>> tuple(z.shape), bool(((z.abs() - 3).abs() < 0.6).all()), bool(z.mean().abs() < 0.4)
        ((1000, 1), True, True)
    """
    if hasattr(density, "draws"):
        return density.draws(index, seed)
    if isinstance(density, LinearGaussian):
        posterior = density.posterior
        eps = noise.normal(seed, index, len(posterior.loc)).to(posterior.loc)
        return (posterior.loc + eps @ posterior.scale_tril.T).float()
    owner = getattr(density, "__self__", None)
    if isinstance(owner, torch.distributions.Distribution):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(noise.derive(seed, int(index[0])) % 2**63)
            return owner.sample((len(index),)).flatten(1)
    function, given = getattr(density, "func", density), dict(getattr(density, "keywords", {}))
    if function is normal_mixture:
        means, sds = torch.tensor(list(given["means"])), torch.tensor(list(given["sds"]))
        weights = torch.tensor(list(given.get("weights") or [1 / len(means)] * len(means)))
        u = noise.uniform(seed, index, 1, member=1)[:, 0]
        k = torch.bucketize(u * weights.sum(), weights.cumsum(0)).clamp(max=len(means) - 1)
        return (means[k] + sds[k] * noise.normal(seed, index, 1)[:, 0])[:, None]
    if function is hierarchical:
        top, bottom = noise.normal(seed, index, 2).unbind(-1)
        top = given.get("mean", 10.0) + given.get("sd", 3.0) * top
        return torch.stack([top, top + given.get("conditional_sd", 2.0) * bottom], -1)
    raise InputError(
        f"no exact draws of {getattr(function, '__name__', type(density).__name__)} are known: a sandwich needs a "
        "normal mixture, hierarchical, linear_gaussian, log_prob of a distribution, or a density with a method "
        "draws(index, seed)"
    )
