"""Batch-norm statistics for sampling, in a copy of the decoder: the model that is scored is never touched.

The statistics a decoder has from training are those of features at samples of q. At samples of the prior with a
temperature below 1 the features have others, so they are estimated anew from the decoder's own samples (Vahdat and
Kautz 2020, who use 500 batches). Likelihoods always use the trained statistics.
"""

import copy

import torch
from torch import nn

from miselbo.errors import InputError
from miselbo.models.hierarchical import HierarchicalDecoder, prior_noise
from miselbo.models.nvae.convs import batch_norms

_FIRST = 2**40  # number of the first prior sample here: others than the images that are shown


def readjusted(
    decoder: HierarchicalDecoder,
    temperature: float = 1.0,
    num_batches: int = 500,
    seed: int = 0,
    batch_size: int = 16,
) -> HierarchicalDecoder:
    """A copy of ``decoder`` whose batch-norm statistics are the means over batches of its own prior samples.

    Every layer normalises by the batch at hand while the means are taken; parameters stay what they are.

    Args:
        decoder: left as it is, mode and buffers included.
        temperature: of the prior samples.
        num_batches: over which the statistics are averaged.
        seed: key of the noise.
        batch_size: samples per batch, at least 2.

    Returns:
        The copy, in evaluation mode, without gradients.

    Raises:
        InputError: a number out of range, or statistics that are not finite.

    Example:
        >>> from miselbo.data.spec import ImageSpec
        >>> from miselbo.models.nvae import Decoder
        >>> decoder = Decoder(ImageSpec(1, 8, 8, "bernoulli"), num_latent_scales=1, num_groups_per_scale=2,
        ...                   num_latent_per_group=2, num_channels=4)
        >>> other = readjusted(decoder, temperature=0.7, num_batches=2)
        >>> int(decoder.post[0].ops[0].norm_in.num_batches_tracked)
        0
        >>> int(other.post[0].ops[0].norm_in.num_batches_tracked)
        2
    """
    for name, value, least in (("num_batches", num_batches, 1), ("batch_size", batch_size, 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if not 0 < temperature < float("inf"):
        raise InputError(f"temperature must be a positive number, got {temperature!r}")
    other = copy.deepcopy(decoder).requires_grad_(False)
    norms = [norm for norm in batch_norms(other) if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    weight = next(other.parameters())
    other.train()
    with torch.no_grad():
        for batch in range(num_batches):
            start = _FIRST + batch * batch_size
            index = torch.arange(start, start + batch_size, device=weight.device)
            other.sample_prior(prior_noise(other, index, seed, weight.dtype), temperature)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    wrong = [name for name, buffer in other.named_buffers() if not bool(buffer.isfinite().all())]
    if wrong:
        raise InputError(
            f"{len(wrong)} statistics are not finite after {num_batches} batches at temperature {temperature} "
            f"({wrong[0]}, ...): lower the temperature, or sample with the statistics of training."
        )
    return other.eval()
