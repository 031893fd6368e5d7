r"""A small convolutional VAE: one latent vector, p(z) = N(0, I), Bernoulli pixels; the smallest hierarchical model.

The file is also the example of how to add a model: a decoder (theta) with ``generate``, an encoder (phi) with
``encode`` and ``posterior``, and one yaml (``conf/model/vae.yaml``) naming the two. Training, scores and report need
nothing more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import Normal

from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError
from miselbo.models.hierarchical import (
    Choose,
    HierarchicalDecoder,
    HierarchicalEncoder,
    Posterior,
    Trace,
    crop_image,
    pad_image,
)


class Decoder(HierarchicalDecoder):
    """theta: a vector to the image in two doublings of its size.

    Args:
        image: what the data module gives; the likelihood must be Bernoulli.
        num_latents: dimensions of z.
        num_channels: width of the last hidden layer.

    Example:
        >>> decoder = Decoder(ImageSpec(1, 28, 28, "bernoulli"), num_latents=2, num_channels=4)
        >>> decoder.sample_prior([torch.zeros(3, 2, 1, 1)]).shape
        torch.Size([3, 1, 28, 28])
    """

    def __init__(self, image: ImageSpec, *, num_latents: int = 16, num_channels: int = 32):
        super().__init__()
        if image.likelihood != "bernoulli":
            raise InputError(
                f"model=vae has a Bernoulli likelihood; the data ask for '{image.likelihood}': use model=nvae"
            )
        self.image = image
        height, width = (4 * ((size + 3) // 4) for size in (image.height, image.width))
        self.network_size = (height, width)
        self.latent_shapes = [(num_latents, 1, 1)]
        self.top = (2 * num_channels, height // 4, width // 4)
        self.lift = nn.Linear(num_latents, 2 * num_channels * (height // 4) * (width // 4))
        self.middle = nn.Conv2d(2 * num_channels, 2 * num_channels, 3, padding=1)
        self.last = nn.Conv2d(2 * num_channels, num_channels, 3, padding=1)
        self.image_head = nn.Conv2d(num_channels, image.channels, 3, padding=1)

    def generate(self, choose: Choose, batch: int) -> Trace:
        """One group: z from the standard normal prior, then the image."""
        mean = self.lift.bias.new_zeros(batch, *self.latent_shapes[0])
        prior = Normal(mean, torch.ones_like(mean), validate_args=False)
        z = choose(0, None, None, prior)
        hidden = F.silu(self.lift(z.flatten(1))).unflatten(1, self.top)
        hidden = F.interpolate(F.silu(self.middle(hidden)), scale_factor=2)
        hidden = F.interpolate(F.silu(self.last(hidden)), scale_factor=2)
        return Trace([z], [None], [None], [prior], self.image_head(hidden))

    def log_likelihood(self, logits: Tensor, x: Tensor) -> Tensor:
        """Sum of x log sigmoid(logit) + (1 - x) log sigmoid(-logit) over the image, in float64."""
        pixels = crop_image(self.pad(x), self.image)
        logits = crop_image(logits.unflatten(0, (-1, len(x))) if logits.ndim == 4 else logits, self.image)
        values = pixels * logits - F.softplus(logits)
        return values.sum((-3, -2, -1), dtype=torch.float64)

    def image_mean(self, logits: Tensor) -> Tensor:
        """Probability of a white pixel."""
        return crop_image(logits, self.image).sigmoid()


class Encoder(HierarchicalEncoder):
    """phi: the image in two halvings to mean and log scale of a diagonal normal.

    Args:
        decoder: the target; gives sizes.
        num_channels: width of the first hidden layer.
    """

    def __init__(self, decoder: Decoder, *, num_channels: int = 32):
        super().__init__()
        image = decoder.image
        height, width = decoder.network_size
        self._image, self._size = image, decoder.network_size
        self.first = nn.Conv2d(image.channels, num_channels, 3, stride=2, padding=1)
        self.second = nn.Conv2d(num_channels, 2 * num_channels, 3, stride=2, padding=1)
        self.third = nn.Conv2d(2 * num_channels, 2 * num_channels, 3, padding=1)
        self.head = nn.Linear(
            2 * num_channels * (height // 4) * (width // 4), 2 * decoder.latent_shapes[0][0]
        )

    def encode(self, x: Tensor) -> list[Tensor]:
        """Mean and log scale, [B, 2Z]."""
        hidden = 2 * pad_image(x, self._image, self._size) - 1
        for layer in (self.first, self.second, self.third):
            hidden = F.silu(layer(hidden))
        return [self.head(hidden.flatten(1))]

    def posterior(
        self, context: Tensor, i: int, feature: Tensor | None, prior_raw: Tensor | None
    ) -> Posterior:
        """N(mean, exp(5 tanh(log scale / 5))), [B, Z, 1, 1]."""
        mean, log_scale = context[..., None, None].chunk(2, 1)
        return Posterior(Normal(mean, (5 * torch.tanh(log_scale / 5)).exp(), validate_args=False))
