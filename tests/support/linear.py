"""The linear-Gaussian VAE: z ~ N(0, I), x given z ~ N(W z + b, sd^2 I), with linear encoders; in float64."""

import torch
from torch import Tensor, nn
from torch.distributions import Normal

from miselbo.data import ImageSpec
from miselbo.models.hierarchical import HierarchicalDecoder, HierarchicalEncoder, Posterior, Trace

DIM, OBSERVED, SD = 2, 5, 0.5


class LinearDecoder(HierarchicalDecoder):
    """An "image" of one row."""

    def __init__(self):
        super().__init__()
        self.image, self.network_size = ImageSpec(1, 1, OBSERVED, "normal"), (1, OBSERVED)
        self.latent_shapes = [(DIM, 1, 1)]
        self.line = nn.Linear(DIM, OBSERVED)

    def generate(self, choose, batch) -> Trace:
        mean = self.line.weight.new_zeros(batch, DIM, 1, 1)
        prior = Normal(mean, torch.ones_like(mean))
        z = choose(0, None, None, prior)
        return Trace([z], [None], [None], [prior], self.line(z.flatten(1))[:, None, None])

    def log_likelihood(self, logits: Tensor, x: Tensor) -> Tensor:
        return (
            Normal(logits.unflatten(0, (-1, len(x))) if logits.ndim == 4 else logits, SD)
            .log_prob(x)
            .sum((-3, -2, -1))
        )


class LinearEncoder(HierarchicalEncoder):
    def __init__(self):
        super().__init__()
        self.mean = nn.Linear(OBSERVED, DIM)
        self.log_scale = nn.Parameter(torch.zeros(DIM))

    def encode(self, x: Tensor) -> list[Tensor]:
        return [self.mean(x.flatten(1))]

    def posterior(self, context, i, feature, prior_raw) -> Posterior:
        mean = context[..., None, None]
        return Posterior(Normal(mean, self.log_scale.exp()[:, None, None].expand_as(mean)))

    def of(self, x: Tensor) -> Normal:
        """q(z given x), [B, DIM]: what the tests write formulas with."""
        mean = self.mean(x.flatten(1))
        return Normal(mean, self.log_scale.exp().expand_as(mean))


def log_joint(decoder: LinearDecoder, x: Tensor, z: Tensor) -> Tensor:
    """log p(x, z), z [..., B, DIM]."""
    return Normal(0.0, 1.0).log_prob(z).sum(-1) + Normal(decoder.line(z), SD).log_prob(x.flatten(1)).sum(-1)


def make(size: int, seed: int = 0) -> tuple[LinearDecoder, list[LinearEncoder], Tensor]:
    """A decoder, encoders that are not the posterior, and four observations."""
    torch.manual_seed(seed)
    decoder, encoders = LinearDecoder().double(), [LinearEncoder().double() for _ in range(size)]
    x = torch.randn(4, 1, 1, OBSERVED, dtype=torch.float64)
    return decoder, encoders, x


@torch.no_grad()
def near(decoder: LinearDecoder, member: LinearEncoder, away: float) -> LinearEncoder:
    """The member at the best diagonal normal of each posterior, its parameters moved by N(0, away^2)."""
    weight, bias = decoder.line.weight, decoder.line.bias
    precision = torch.eye(DIM, dtype=torch.float64) + weight.T @ weight / SD**2
    map_of = torch.linalg.solve(precision, weight.T / SD**2)
    member.mean.weight.copy_(map_of)
    member.mean.bias.copy_(-map_of @ bias)
    member.log_scale.copy_(-0.5 * precision.diagonal().log())
    for parameter in member.parameters():
        parameter.add_(away * torch.randn_like(parameter))
    return member
