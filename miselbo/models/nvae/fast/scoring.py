"""One pass of the inference form: z is drawn (or taken) group by group and scored under every member."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from miselbo.models.hierarchical import crop_image
from miselbo.models.nvae.decoder import DEEPEST_PRIOR_SCALE
from miselbo.models.nvae.distributions import at_least_single, image_log_prob
from miselbo.models.nvae.fast.folded import FoldedDecoder, FoldedEncoder
from miselbo.models.nvae.fast.heads import JointHeads, clamped, image, log_normal, pixels


@dataclass
class Parts:
    """The networks of an ensemble: ``heads`` of group i at i - 1, ``offsets`` [S, 1] 1 for ``res_dist``."""

    target: FoldedDecoder
    members: list[FoldedEncoder]
    heads: list[JointHeads]
    offsets: Tensor
    all_offsets: bool
    any_offsets: bool


@dataclass
class Known:
    """What depends on x alone: images [B, C, height, width] and raw parameters per group, [B, P, 2, S, Z].

    Those of group 0 are replaced by their location and scale, [B, P, 1, S, Z] each, side by side.
    """

    x: Tensor
    contexts: list[Tensor]

    @property
    def dtype(self) -> torch.dtype:
        """Of latents and densities."""
        return self.contexts[0].dtype

    def part(self, rows: slice) -> "Known":
        """The same for some of the examples."""
        return Known(self.x[rows], [context[rows] for context in self.contexts])


@dataclass(frozen=True)
class Block:
    """Rows of one pass: some members, samples and examples."""

    members: range
    samples: slice
    examples: slice


def cut(num_members: int, num_samples: int, batch: int, rows: int) -> Iterator[Block]:
    """Blocks of at most ``rows`` rows (at least one) that cover everything: examples first, samples, members.

    Example:
        >>> [(b.members, b.samples.stop, b.examples.stop) for b in cut(3, 2, 4, 16)]
        [(range(0, 2), 2, 4), (range(2, 3), 2, 4)]
    """
    examples = max(1, min(batch, rows))
    samples = max(1, min(num_samples, rows // examples))
    members = max(1, min(num_members, rows // (examples * samples)))
    for e in range(0, batch, examples):
        for s in range(0, num_members, members):
            for l in range(0, num_samples, samples):  # noqa: E741
                group = range(s, min(s + members, num_members))
                yield Block(
                    group, slice(l, min(l + samples, num_samples)), slice(e, min(e + examples, batch))
                )


class Run:
    """One pass of the decoder over M x l x b rows: draws z (or takes it) group by group and scores it."""

    def __init__(
        self, ensemble: Parts, known: Known, members: range, latents: list[Tensor], given: bool
    ) -> None:
        self.ensemble, self.known, self.members, self.given = ensemble, known, members, given
        self.lead = tuple(latents[0].shape[:3])  # M, l, b
        self.latents = [latent.flatten(-2).transpose(-1, -2) for latent in latents]  # [M, l, b, P, Z]
        self.log_p = known.x.new_zeros(self.lead, dtype=torch.float64)
        self.log_q = known.x.new_zeros((*self.lead, len(ensemble.members)), dtype=torch.float64)

    def scores(self) -> tuple[Tensor, Tensor]:
        """log_p [M, l, b] and log_q [M, l, b, S]."""
        target = self.ensemble.target
        logits = at_least_single(crop_image(target(self.choose), target.image)).unflatten(0, self.lead)
        return self.log_p + image_log_prob(logits, self.known.x.to(logits.dtype), target.image), self.log_q

    def choose(self, i: int, feature: Tensor | None, raw: Tensor | None) -> Tensor:
        """z_i [N, P, Z]; adds its log-densities."""
        context = self.known.contexts[i]
        if feature is None or raw is None:
            loc, scale = context.expand(*self.lead[:2], *context.shape).unbind(-3)
            z = self._latent(i, loc, scale)
            zero = z.new_zeros(())
            prior = log_normal(z.unsqueeze(-2), zero, zero + DEEPEST_PRIOR_SCALE)
        else:
            ours = self.ensemble.heads[i - 1](feature).to(context.dtype).unflatten(0, self.lead)
            ours += context
            raw = raw.to(context.dtype).unflatten(0, self.lead)
            if self.ensemble.all_offsets:
                ours += raw
            elif self.ensemble.any_offsets:
                ours.addcmul_(raw, self.ensemble.offsets)
            z = self._latent(i, *clamped(ours))
            prior = log_normal(z.unsqueeze(-2), *clamped(raw))
        self.log_p += prior.squeeze(-1)
        return z.flatten(0, 2)

    def _latent(self, i: int, loc: Tensor, scale: Tensor) -> Tensor:
        """z_i [M, l, b, P, Z] from all members' parameters there, [M, l, b, P, S, Z]; adds log q of each."""
        if self.given:
            base, z = None, self.latents[i].contiguous()
        else:
            own = [values[:, :, :, :, self.members.start : self.members.stop] for values in (loc, scale)]
            mean, spread = (values.diagonal(0, 0, 4).movedim(-1, 0) for values in own)
            base = torch.addcmul(mean, spread, self.latents[i]).contiguous()
            z = self._mapped(i, base)
        self.log_q += log_normal(self._unmapped(i, z, base), loc, scale)
        return z

    def _mapped(self, i: int, base: Tensor) -> Tensor:
        """The flow of each row's own member."""
        flows = [self.ensemble.members[s].flow(i) for s in self.members]
        if not any(flows):
            return base
        size = self.ensemble.target.latent_shapes[i][1:]
        parts = []
        for part, flow in zip(base, flows, strict=True):
            parts.append(
                part if flow is None else pixels(flow(image(part.flatten(0, 1), size))).reshape(part.shape)
            )
        return torch.stack(parts)

    def _unmapped(self, i: int, z: Tensor, base: Tensor | None) -> Tensor:
        """Where each member's normal is evaluated, [M, l, b, P, S, Z]; [M, l, b, P, 1, Z] if all at one."""
        flows = [member.flow(i) for member in self.ensemble.members]
        if not any(flows):
            return z.unsqueeze(-2)
        size = self.ensemble.target.latent_shapes[i][1:]
        columns = []
        for j, flow in enumerate(flows):
            if flow is None:
                columns.append(z)
                continue
            rows = []
            for m, s in enumerate(self.members):
                if s == j and base is not None:
                    rows.append(base[m])
                else:
                    rows.append(pixels(flow.inverse(image(z[m].flatten(0, 1), size))).reshape(z[m].shape))
            columns.append(torch.stack(rows))
        return torch.stack(columns, -2)
