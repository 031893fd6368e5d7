"""What the pipeline asks of a data module, whatever the family: images, a density, an alignment.

The pipeline knows no family by name. What is special to one comes from here: what its models must know (``spec``), what
an example is called (``words``), which sections its report has besides the common ones (``sections``).
"""

from collections.abc import Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from miselbo.protocols import EnsembleForm

if TYPE_CHECKING:
    from pytorch_lightning import Trainer
    from torch.utils.data import DataLoader

    from miselbo.data.loading import Batch


class Scoring(Protocol):
    """What an evaluation's settings say of its data."""

    @property
    def split(self) -> str:
        """Name of the split."""

    @property
    def seed(self) -> int:
        """Of the noise."""


class Data(Protocol):
    """Examples in splits.

    Attributes:
        name: of the data, for the protocol.
        input_key: where a batch holds what the model is given; ``"index"`` holds the examples' numbers [B].
        splits: names of the splits, each of which must hold an example.
        spec: first argument of ``model.target``: what a model must know of the data.
        num_dims: scalar observations per example, for bits/dim; None where that has no meaning.
        pass_dims: scalars per example and sample, to choose how many samples run at once.
        words: what texts shall call things, such as ``{"examples": "replicates"}``.
        sections: of the report, besides the common ones (:data:`miselbo.report.sections.SPECIAL`).
    """

    @property
    def name(self) -> str:
        """Of the data."""

    @property
    def input_key(self) -> str:
        """Where a batch holds what the model is given."""

    @property
    def splits(self) -> Sequence[str]:
        """Names of the splits."""

    @property
    def words(self) -> Mapping[str, str]:
        """What texts shall call things."""

    @property
    def sections(self) -> Sequence[str]:
        """Of the report."""

    @property
    def cautions(self) -> Sequence[str]:
        """Sentences that stand with the trust in the numbers."""

    @property
    def spec(self) -> object:
        """What a model must know of the data."""

    @property
    def num_dims(self) -> int | None:
        """Scalar observations per example."""

    @property
    def pass_dims(self) -> int:
        """Scalars per example and sample."""

    def prepare_data(self) -> None:
        """Fetch the data, in one process."""

    def setup(self, stage: str | None = None) -> None:
        """Load the data."""

    def split(self, name: str) -> Sized:
        """A split, with a length."""

    def protocol(self, split: str) -> dict[str, object]:
        """What the numbers depend on, plain JSON types: dataset, split, num_examples and more.

        One of ``binarisation`` and ``replicates`` says in a sentence what the examples are.
        """

    def evaluation_batches(self, split: str, batch_size: int) -> Iterator[Mapping[str, Tensor]]:
        """Batches of a split in order, each example once."""

    def save_extras(self, ensemble: EnsembleForm, settings: Scoring, count: int, results: Path) -> None:
        """Write what the report's special sections need, with ``evaluation.num_pictures`` = count."""


class TrainingData(Data, Protocol):
    """Data that Lightning trains on: images.

    Attributes:
        batch_size: of a step.
        stream_seed: of the order of the examples and of what is drawn anew in every epoch.
        trainer: Lightning's, while a loader is made.
    """

    batch_size: int
    stream_seed: int
    trainer: "Trainer | None"

    def train_dataloader(self) -> "DataLoader[Batch]":
        """The batches of an epoch."""

    def val_dataloader(self) -> "DataLoader[Batch]":
        """The validation split, in order."""
