"""Scored pieces of a multilevel evaluation: some examples of one level and replicate, in memory or on disk.

The examples of a level come in a random order of its own, a function of (seed, level, example). Level, replicate and
place in that order name a piece; its noise is a function of (seed, level, replicate, example, member, sample). So a
smaller goal adds pieces to those of a larger one, and what is interrupted goes on with the next piece.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from miselbo import noise
from miselbo.bounds import levels, multilevel
from miselbo.bounds.checks import RunningChecks
from miselbo.bounds.levels import Level
from miselbo.bounds.running import RunningBounds
from miselbo.bounds.subsets import KEPT_SAMPLES
from miselbo.evaluation.precision import DrawSource
from miselbo.evaluation.shards import read_shard, write_shard

STREAM = int.from_bytes(b"level")  # keeps these seeds apart from others derived of the same one
PILOT = 5000  # first replicate of the pilot
DRAWS = 32  # draws per member of a piece are about so many times evaluation.batch_size
FINE, CORRECTION = range(2)


def order(seed: int, level: int, num_examples: int) -> Tensor:
    """The random order in which a level takes the examples, [N].

    Example:
        >>> sorted(order(0, 3, 5).tolist())
        [0, 1, 2, 3, 4]
    """
    keys = noise.uniform(noise.derive(seed, STREAM, level), torch.arange(num_examples), 1)
    return keys[:, 0].argsort(stable=True)


class Pieces:
    """Scores levels piece by piece, and remembers them.

    Args:
        source: of the scores.
        draws: n_k of the levels.
        seed: of noise and order.
        batch_size: examples of a piece at level 0; fewer where an example has many draws.
        folder: keep the pieces there as shards; None keeps them in memory alone.
    """

    def __init__(
        self, source: DrawSource, draws: Sequence[int], seed: int, batch_size: int, folder: Path | None
    ):
        self.source, self.draws, self.seed, self.folder = source, tuple(draws), seed, folder
        self.sizes = [max(1, min(batch_size, DRAWS * batch_size // n)) for n in draws]
        self.orders = [order(seed, k, source.num_data) for k in range(len(draws))]
        self.kept_level = max(k for k, n in enumerate(draws) if n <= KEPT_SAMPLES)
        self.known: dict[tuple[int, int], dict[int, dict[str, np.ndarray]]] = {}

    def missing(self, units: Sequence[int], pilot: bool = False) -> list[tuple[int, int, int, int]]:
        """Level, replicate, first and last place of every piece that so many units of each level still need."""
        found = []
        for k, count in enumerate(units):
            for replicate, size in self._replicates(k, count, pilot):
                pieces = self._pieces(k, replicate)
                done = 0
                for start in [*sorted(pieces), size]:
                    for first in range(done, min(start, size), self.sizes[k]):
                        found.append((k, replicate, first, min(first + self.sizes[k], start, size)))
                    done = max(done, start + (len(pieces[start]["index"]) if start in pieces else 0))
        return found

    def score(self, piece: tuple[int, int, int, int]) -> None:
        """Score a piece and remember it."""
        began = time.perf_counter()
        k, replicate, first, last = piece
        positions = self.orders[k][first:last]
        seed = noise.derive(self.seed, STREAM, k, replicate)
        index, log_p, log_q = self.source.at(positions, self.draws[k], seed)
        blocks = self.draws[k] // self.draws[k - 1] if k else 0
        found = {
            name: value.transpose(0, 1)
            for name, value in multilevel.corrections(log_p, log_q, blocks).items()
        }
        for running in (RunningBounds(log_p.shape[1], [log_p.shape[2]]), RunningChecks(*log_p.shape[1:])):
            running.update(log_p, log_q)
            found |= {f"trust_{name}": value for name, value in running.result().items()}
        if k == self.kept_level:
            found |= {"kept_log_p": log_p.double(), "kept_log_q": log_q.double()}
        values = {name: value.cpu().numpy() for name, value in found.items()}
        values |= {"index": index.cpu().numpy(), "positions": positions.numpy()}
        values["seconds"] = np.array([time.perf_counter() - began])
        if self.folder is not None:
            write_shard(self._path(k, replicate, first), values)
        self._pieces(k, replicate)[first] = values

    def _path(self, k: int, replicate: int, first: int) -> Path:
        return Path(self.folder or "", f"level{k:02d}-{replicate:04d}-{first:08d}.npz")

    def _pieces(self, k: int, replicate: int) -> dict[int, dict[str, np.ndarray]]:
        """Pieces of a level and replicate by their first place, those on disk checked and read once."""
        known = self.known.setdefault((k, replicate), {})
        if self.folder is not None:
            for path in sorted(self.folder.glob(f"level{k:02d}-{replicate:04d}-*.npz")):
                first = int(path.stem.rsplit("-", 1)[1])
                if first in known:
                    continue
                known[first] = read_shard(path, self.orders[k][first:], name="positions", part=True)
        return known

    def _replicates(self, k: int, units: int, pilot: bool) -> Iterator[tuple[int, int]]:
        """Replicates of a level with their numbers of examples; those of the pilot are others."""
        sizes = levels.replicates(units, self.source.num_data, k, pilot)
        return enumerate(sizes, PILOT if pilot else 0)

    def read(self, k: int, units: int, pilot: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """Pieces of a level cut to so many units, replicate by replicate."""
        for replicate, size in self._replicates(k, units, pilot):
            for first, values in sorted(self._pieces(k, replicate).items()):
                if first < size:
                    rows = slice(size - first)
                    yield {name: v if name == "seconds" else v[rows] for name, v in values.items()}

    def level(
        self, k: int, units: int, pick: Callable[[dict[str, np.ndarray]], np.ndarray], pilot: bool = False
    ) -> Level:
        """Summary of what ``pick`` makes of the pieces, [b, C]."""
        pieces = list(self.read(k, units, pilot))
        index = np.concatenate([piece["positions"] for piece in pieces])
        chosen = np.concatenate([pick(piece) for piece in pieces])
        return levels.level(torch.from_numpy(index), torch.from_numpy(chosen), self.source.num_data)
