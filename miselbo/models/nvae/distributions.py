"""Soft-clamped normals and the likelihoods of images."""

import math

import torch
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from miselbo.data.levels import quantise
from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError

__all__ = [
    "at_least_single",
    "check_image",
    "clamped_normal",
    "image_log_prob",
    "image_mean",
    "logistic_mixture_log_prob",
    "num_image_parameters",
    "quantise",
    "sample_image",
]

LIKELIHOODS = ("bernoulli", "logistic_mixture", "normal")
MIN_LOG_SCALE = -7.0


def at_least_single(values: Tensor) -> Tensor:
    """Half-precision values (mixed-precision training) in single precision; others as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def clamped_normal(raw: Tensor, dim: int = 1) -> Normal:
    """Normal(c(m), exp(c(s)) + 0.01), where raw = (m, s) along ``dim`` and c(t) = 5 tanh(t / 5).

    Example:
        >>> clamped_normal(torch.zeros(1, 2)).scale
        tensor([[1.0100]])
    """
    loc, log_scale = (5 * torch.tanh(at_least_single(raw) / 5)).chunk(2, dim)
    return Normal(loc, log_scale.exp() + 0.01, validate_args=False)


def check_image(image: ImageSpec) -> None:
    """Raise InputError unless the likelihood is known and fits the channels."""
    if image.likelihood not in LIKELIHOODS:
        raise InputError(f"likelihood is {image.likelihood!r}; expected one of {', '.join(LIKELIHOODS)}.")
    if min(image.channels, image.height, image.width) < 1:
        shape = (image.channels, image.height, image.width)
        raise InputError(f"the image has the shape {shape}; expected sizes >= 1.")
    if image.likelihood == "logistic_mixture":
        if image.channels not in (1, 3):
            raise InputError(f"logistic_mixture needs 1 or 3 channels; the image has {image.channels}.")
        if not 1 <= image.num_bits <= 8:
            raise InputError(f"num_bits is {image.num_bits}; expected 1 to 8.")


def num_image_parameters(image: ImageSpec, num_mixtures: int) -> int:
    """Channels the decoder must give: C, 2C (normal), or for mixtures 10M (colour) and 3M (grey).

    Example:
        >>> num_image_parameters(ImageSpec(3, 8, 8, "logistic_mixture"), 10)
        100
    """
    if image.likelihood == "bernoulli":
        return image.channels
    if image.likelihood == "normal":
        return 2 * image.channels
    return num_mixtures * (10 if image.channels == 3 else 3)


def image_log_prob(logits: Tensor, x: Tensor, image: ImageSpec) -> Tensor:
    """log p(x) of images x [B, C, H, W] in [0, 1] under logits [*lead, B, P, H, W], [*lead, B], float64.

    ``bernoulli``: logits are log-odds. ``normal``: (mean, log-scale) raw, a density at 2x - 1.
    ``logistic_mixture``: probabilities of the 2^num_bits levels.
    """
    if image.likelihood == "bernoulli":
        values = x * logits - F.softplus(logits)
    elif image.likelihood == "normal":
        values = clamped_normal(logits, -3).log_prob(2 * x - 1)
    else:
        values = logistic_mixture_log_prob(logits, x, image.num_bits).unsqueeze(-3)
    return values.sum((-3, -2, -1), dtype=torch.float64)


def image_mean(logits: Tensor, image: ImageSpec) -> Tensor:
    """Mean image in [0, 1], [..., C, H, W], of image parameters [..., P, H, W]."""
    if image.likelihood == "bernoulli":
        return logits.sigmoid()
    if image.likelihood == "normal":
        return (clamped_normal(logits, -3).loc.clamp(-1, 1) + 1) / 2
    log_weights, means, _, coefficients = _split_mixture(logits, image.channels)
    weights = log_weights.softmax(-3).unsqueeze(-4)
    mean = (weights * means).sum(-3)  # [..., C, H, W]
    colours = [mean[..., 0, :, :].clamp(-1, 1)]
    if image.channels == 3:
        assert coefficients is not None
        a, b, c = (weights * coefficients).sum(-3).unbind(-3)
        colours.append((mean[..., 1, :, :] + a * colours[0]).clamp(-1, 1))
        colours.append((mean[..., 2, :, :] + b * colours[0] + c * colours[1]).clamp(-1, 1))
    return (torch.stack(colours, -3) + 1) / 2


def sample_image(logits: Tensor, u: Tensor, image: ImageSpec) -> Tensor:
    """Images [B, C, H, W] in [0, 1] ~ p(x) under logits [B, P, H, W], made of uniform numbers u [B, 1 + C, H, W].

    ``bernoulli``: 0 or 1. ``logistic_mixture``: a component by u_0, then each colour rounded to its level, the
    outermost taking the tails, which is the discretised mixture itself. ``normal``: a density, so not rounded.
    """
    if image.likelihood == "bernoulli":
        return (u[:, 1:] < logits.sigmoid()).to(logits.dtype)
    if image.likelihood == "normal":
        x = clamped_normal(logits, -3)
        return (x.loc + x.scale * torch.special.ndtri(u[:, 1:]) + 1) / 2
    log_weights, means, log_scales, coefficients = _split_mixture(logits, image.channels)
    edges = log_weights.softmax(-3).cumsum(-3)
    chosen = (
        (u[:, :1] * edges[:, -1:] > edges).sum(-3, keepdim=True).clamp(max=edges.shape[-3] - 1)
    )  # [B, 1, H, W]

    def of_component(values: Tensor) -> Tensor:
        index = chosen[:, None].expand(-1, values.shape[1], -1, -1, -1)
        return values.gather(-3, index)[:, :, 0]

    mean, scale = of_component(means), of_component(log_scales).exp()
    noise = scale * (u[:, 1:].log() - (-u[:, 1:]).log1p())
    top = 2.0**image.num_bits - 1

    def level(value: Tensor) -> Tensor:
        return (((value.clamp(-1, 1) + 1) / 2 * top).round() / top) * 2 - 1

    colours = [level(mean[:, 0] + noise[:, 0])]
    if coefficients is not None:
        a, b, c = of_component(coefficients).unbind(1)
        colours.append(level(mean[:, 1] + a * colours[0] + noise[:, 1]))
        colours.append(level(mean[:, 2] + b * colours[0] + c * colours[1] + noise[:, 2]))
    return (torch.stack(colours, 1) + 1) / 2


def _split_mixture(logits: Tensor, channels: int) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Mixture logits [..., M, H, W]; means, log-scales and colour coefficients [..., C, M, H, W]."""
    fields = 3 if channels == 3 else 2  # a single channel has no coefficients
    count = logits.shape[-3] // (1 + channels * fields)
    log_weights, rest = logits.split([count, count * channels * fields], -3)
    parts = rest.unflatten(-3, (channels, fields, count)).unbind(-4)
    coefficients = parts[2].tanh() if channels == 3 else None
    return log_weights, parts[0], parts[1].clamp(min=MIN_LOG_SCALE), coefficients


def logistic_mixture_log_prob(logits: Tensor, x: Tensor, num_bits: int) -> Tensor:
    """Log-probability [..., H, W] of pixels by a discretised mixture of logistics (Salimans et al. 2017).

    Green is conditioned on red, blue on both, linearly with coefficients in (-1, 1); the outermost levels
    take the tails.

    Args:
        logits: [..., 10 M, H, W] for colour, [..., 3 M, H, W] for grey.
        x: [..., C, H, W] in [0, 1], levels k / (2^num_bits - 1).
        num_bits: bits per colour.
    """
    top = 2.0**num_bits - 1
    log_weights, means, log_scales, coefficients = _split_mixture(logits, x.shape[-3])
    x = (2 * x - 1).unsqueeze(-3)  # [..., C, 1, H, W]
    if coefficients is not None:
        red, green, _ = x.unbind(-4)
        a, b, c = coefficients.unbind(-4)
        m_red, m_green, m_blue = means.unbind(-4)
        means = torch.stack([m_red + 0 * a, m_green + a * red, m_blue + b * red + c * green], -4)
    distance, inverse = x - means, (-log_scales).exp()
    upper, lower = inverse * (distance + 1 / top), inverse * (distance - 1 / top)
    mass = upper.sigmoid() - lower.sigmoid()
    middle = inverse * distance
    density = middle - log_scales - 2 * F.softplus(middle) - math.log(top / 2)
    inside = torch.where(mass > 1e-5, mass.clamp(min=1e-10).log(), density)
    values = torch.where(x < -0.999, F.logsigmoid(upper), torch.where(x > 0.99, -F.softplus(lower), inside))
    return torch.logsumexp(values.sum(-4) + log_weights.log_softmax(-3), -3)
