r"""Hierarchical VAEs in two modules: a top-down decoder (theta), which many encoders (phi) share.

Groups of latent variables are numbered from the deepest one, z_0 .. z_{G-1}, with
p(x, z) = p(z_0) prod_i p(z_i given z_{<i}) p(x given z) and q(z given x) = prod_i q(z_i given z_{<i}, x).
The decoder runs ONCE per sample; every encoder then scores that sample from the decoder's features by its
heads alone.

Axes: L samples of B examples are folded into one batch axis N = L * B, samples major. Densities are summed
over latent dimensions in float64 and come back as [L, B], in nats.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn import functional as F

from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError
from miselbo.noise import derive, uniform
from miselbo.protocols import evaluating, latent_noise

_PIXELS = 2**20 + 1  # the stream of what is seen of a simulated image, beyond any number of members
_PRIOR = int.from_bytes(b"prior")  # keeps this stream apart from others derived of the same seed

Choose = Callable[[int, Tensor | None, Tensor | None, Normal], Tensor]


class Flow(Protocol):
    """An invertible map that preserves volume (log |det| = 0)."""

    def __call__(self, z: Tensor) -> Tensor:
        """Map a sample of the base distribution to the value that enters the decoder."""
        ...

    def inverse(self, z: Tensor) -> Tensor:
        """Undo :meth:`__call__`."""
        ...


@dataclass
class Trace:
    """One pass of the decoder.

    Args:
        z: G groups, deepest first, each [N, Z, h, w]: the values that enter the decoder (after a flow).
        features: decoder feature just before group i is mixed in; None for group 0.
        prior_raw: raw prior parameters of group i; None for group 0.
        prior: p(z_i given z_{<i}).
        logits: image parameters [N, C, H, W] on the padded size.
    """

    z: list[Tensor]
    features: list[Tensor | None]
    prior_raw: list[Tensor | None]
    prior: list[Normal]
    logits: Tensor


@dataclass
class Posterior:
    """q(z_i given z_{<i}, x): a normal, mapped by a volume-preserving flow where there is one.

    Example:
        >>> normal = Normal(torch.zeros(1), torch.ones(1))
        >>> round(float(Posterior(normal).log_prob(torch.zeros(1))), 4)
        -0.9189
    """

    base: Normal
    flow: Flow | None = None

    def base_sample(self, eps: Tensor) -> Tensor:
        """The sample before the flow: mean + scale * eps."""
        return torch.addcmul(self.base.loc, self.base.scale, eps)

    def rsample(self, eps: Tensor) -> Tensor:
        """The sample after the flow, differentiable; ``eps`` is standard normal noise [N, Z, h, w]."""
        z = self.base_sample(eps)
        return z if self.flow is None else self.flow(z)

    def log_prob(self, z: Tensor) -> Tensor:
        """Elementwise log-density at a value after the flow; only the sum over dimensions is meaningful."""
        return self.base.log_prob(z if self.flow is None else self.flow.inverse(z))


def normal_kl(q: Normal, p: Normal) -> Tensor:
    r"""Elementwise KL(q to p) = ((m_q - m_p) / s_p)^2 / 2 + (s_q / s_p)^2 / 2 - 1/2 - log(s_q / s_p).

    Example:
        >>> normal_kl(Normal(torch.ones(1), torch.ones(1)), Normal(torch.zeros(1), torch.ones(1)))
        tensor([0.5000])
    """
    ratio = q.scale / p.scale
    distance = (q.loc - p.loc) / p.scale
    return 0.5 * (distance.square() + ratio.square() - 1) - ratio.log()


def sum_dims(values: Tensor, num_samples: int) -> Tensor:
    """Sum [N, ...] over all but the first axis in float64 and unfold N: [L, B]."""
    return values.sum(tuple(range(1, values.ndim)), dtype=torch.float64).unflatten(0, (num_samples, -1))


def repeat(values: Tensor, num_samples: int) -> Tensor:
    """[B, ...] -> [L * B, ...], samples major, in the memory format of ``values``.

    Example:
        >>> repeat(torch.tensor([1, 2]), 2)
        tensor([1, 2, 1, 2])
    """
    return values if num_samples == 1 else torch.cat([values] * num_samples)


def pad_image(x: Tensor, image: ImageSpec, size: tuple[int, int]) -> Tensor:
    """Zero-pad images [..., C, height, width] to ``size``, centred; images that have that size already pass.

    Raises:
        InputError: any other size, or a wrong number of channels.
    """
    expected, padded = (image.channels, image.height, image.width), (image.channels, *size)
    got = tuple(x.shape[-3:])
    if got not in (expected, padded) or x.ndim < 3:
        raise InputError(
            f"images have the shape {tuple(x.shape)}; this model expects [..., C, H, W] with (C, H, W) ="
            f" {expected}, or {padded} when padded: check the image size and channels of the data module."
        )
    if got == padded:
        return x
    rows, columns = size[0] - image.height, size[1] - image.width
    return F.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def crop_image(values: Tensor, image: ImageSpec) -> Tensor:
    """Undo :func:`pad_image`: the central height x width of [..., H, W], as a view."""
    top, left = (values.shape[-2] - image.height) // 2, (values.shape[-1] - image.width) // 2
    return values[..., top : top + image.height, left : left + image.width]


@dataclass
class Draw:
    """Samples z [L x B] of some encoder, and what a member's density needs from the target at them.

    Densities are computed when first asked for. ``posterior`` and ``base_z`` (the sample before the flow) are
    there only when the samples were drawn by :meth:`HierarchicalDecoder.draw`.
    """

    x: Tensor
    trace: Trace
    num_samples: int
    log_likelihood: Callable[[Tensor, Tensor], Tensor]
    posterior: list[Posterior] = field(default_factory=list)
    base_z: list[Tensor] = field(default_factory=list)

    @property
    def z(self) -> list[Tensor]:
        """Samples, deepest group first, each [L * B, Z, h, w]."""
        return self.trace.z

    @property
    def features(self) -> list[Tensor | None]:
        """Decoder features before each group."""
        return self.trace.features

    @property
    def prior_raw(self) -> list[Tensor | None]:
        """Raw prior parameters of each group."""
        return self.trace.prior_raw

    @property
    def prior(self) -> list[Normal]:
        """p(z_i given z_{<i})."""
        return self.trace.prior

    @property
    def logits(self) -> Tensor:
        """Image parameters [L * B, C, H, W]."""
        return self.trace.logits

    @cached_property
    def log_px(self) -> Tensor:
        """log p(x given z), [L, B]."""
        return self.log_likelihood(self.logits.unflatten(0, (self.num_samples, -1)), self.x)

    @cached_property
    def log_pz(self) -> Tensor:
        """log p(z), [L, B]."""
        groups = [sum_dims(p.log_prob(z), self.num_samples) for p, z in zip(self.prior, self.z, strict=True)]
        return torch.stack(groups).sum(0)

    @property
    def log_p(self) -> Tensor:
        """log p(x, z), [L, B]."""
        return self.log_px + self.log_pz

    @cached_property
    def log_q(self) -> Tensor:
        """log q(z given x) of the encoder that drew z, [L, B]; needs no inverse of the flow."""
        self._require_posterior("log_q")
        pairs = zip(self.posterior, self.base_z, strict=True)
        return torch.stack([sum_dims(q.base.log_prob(z), self.num_samples) for q, z in pairs]).sum(0)

    def kl(self) -> Tensor:
        """KL(q(z_i) to p(z_i)), [L, B, G]: analytic without a flow, else log q - log p at the sample."""
        self._require_posterior("kl")
        groups = []
        for q, p, base_z, z in zip(self.posterior, self.prior, self.base_z, self.z, strict=True):
            values = normal_kl(q.base, p) if q.flow is None else q.base.log_prob(base_z) - p.log_prob(z)
            groups.append(sum_dims(values, self.num_samples))
        return torch.stack(groups, -1)

    def _require_posterior(self, name: str) -> None:
        if not self.posterior:
            raise InputError(
                f"{name} needs samples made by draw(); these were given to at(): use encoder.log_prob."
            )


class Regularised(nn.Module):
    """What the regularisers of training see of a module, unless it says otherwise."""

    def conv_kernels(self) -> list[Tensor]:
        """Kernels under the spectral regulariser: those of all convolutions."""
        return [module.weight for module in self.modules() if isinstance(module, nn.Conv2d)]

    def batch_norms(self) -> list[nn.modules.batchnorm._BatchNorm]:
        """Layers whose scales are regularised, and whose statistics a skipped step must not change."""
        return [module for module in self.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


class HierarchicalEncoder(Regularised):
    """phi: an x-side pass that is run once per x, and one posterior head per group.

    A subclass writes :meth:`encode` and :meth:`posterior`.
    """

    def encode(self, x: Tensor) -> list[Tensor]:
        """x-side feature of each group, deepest first, each [B, c, h, w]; x padded or not."""
        raise NotImplementedError

    def posterior(
        self, context: Tensor, i: int, feature: Tensor | None, prior_raw: Tensor | None
    ) -> Posterior:
        """q(z_i given z_{<i}, x) from group i's feature on the x-side and in the decoder (one batch axis)."""
        raise NotImplementedError

    def posterior_of(
        self,
        context: list[Tensor],
        i: int,
        feature: Tensor | None,
        prior_raw: Tensor | None,
        num_samples: int,
    ) -> Posterior:
        """:meth:`posterior` of L samples: x-side features [B, ...] are repeated (group 0: its result is)."""
        if feature is not None:
            return self.posterior(repeat(context[i], num_samples), i, feature, prior_raw)
        q = self.posterior(context[i], i, None, prior_raw)
        if num_samples == 1:
            return q
        base = Normal(repeat(q.base.loc, num_samples), repeat(q.base.scale, num_samples), validate_args=False)
        return Posterior(base, q.flow)

    def log_prob(self, context: list[Tensor], draw: Draw) -> Tensor:
        """log q(z given x) at anyone's samples, [L, B], from the features in ``draw`` by the heads alone."""
        groups = []
        for i, (z, feature, raw) in enumerate(zip(draw.z, draw.features, draw.prior_raw, strict=True)):
            q = self.posterior_of(context, i, feature, raw, draw.num_samples)
            groups.append(sum_dims(q.log_prob(z), draw.num_samples))
        return torch.stack(groups).sum(0)


def prior_noise(decoder: "HierarchicalDecoder", index: Tensor, seed: int, dtype: torch.dtype) -> list[Tensor]:
    """Standard normal noise of the prior samples numbered ``index`` [N]: per group [N, Z, h, w]."""
    first = torch.zeros(1, dtype=torch.int64, device=index.device)
    key = derive(seed, _PRIOR)
    return [part[0] for part in latent_noise(decoder.latent_shapes, key, index, 0, first, dtype)]


class HierarchicalDecoder(Regularised):
    """theta: the prior over the groups and the likelihood of the image.

    A subclass sets ``image``, ``network_size`` and ``latent_shapes`` and writes :meth:`generate`,
    :meth:`log_likelihood` and :meth:`image_mean`.
    """

    image: ImageSpec
    network_size: tuple[int, int]
    latent_shapes: list[tuple[int, int, int]]

    def generate(self, choose: Choose, batch: int) -> Trace:
        """Run top-down for N images; ``choose(i, feature, prior_raw, prior)`` gives z_i [N, Z, h, w]."""
        raise NotImplementedError

    def log_likelihood(self, logits: Tensor, x: Tensor) -> Tensor:
        """log p(x given z) over the original height x width, in float64.

        Logits [L * B, P, H, W] or [*lead, B, P, H, W] and x [B, C, height, width], padded or not, give [L, B]
        or [*lead, B].
        """
        raise NotImplementedError

    def image_mean(self, logits: Tensor) -> Tensor:
        """Mean image in [0, 1] on the original size, for pictures."""
        raise NotImplementedError

    def sample_image(self, logits: Tensor, u: Tensor) -> Tensor:
        """Images [B, C, height, width] ~ p(x given z), as the data have them, of uniform numbers u [B, 1 + C, ...].

        Raises:
            InputError: the likelihood is not Bernoulli; a model of another one has a method of its own.
        """
        if self.image.likelihood != "bernoulli":
            raise InputError(
                f"{type(self).__name__} draws no images of likelihood '{self.image.likelihood}': give it a method "
                "sample_image(logits, u)"
            )
        return (u[:, 1:] < self.image_mean(logits)).to(logits.dtype)

    @torch.no_grad()
    def simulate(self, index: Tensor, seed: int) -> tuple[Tensor, list[Tensor]]:
        """(x, z) ~ p(x, z) in evaluation mode, a function of (seed, index): x [B, C, H, W], z per group [B, ...]."""
        image, weight = self.image, next(self.parameters())
        with evaluating(self):
            eps = prior_noise(self, index, seed, weight.dtype)
            trace = self.generate(lambda i, _, __, prior: prior.loc + prior.scale * eps[i], len(index))
            shape = (1 + image.channels, image.height, image.width)
            u = uniform(seed, index, math.prod(shape), member=_PIXELS).unflatten(-1, shape)
            return self.sample_image(trace.logits, u), list(trace.z)

    def pad(self, x: Tensor) -> Tensor:
        """Image size -> network size (zeros, centred); already padded images pass."""
        return pad_image(x, self.image, self.network_size)

    def draw(
        self, x: Tensor, encoder: HierarchicalEncoder, context: list[Tensor] | None, noise: Sequence[Tensor]
    ) -> Draw:
        """Draw z ~ q(z given x): x [B, ...], context = encoder.encode(x), noise per group [L, B, Z, h, w]."""
        num_samples, eps = self._fold(noise, len(x), "noise")
        features = encoder.encode(x) if context is None else context
        posteriors: list[Posterior] = []
        base: list[Tensor] = []

        def choose(i: int, feature: Tensor | None, raw: Tensor | None, prior: Normal) -> Tensor:
            q = encoder.posterior_of(features, i, feature, raw, num_samples)
            z = q.base_sample(eps[i])
            posteriors.append(q)
            base.append(z)
            return z if q.flow is None else q.flow(z)

        trace = self.generate(choose, num_samples * len(x))
        return Draw(x, trace, num_samples, self.log_likelihood, posteriors, base)

    def at(self, x: Tensor, z: Sequence[Tensor]) -> Draw:
        """The target at given values z (after the flow), per group [L, B, Z, h, w]."""
        num_samples, values = self._fold(z, len(x), "z")
        trace = self.generate(lambda i, feature, raw, prior: values[i], num_samples * len(x))
        return Draw(x, trace, num_samples, self.log_likelihood)

    def sample_prior(self, noise: Sequence[Tensor], temperature: float = 1.0) -> Tensor:
        """Mean images [*lead, C, height, width] of z ~ p(z), scales multiplied; noise [*lead, Z, h, w]."""
        lead = noise[0].shape[:-3]
        eps = [values.reshape(-1, *values.shape[-3:]) for values in noise]
        trace = self.generate(lambda i, _, __, p: p.loc + temperature * p.scale * eps[i], math.prod(lead))
        return self.image_mean(trace.logits).unflatten(0, lead)

    @torch.no_grad()
    def sample(
        self, num: int, temperature: float = 1.0, seed: int = 0, batch_size: int = 64, start: int = 0
    ) -> Tensor:
        """Mean images [num, C, height, width] of z ~ p(z), in evaluation mode.

        Image number k is a function of (seed, start + k) alone, whatever the batch size.

        Args:
            num: how many.
            temperature: multiplies the prior's scales.
            seed: key of the noise.
            batch_size: images that run at once.
            start: number of the first image.

        Raises:
            InputError: num or batch_size below 1, or a temperature that is not positive.
        """
        if num < 1 or batch_size < 1:
            raise InputError(f"num={num} and batch_size={batch_size} must be at least 1")
        if not 0 < temperature < math.inf:
            raise InputError(f"temperature={temperature} must be a positive number")
        weight = next(self.parameters())
        images = []
        with evaluating(self):
            for first in range(start, start + num, batch_size):
                index = torch.arange(first, min(first + batch_size, start + num), device=weight.device)
                noise = prior_noise(self, index, seed, weight.dtype)
                images.append(self.sample_prior(noise, temperature))
        return torch.cat(images)

    def _fold(self, values: Sequence[Tensor], batch: int, name: str) -> tuple[int, list[Tensor]]:
        shapes = [tuple(v.shape) for v in values]
        num_samples = shapes[0][0] if shapes and len(shapes[0]) == 5 else 0
        expected = [(num_samples, batch, *shape) for shape in self.latent_shapes]
        if num_samples < 1 or shapes != expected:
            raise InputError(
                f"{name} has the shapes {shapes}; this decoder expects one [L, {batch}, Z, h, w] per group,"
                f" deepest first, with (Z, h, w) = {self.latent_shapes}."
            )
        return num_samples, [v.flatten(0, 1) for v in values]
