r"""An ensemble of variational approximations of one common target, and its scores.

Everything the project reports is algebra (:mod:`miselbo.bounds`) on two arrays that :meth:`Ensemble.score` makes,

    log_p[..., s, l]    = log p(x, z_{s,l}),            z_{s,l} ~ q_s(z | x)
    log_q[..., s, l, j] = log q_j(z_{s,l} | x).

The target runs once per (member, sample); its :class:`Draw` keeps what the members' densities need of it (for a
hierarchical decoder: the features its groups saw), so that scoring under the other members runs their heads alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from miselbo.errors import InputError
from miselbo.protocols import Draw, evaluating, latent_noise


class Ensemble(nn.Module):
    """S members of a common target.

    Args:
        target: p(x, z), a :class:`Target`; or any callable z -> log p(z).
        members: q_1..q_S, each an :class:`Approximation`; or a ``torch.distributions.Distribution``.

    Raises:
        InputError: if there is no member.

    Example:
        >>> from miselbo.data import ImageSpec
        >>> from miselbo.models.vae import Decoder, Encoder
        >>> decoder = Decoder(ImageSpec(1, 8, 8, "bernoulli"), num_latents=2, num_channels=4)
        >>> ensemble = Ensemble(decoder, [Encoder(decoder, num_channels=4) for _ in range(3)])
        >>> log_p, log_q = ensemble.score(torch.zeros(5, 1, 8, 8), num_samples=4)
        >>> log_p.shape, log_q.shape
        (torch.Size([5, 3, 4]), torch.Size([5, 3, 4, 3]))
        >>> normals = [torch.distributions.Normal(mean, 1.0) for mean in (-1.0, 1.0)]
        >>> log_p, log_q = Ensemble(lambda z: -z.abs(), normals).score(None, num_samples=4)
        >>> log_p.shape, log_q.shape
        (torch.Size([1, 2, 4]), torch.Size([1, 2, 4, 2]))
    """

    remark = ""  # what must stand beside every number of such an ensemble
    shares_target = True

    def __init__(self, target: Any, members: Sequence[Any]):
        super().__init__()
        if not members:
            raise InputError("an ensemble needs at least one member, got none")
        if not hasattr(target, "draw") or any(not hasattr(member, "encode") for member in members):
            from miselbo.models.classical import adopt

            target, members = adopt(target, members)
        self.target = target
        self.members: Sequence[Any] = nn.ModuleList(members)  # type: ignore[assignment, arg-type]

    def target_of(self, member: int) -> Any:
        """The target under which member s (from 0) is scored: the common one."""
        return self.target

    def passes(
        self,
        x: Tensor | None,
        num_samples: int,
        samples_per_pass: int | None = None,
        seed: int = 0,
        index: Tensor | None = None,
        first: int = 0,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Scores in passes over the samples: x is encoded once per member, the target runs once per (member, sample).

        Args:
            x: [B, ...] data; None is one example of a target that needs none.
            num_samples: L.
            samples_per_pass: samples per yield; default all.
            seed: key of the noise, which is a function of (seed, example index, member, sample) alone.
            index: [B] example numbers; default 0..B-1.
            first: number of the first sample, those before it are left out.

        Yields:
            log_p [B, S, l] and log_q [B, S, l, S] of the next l samples, with gradients: any bound of them is a loss.

        Example:
            >>> from miselbo import bounds
            >>> from miselbo.data import ImageSpec
            >>> from miselbo.models.vae import Decoder, Encoder
            >>> x = (torch.arange(8 * 64).view(8, 1, 8, 8) % 3 == 0).float()
            >>> decoder = Decoder(ImageSpec(1, 8, 8, "bernoulli"), num_latents=2, num_channels=4)
            >>> ensemble = Ensemble(decoder, [Encoder(decoder, num_channels=4) for _ in range(2)])
            >>> before = bounds.miselbo(*ensemble.score(x, 10)).mean()
            >>> optimizer = torch.optim.Adam(ensemble.parameters(), lr=0.02)
            >>> for step in range(10):
            ...     [(log_p, log_q)] = ensemble.passes(x, num_samples=1, seed=step)
            ...     optimizer.zero_grad()
            ...     (-bounds.miselbo(log_p, log_q).mean()).backward()
            ...     optimizer.step()
            >>> bool(bounds.miselbo(*ensemble.score(x, 10)).mean() > before + 1)
            True
        """
        if num_samples < 1:
            raise InputError(f"num_samples must be at least 1, got {num_samples}")
        x = torch.zeros(1, 0) if x is None else x
        index = torch.arange(len(x), device=x.device) if index is None else index
        step = samples_per_pass or num_samples
        with evaluating(self):
            contexts = [member.encode(x) for member in self.members]
            for start in range(first, num_samples, step):
                samples = torch.arange(start, min(start + step, num_samples), device=x.device)
                draws = (
                    self.target_of(s).draw(x, member, context, self.noise(x, samples, seed, index, s))
                    for s, (member, context) in enumerate(zip(self.members, contexts, strict=True))
                )
                yield self._scores(contexts, draws)

    def noise(self, x: Tensor, samples: Tensor, seed: int, index: Tensor, member: int) -> Any:
        """What ``target.draw`` makes samples of, a function of (seed, example, member, sample) alone.

        Standard normal noise of the target's latents, per latent [L, B, ...] in x's dtype; or what the target's own
        ``noise(x, samples, seed, index, member)`` gives, for approximations that no normal noise drives.
        """
        own = getattr(self.target, "noise", None)
        if own is not None:
            return own(x, samples, seed, index, member)
        return latent_noise(self.target.latent_shapes, seed, index, member, samples, x.dtype)

    def _scores(self, contexts: list[Any], draws: Iterable[Draw]) -> tuple[Tensor, Tensor]:
        log_p, log_q = [], []
        for draw in draws:  # one at a time: its features are dropped before the next one runs
            log_p.append(draw.log_p)
            log_q.append(
                torch.stack([m.log_prob(c, draw) for m, c in zip(self.members, contexts, strict=True)])
            )
        return torch.stack(log_p).permute(2, 0, 1), torch.stack(log_q).permute(3, 0, 2, 1)

    def fast_form(self) -> Any:
        """A copy for evaluation alone in the target's faster form; this ensemble itself where there is none."""
        make = getattr(self.target, "inference_form", None) if self.shares_target else None
        try:
            return self if make is None else make(self)
        except InputError:  # members of another kind than the target's own
            return self

    @torch.no_grad()
    def score(
        self,
        x: Tensor | None,
        num_samples: int,
        seed: int = 0,
        index: Tensor | None = None,
        samples_per_pass: int | None = None,
        exact_modules: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Draw z_{s,l} ~ q_s for every member and score each sample under the target and all members.

        Arguments as in :meth:`passes`, and ``exact_modules``: run the modules as they are, where the target would offer
        a faster form of the ensemble that differs by round-off. Returns log_p [B, S, L] and log_q [B, S, L, S] in nats.

        Raises:
            InputError: ``num_samples`` below 1, or x of a size the target does not know.
        """
        form = self if exact_modules or x is None else self.fast_form()
        scores = list(form.passes(x, num_samples, samples_per_pass, seed, index))
        return torch.cat([log_p for log_p, _ in scores], 2), torch.cat([log_q for _, log_q in scores], 2)

    @torch.no_grad()
    def log_prob(self, x: Tensor | None, z: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Score given samples.

        Args:
            x: [B, ...] data, as the data module gives it or already padded to the network's size.
            z: per latent (for NVAE: per group, deepest first) [S, L, B, ...], the values that enter the target
                (after the flow, where there is one).

        Returns:
            log_p [B, S, L] and log_q [B, S, L, S] in nats.

        Raises:
            InputError: the number of latents or an axis of one does not fit.
        """
        x = torch.zeros(1, 0) if x is None else x
        shapes = self.target.latent_shapes
        lead = tuple(z[0].shape[:3]) if z else ()
        expected = [(len(self.members), *lead[1:2], len(x), *shape) for shape in shapes]
        if [tuple(latent.shape) for latent in z] != expected:
            raise InputError(
                f"z must hold {len(shapes)} latents of shape [S, L, B, ...] = {expected}, "
                f"got {[tuple(latent.shape) for latent in z]}"
            )
        with evaluating(self):
            contexts = [member.encode(x) for member in self.members]
            draws = (self.target_of(s).at(x, [latent[s] for latent in z]) for s in range(len(self.members)))
            return self._scores(contexts, draws)
