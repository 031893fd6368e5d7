"""One data point (a density, an alignment), evaluated many times: the examples are replicates.

With one data point there is no spread over data. So the evaluation is repeated: replicate n = 0..R-1 draws its own L
samples from every member, and the standard error over the replicates is the Monte Carlo error of the mean, with no
assumption on the weights. The noise is a function of (seed, replicate, member, sample):
more replicates extend fewer.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from miselbo.data.interface import Scoring
from miselbo.errors import InputError
from miselbo.protocols import EnsembleForm

WORDS = {
    "example": "replicate",
    "examples": "replicates",
    "s.e. data": "s.e. repl.",
    "s.e. (data)": "s.e. (replicates)",
    "over the data": "over the replicates",
    "over data": "over replicates",
    "decoder pass": "target evaluation",
    "decoder passes": "target evaluations",
    "evaluation.num_examples": "dataset.replicates",
    "q1 trains together with the decoder, the others against the frozen decoder": "Nothing of the target is trained",
}


class Replicates:
    """Base of the data modules with one data point.

    Args:
        name: of the data, for the protocol.
        replicates: R, how often the evaluation is repeated with noise of its own.

    Raises:
        InputError: R below 1, or an unknown split.

    Example:
        >>> data = Replicates("a density", replicates=5)
        >>> [batch["index"].tolist() for batch in data.evaluation_batches("test", 2)]
        [[0, 1], [2, 3], [4]]
    """

    input_key = "x"
    splits = ("test",)
    words: dict[str, str] = WORDS
    sections: tuple[str, ...] = ()
    num_dims: int | None = None
    pass_dims = 1

    def __init__(self, name: str, replicates: int):
        if isinstance(replicates, bool) or not isinstance(replicates, int) or replicates < 1:
            raise InputError(f"dataset.replicates must be a whole number of at least 1, got {replicates!r}")
        self.name = name
        self.replicates = replicates

    @property
    def cautions(self) -> Sequence[str]:
        """What a reader of the numbers must know, in sentences."""
        return []

    def prepare_data(self) -> None:
        """Nothing to fetch."""

    def setup(self, stage: str | None = None) -> None:
        """Nothing to load."""

    def split(self, name: str) -> range:
        """Numbers of the replicates."""
        if name not in self.splits:
            raise InputError(
                f"evaluation.split={name!r}: {self.name} is one data point without a split; use evaluation.split=test"
            )
        return range(self.replicates)

    def protocol(self, split: str = "test") -> dict[str, object]:
        """Dataset, and what a replicate is; a subclass adds what its numbers depend on."""
        return {
            "dataset": self.name,
            "split": split,
            "num_examples": len(self.split(split)),
            "replicates": (
                "independent repetitions of the evaluation, each with its own L draws of every member; "
                "their standard error is the Monte Carlo error of the mean"
            ),
        }

    def evaluation_batches(
        self, split: str = "test", batch_size: int = 100, *, indices: Tensor | None = None
    ) -> Iterator[dict[str, Tensor]]:
        """Numbers of the replicates, or some of them; ``x`` is empty, [B, 0]: there is nothing to condition on."""
        every = torch.arange(len(self.split(split)))
        for index in (every if indices is None else indices).split(batch_size):
            yield {"index": index, "x": torch.zeros(len(index), 0)}

    def save_extras(self, ensemble: EnsembleForm, settings: Scoring, count: int, results: Path) -> None:
        """Nothing beside the tables."""
