r"""What one step of a member's training minimises: functions (terms, step, total) -> loss [B], nats.

``model.objective.loss`` names one by ``_target_``; NVAE's is the default. K = ``model.objective.num_samples`` samples
z_k = z(eps_k; phi) of the member in training have the weights w_k = p(x, z_k) / q(z_k | x), v_k = w_k / sum_j w_j.

==========  ==============================================================================================
``nvae``    reconstruction + sum_i c_i KL_i, with the KL's warm-up and balance (:mod:`miselbo.training.objective`)
``iwae``    -log 1/K sum_k w_k (Burda et al. 2016)
``dreg``    the same value; gradient of phi: sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi) (Tucker et al. 2019)
``stl``     -1/K sum_k log w_k; gradient of phi: 1/K sum_k (d log w_k / d z_k) (d z_k / d phi) (Roeder et al. 2017)
``boosted`` -MISELBO of q_1 .. q_s, the earlier members as they are
==========  ==============================================================================================

theta, where it is trained (with q_1), has the gradient of the bound through log p(x, z_k); where it also moves the
samples (features of the decoder that an encoder reads) it counts as a parameter of q.
"""

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from miselbo import bounds
from miselbo.models.hierarchical import Draw, HierarchicalDecoder, HierarchicalEncoder
from miselbo.runs.plan import able
from miselbo.training import objective

Loss = Callable[["Terms", int, int], Tensor]


@dataclass
class Terms:
    """A batch of B examples with K samples each of the member in training.

    Args:
        x: [B, ...].
        target: p(x, z).
        member: q_s.
        context: ``member.encode(x)``.
        draw: its samples, differentiable: ``log_p``, ``log_q`` and ``log_px`` are [K, B], ``kl()`` is [K, B, G].
        noise: standard normal noise of the member of a number (from 1), per latent [K, B, ...].
        earlier: q_1 .. q_{s-1}, or q_1 alone where the loss does not ask for all.
        alpha: [G] NVAE's relative scale of the groups' KLs; None: of the target's shapes.

    Attributes:
        passes: of the decoder, per example.
    """

    x: Tensor
    target: HierarchicalDecoder
    member: HierarchicalEncoder
    context: list[Tensor]
    draw: Draw
    noise: Callable[[int], list[Tensor]]
    earlier: Sequence[HierarchicalEncoder] = ()
    alpha: Tensor | None = None
    passes: int = field(init=False)

    def __post_init__(self) -> None:
        self.passes = self.draw.num_samples

    @cached_property
    def log_w(self) -> Tensor:
        """log w_k, [K, B]."""
        return self.draw.log_p - self.draw.log_q

    @cached_property
    def reconstruction(self) -> Tensor:
        """-log p(x | z), mean over the samples, [B]."""
        return -self.draw.log_px.mean(0)

    @cached_property
    def kl(self) -> Tensor:
        """KL of each group, mean over the samples, [B, G]."""
        return self.draw.kl().mean(0)

    def along_the_path(self, value: Tensor, given: Tensor, path: Tensor) -> Tensor:
        """``value`` [B] with the gradient of  sum_k given_k log p(x, z_k)  in theta,  and in phi through the samples
        alone,  sum_k path_k (d log w_k / d z_k) (d z_k / d phi).

        One more pass of the decoder, at the samples as constants, gives d log w / d z; so this holds for a hierarchy
        too, where z_i moves what z_{i+1} is drawn from.

        Args:
            value: [B].
            given: [K, B], without gradient.
            path: [K, B], without gradient.
        """
        count = self.draw.num_samples
        z = [part.detach().requires_grad_() for part in self.draw.z]
        self.passes += count
        with statistics_kept(self.target, self.member):
            again = self.target.at(self.x, [part.unflatten(0, (count, -1)) for part in z])
            log_w = again.log_p - self.member.log_prob(self.context, again)
        slopes = torch.autograd.grad((path * log_w).sum(), z, retain_graph=True)
        moved = [(slope * part).flatten(1).sum(1) for slope, part in zip(slopes, self.draw.z, strict=True)]
        surrogate = torch.stack(moved).sum(0).unflatten(0, (count, -1)).sum(0)
        if any(parameter.requires_grad for parameter in self.target.parameters()):
            surrogate = surrogate + (given * again.log_p).sum(0)
        return value.detach() + surrogate - surrogate.detach()


def nvae(
    terms: Terms,
    step: int,
    total: int,
    *,
    kl_constant_portion: float = 0.0,
    kl_anneal_portion: float = 0.0,
    kl_weight_min: float = 1e-4,
) -> Tensor:
    """NVAE's: minus the ELBO with analytic KLs, which warm up and are balanced over the groups meanwhile."""
    beta = objective.kl_weight(step, total, kl_constant_portion, kl_anneal_portion, kl_weight_min)
    alpha = objective.group_scale(terms.target.latent_shapes) if terms.alpha is None else terms.alpha
    return terms.reconstruction + (terms.kl * objective.balance(terms.kl, alpha, beta)).sum(-1)


def iwae(terms: Terms, step: int, total: int) -> Tensor:
    """Minus the importance-weighted bound, with the gradient of its formula."""
    return math.log(len(terms.log_w)) - terms.log_w.logsumexp(0)


def dreg(terms: Terms, step: int, total: int) -> Tensor:
    """Minus the importance-weighted bound, doubly reparameterised: a variance that vanishes as q comes near to p."""
    weight = terms.log_w.detach().softmax(0)
    return -terms.along_the_path(-iwae(terms, step, total), weight, weight.square())


def stl(terms: Terms, step: int, total: int) -> Tensor:
    """Minus the ELBO, the samples' score left out of its gradient ("sticking the landing")."""
    share = torch.full_like(terms.log_w, 1 / len(terms.log_w)).detach()
    return -terms.along_the_path(terms.log_w.mean(0), share, share)


@able(earlier=True)
def boosted(terms: Terms, step: int, total: int) -> Tensor:
    """Minus MISELBO (L = K) of q_1 .. q_s, of which q_s alone is trained: it goes where the others have no mass."""
    every = [*terms.earlier, terms.member]
    contexts = [member.encode(terms.x) for member in terms.earlier]
    log_p, log_q = [], []
    for number, (member, context) in enumerate(zip(terms.earlier, contexts, strict=True), 1):
        with torch.no_grad():
            draw = terms.target.draw(terms.x, member, context, terms.noise(number))
        log_p.append(draw.log_p.detach())
        log_q.append(_under(every, [*contexts, terms.context], draw))
        terms.passes += draw.num_samples
    log_p.append(terms.draw.log_p)
    log_q.append(_under(every, [*contexts, terms.context], terms.draw))
    return -bounds.miselbo(torch.stack(log_p).permute(2, 0, 1), torch.stack(log_q).permute(3, 0, 2, 1))


def _under(members: Sequence[HierarchicalEncoder], contexts: Sequence[list[Tensor]], draw: Draw) -> Tensor:
    """log q_j of one member's samples under all, [S, K, B]."""
    return torch.stack([member.log_prob(c, draw) for member, c in zip(members, contexts, strict=True)])


@contextlib.contextmanager
def statistics_kept(*modules: nn.Module) -> Iterator[None]:
    """Inside the block batch norms in training normalise by the batch, and their running statistics stay."""
    norms = [n for m in modules for n in m.modules() if isinstance(n, nn.modules.batchnorm._BatchNorm)]
    before = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum in zip(norms, before, strict=True):
            norm.momentum = momentum
