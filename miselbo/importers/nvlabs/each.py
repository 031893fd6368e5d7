"""The published programs' reading of checkpoints that share no decoder: every member under its own."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.models.hierarchical import Draw
from miselbo.models.nvae import Decoder, Encoder


class SeparateTargets(Ensemble):
    """S members, each with a decoder of its own; their bounds are no bound on one log p(x).

    log_p[., s, .] = log p_s(x, z_s). log_q[., s, ., j] runs member j's posterior heads, and its own prior heads
    where posteriors are offsets to priors, on the features of member s's decoder. With flows, z is mapped back
    through j's own flow (the published programs compare another point).

    Args:
        targets: p_1..p_S.
        members: q_1..q_S.
    """

    remark = "not a bound on one log p(x)"
    shares_target = False

    def __init__(self, targets: Sequence[Decoder], members: Sequence[Encoder]) -> None:
        super().__init__(targets[0], members)
        if len(targets) != len(members):
            raise InputError(f"{len(targets)} decoders for {len(members)} encoders; expected one each")
        self.targets: Sequence[Decoder] = nn.ModuleList(targets)  # type: ignore[assignment]

    def target_of(self, member: int) -> Decoder:
        """Member s's own decoder."""
        return self.targets[member]

    def _scores(self, contexts: list[list[Tensor]], draws: Iterable[Any]) -> tuple[Tensor, Tensor]:
        log_p, log_q = [], []
        for s, draw in enumerate(draws):
            log_p.append(draw.log_p)
            log_q.append(
                torch.stack(
                    [
                        member.log_prob(context, draw if j == s else self._seen_by(j, draw))
                        for j, (member, context) in enumerate(zip(self.members, contexts, strict=True))
                    ]
                )
            )
        return torch.stack(log_p).permute(2, 0, 1), torch.stack(log_q).permute(3, 0, 2, 1)

    def _seen_by(self, member: int, draw: Draw) -> Draw:
        """A draw with the raw prior parameters that a member's own decoder reads off the same features."""
        heads = self.targets[member].heads
        raws = [
            None if feature is None else heads[i - 1](F.elu(feature))
            for i, feature in enumerate(draw.features)
        ]
        return Draw(draw.x, replace(draw.trace, prior_raw=raws), draw.num_samples, draw.log_likelihood)
