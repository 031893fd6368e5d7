"""A target density and the members on a grid, in a file that the report draws from."""

from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miselbo.data.quadrature import Box, midpoints
from miselbo.protocols import Draw, EnsembleForm
from miselbo.runtime.files import atomic

POINTS = {1: 1000, 2: 200}  # per axis
SHOWN = 0.9  # share of every member's mass that must be on the grid
REACH = 3  # how many times the box's length the grid may have


@torch.no_grad()
def save_grid(ensemble: EnsembleForm, box: Box, log_normaliser: float | None, path: Path) -> None:
    """Write ``density.npz``: axes, log p and every member's log q on a grid of midpoints.

    Holds ``axis_0`` (and ``axis_1``) [P], ``log_p`` [P] or [P, P] (normalised where the normaliser is known),
    ``log_q`` [S, ...] in the same layout.

    Args:
        ensemble: with a classical target.
        box: per axis its ends; widened where a member's mass reaches out of it.
        log_normaliser: log Z, taken off log p.
        path: of the file.
    """
    points = POINTS[len(box)]
    z, drawn, log_q = _values(ensemble, widened(ensemble, box), points)
    shape = (points,) * len(box)
    first = z.view(*shape, len(box))
    axes = [first[:, 0, 0], first[0, :, 1]] if len(box) == 2 else [first[:, 0]]
    arrays = {
        **{f"axis_{i}": axis for i, axis in enumerate(axes)},
        "log_p": drawn.log_p[:, 0].view(shape) - (log_normaliser or 0.0),
        "log_q": log_q.view(-1, *shape),
    }
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: value.float().cpu().numpy() for name, value in arrays.items()})  # type: ignore[arg-type]


def widened(ensemble: EnsembleForm, box: Box) -> Box:
    """The box, with its ends moved out (at most a box's length) until it holds nine tenths of each member's mass."""
    middles = [(low + high) / 2 for low, high in box]
    outer = [[m + REACH * (end - m) for end in axis] for m, axis in zip(middles, box, strict=True)]
    z, _, log_q = _values(ensemble, outer, POINTS[len(box)])
    order = log_q.argsort(1, descending=True)
    mass = log_q.gather(1, order).softmax(1).cumsum(1)
    inside = torch.cat(
        [z[row[: 1 + int((share < SHOWN).sum())]] for row, share in zip(order, mass, strict=True)]
    )
    ends = zip(box, inside.amin(0).tolist(), inside.amax(0).tolist(), strict=True)
    return [[min(axis[0], low), max(axis[1], high)] for axis, low, high in ends]


def _values(ensemble: EnsembleForm, box: Box, points: int) -> tuple[Tensor, Draw, Tensor]:
    """Grid points [P, d], what the target says there, log q of every member [S, P]."""
    tensors = chain(
        *(part for m in ensemble.members for part in (m.parameters(), m.buffers()))
    )  # plain distributions have none
    z = midpoints(box, points)[0].to(next(tensors, torch.empty(())))
    drawn = ensemble.target.at(None, [z[:, None]])
    return z, drawn, torch.stack([m.log_prob(m.encode(None), drawn)[:, 0] for m in ensemble.members])
