"""The data module of images as tensors: splits, batches, binarisation, and the protocol of an evaluation."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from miselbo import noise
from miselbo.data.draws import binarise, random_flip
from miselbo.data.interface import Scoring
from miselbo.data.levels import quantise
from miselbo.data.loading import Batch, BatchSampler, ImageSplit, Transform, batch_loader, keep_grey
from miselbo.data.spec import ImageSpec
from miselbo.errors import InputError
from miselbo.protocols import EnsembleForm

if TYPE_CHECKING:
    from pytorch_lightning import Trainer

SPLITS = ("train", "validation", "test")
LIKELIHOODS = ("bernoulli", "logistic_mixture", "normal")


@dataclass(frozen=True)
class Images:
    """What a source gives: the images as stored, and where they come from.

    Args:
        train: [N, C, H, W], uint8 or float; validation images are its last ones.
        test: [M, C, H, W].
        white: stored value of full intensity.
        source: origin in words, for the protocol.
        rule: in words, how training and test part were told apart.
        num_validation: the last so many training images are a validation part of the source's own; None when
            it has none.
    """

    train: Tensor
    test: Tensor
    white: float
    source: str
    rule: str
    num_validation: int | None = None


class ImageOptions(TypedDict, total=False):
    """Keyword arguments of :class:`ImageData` that every dataset passes on."""

    likelihood: str
    num_bits: int
    batch_size: int
    evaluation_batch_size: int
    num_train: int | None
    num_test: int | None
    binarisation_seed: int
    stream_seed: int
    flip: bool
    num_workers: int


class ImageData:
    """Images in memory, split in three; models learn all they need from :attr:`image`.

    A batch is ``{"index": int64 [B], "image": float32 [B, C, H, W] in [0, 1]}``; ``index`` is the position
    in the split.

    Training (:meth:`train_dataloader`): order, binarisation and flips are drawn afresh in each epoch, as a
    function of (``stream_seed``, epoch, index). Set ``stream_seed`` to a member's own seed before training
    it; it is read when the loader is made. Evaluation: images are binarised once, as a function of
    (``binarisation_seed``, split, index).

    Args:
        source: gives the images; called once, at first use.
        name: of the dataset, for the protocol.
        likelihood: ``"bernoulli"`` binarises; ``"logistic_mixture"`` and ``"normal"`` keep intensities.
        batch_size: of training, per process.
        evaluation_batch_size: of the validation and test loaders; no result depends on it.
        num_train: use only the first so many training images; None for all.
        num_validation: the last so many images of the source's training part; of a source with a validation
            part of its own the first so many of that, None for all of it.
        num_bits: bits per colour of images that are not binarised; intensities x become
            floor(255 x / 2^(8 - num_bits)) / (2^num_bits - 1) in every split.
        num_test: use only the first so many test images; None for all.
        binarisation_seed: of the validation and test images.
        stream_seed: of the training draws.
        flip: mirror training images at random.
        num_workers: worker processes of the loaders; 0 is right for images in memory.

    Raises:
        InputError: an argument out of range; at first use, an empty split.

    Example:
        >>> grey = torch.linspace(0, 1, 12).view(12, 1, 1, 1)
        >>> data = ImageData(lambda: Images(grey[:9], grey[9:], 1.0, "a ramp", "in order"), name="ramp",
        ...                  num_validation=3, batch_size=4)
        >>> data.image
        ImageSpec(channels=1, height=1, width=1, likelihood='bernoulli', num_bits=8)
        >>> [len(batch["index"]) for batch in data.train_dataloader()], len(data.split("test"))
        ([4, 2], 3)
    """

    name: str
    input_key = "image"  # of a batch: what the model is given
    splits = SPLITS
    words: dict[str, str] = {}  # an example is called an example
    sections = ("images",)  # of the report

    def __init__(
        self,
        source: Callable[[], Images],
        *,
        name: str,
        num_validation: int | None,
        likelihood: str = "bernoulli",
        num_bits: int = 8,
        batch_size: int = 128,
        evaluation_batch_size: int = 256,
        num_train: int | None = None,
        num_test: int | None = None,
        binarisation_seed: int = 0,
        stream_seed: int = 0,
        flip: bool = False,
        num_workers: int = 0,
    ) -> None:
        if likelihood not in LIKELIHOODS:
            raise InputError(f"dataset.likelihood={likelihood!r}: expected one of {', '.join(LIKELIHOODS)}.")
        self.source = source
        self.name = name
        self.likelihood = likelihood
        self.num_bits = _bits(num_bits, likelihood)
        self.batch_size = _whole("batch_size", batch_size, 1)
        self.evaluation_batch_size = _whole("evaluation_batch_size", evaluation_batch_size, 1)
        self.num_train = None if num_train is None else _whole("num_train", num_train, 1)
        self.num_validation = None if num_validation is None else _whole("num_validation", num_validation, 1)
        self.num_test = None if num_test is None else _whole("num_test", num_test, 1)
        self.binarisation_seed = _whole("binarisation_seed", binarisation_seed, 0)
        self.stream_seed = _whole("stream_seed", stream_seed, 0)
        self.num_workers = _whole("num_workers", num_workers, 0)
        self.flip = flip
        self.trainer: Trainer | None = None  # Lightning's, while a loader is made

    def prepare_data(self) -> None:
        """Loads the images (called in one process before the others, so only one downloads)."""
        _ = self._splits

    def setup(self, stage: str | None = None) -> None:
        """Loads the images if they are not loaded yet; calling it is optional."""
        _ = self._splits

    @cached_property
    def _images(self) -> Images:
        return self.source()

    @cached_property
    def _splits(self) -> dict[str, Tensor]:
        train, test = self._images.train, self._images.test
        own = self._images.num_validation
        if own is None and self.num_validation is None:
            raise InputError(
                f"dataset.num_validation=null: {self.name} has no validation part of its own. Give a number from 1 "
                f"to {len(train) - 1}: the last so many images outside the test split."
            )
        held_out = own or self.num_validation or 0
        if held_out >= len(train):
            raise InputError(
                f"dataset.num_validation={held_out} leaves no training image: {self.name} has "
                f"{len(train):,} images outside its test split. Give a number from 1 to {len(train) - 1}."
            )
        most = len(train) - held_out
        return {
            "train": train[: _limit("num_train", self.num_train, most)],
            "validation": train[most:][: _limit("num_validation", self.num_validation, held_out)],
            "test": test[: _limit("num_test", self.num_test, len(test))],
        }

    @property
    def image(self) -> ImageSpec:
        """Size, channels and likelihood of the images."""
        channels, height, width = self._images.train.shape[1:]
        return ImageSpec(
            channels=channels,
            height=height,
            width=width,
            likelihood=self.likelihood,
            num_bits=self.num_bits,
        )

    @property
    def spec(self) -> ImageSpec:
        """What a model must know: :attr:`image`."""
        return self.image

    @property
    def cautions(self) -> list[str]:
        """Nothing beyond what the scores tell."""
        return []

    @property
    def num_dims(self) -> int | None:
        """Scalars per example, for bits/dim; None for a density (``normal``), which is no code length."""
        return None if self.image.likelihood == "normal" else self.image.num_dims

    @property
    def pass_dims(self) -> int:
        """Scalars per example and sample, to choose the pass size by."""
        return self.image.num_dims

    def save_extras(self, ensemble: EnsembleForm, settings: Scoring, count: int, results: Path) -> None:
        """Pictures for the report."""
        from miselbo.data.pictures import save_gallery, save_pictures

        save_pictures(ensemble, self, settings.split, settings.seed, count, results / "images.npz")
        if count > 0:
            save_gallery(self, settings.split, results)

    def split(self, name: str) -> ImageSplit:
        """Images of ``"train"``, ``"validation"`` or ``"test"`` as evaluation sees them: binarised once.

        ``split(name).grey(index)`` gives the intensities before binarisation.
        """
        transform: Transform = keep_grey
        if self.num_bits != 8:
            transform = partial(_fewer_bits, bits=self.num_bits)
        if self.likelihood == "bernoulli":
            transform = partial(_binarised_once, seed=noise.derive(self.binarisation_seed, _number(name)))
        return ImageSplit(self._splits[name], self._images.white, transform)

    def protocol(self, split: str = "test") -> dict[str, object]:
        """How the images of a split were made: plain JSON types, to be printed next to every number."""
        number, image = _number(split), self.image
        size, whole, tested = len(self._splits[split]), len(self._images.train), len(self._images.test)
        first = "all" if size == tested else f"the first {size:,} of the"
        parts = {
            "train": f"the first {size:,} of the {whole:,} images outside the test split",
            "validation": f"the last {size:,} of the {whole:,} images outside the test split",
            "test": f"{first} {tested:,} test images",
        }
        if (own := self._images.num_validation) is not None:
            first = "all" if size == own else f"the first {size:,} of the"
            parts["train"] = f"the first {size:,} of the {whole - own:,} training images"
            parts["validation"] = f"{first} {own:,} validation images"
        binarisation = "none: intensities in [0, 1]"
        if self.likelihood == "bernoulli":
            binarisation = (
                f"binarised once from seed {self.binarisation_seed}: pixel = 1 where "
                f"Philox4x32-10 uniform(seed, split {number}, example) < grey level"
            )
        elif self.num_bits != 8:
            binarisation = f"none: intensities in [0, 1], {self.num_bits} bits"
        return {
            "dataset": self.name,
            "split": split,
            "num_examples": size,
            "split_rule": f"{self._images.rule}; {split}: {parts[split]}",
            "binarisation": binarisation,
            "binarisation_seed": self.binarisation_seed if self.likelihood == "bernoulli" else None,
            "image": f"{image.channels} x {image.height} x {image.width}",
            "likelihood": self.likelihood,
            "source": self._images.source,
        }

    def evaluation_batches(
        self,
        split: str = "test",
        batch_size: int | None = None,
        *,
        start: int = 0,
        indices: Sequence[int] | Tensor | None = None,
    ) -> Iterator[Batch]:
        """Batches of a split in order, each example once, the short last batch included.

        Args:
            split: which one.
            batch_size: default ``evaluation_batch_size``.
            start: skip the examples before this position (of ``indices``, when given).
            indices: positions in the split to go through instead of all of them.
        """
        images = self.split(split)
        size = self.evaluation_batch_size if batch_size is None else _whole("batch_size", batch_size, 1)
        order = torch.arange(len(images)) if indices is None else torch.as_tensor(indices, dtype=torch.int64)
        if len(order) and (int(order.min()) < 0 or int(order.max()) >= len(images)):
            raise InputError(
                f"indices from {int(order.min())} to {int(order.max())}: the {split} split has positions "
                f"0 .. {len(images) - 1}."
            )
        rest = order[start:]
        return (images.batch(index) for index in rest.split(size) if len(index))

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches with fresh draws; order and draws are functions of (``stream_seed``, epoch)."""
        binary = self.likelihood == "bernoulli"
        transform = partial(_fresh, seed=self.stream_seed, binary=binary, flip=self.flip, bits=self.num_bits)
        split = ImageSplit(self._splits["train"], self._images.white, transform)
        sampler = BatchSampler(split, self.batch_size, shuffle=True, seed=self.stream_seed, **_process())
        if self.trainer is not None:  # worker processes fetch before Lightning's first set_epoch
            sampler.set_epoch(self.trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]
        return batch_loader(sampler, self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """The validation split in order, each example once over all processes."""
        return self._evaluation_loader("validation")

    def test_dataloader(self) -> DataLoader[Batch]:
        """The test split in order, each example once over all processes."""
        return self._evaluation_loader("test")

    def _evaluation_loader(self, name: str) -> DataLoader[Batch]:
        sampler = BatchSampler(self.split(name), self.evaluation_batch_size, shuffle=False, **_process())
        return batch_loader(sampler, self.num_workers)


def _binarised_once(grey: Tensor, index: Tensor, epoch: int, *, seed: int) -> Tensor:
    return binarise(grey, index, seed)


def _fewer_bits(grey: Tensor, index: Tensor, epoch: int, *, bits: int) -> Tensor:
    return quantise(grey, bits)


def _fresh(
    grey: Tensor, index: Tensor, epoch: int, *, seed: int, binary: bool, flip: bool, bits: int = 8
) -> Tensor:
    if flip:
        grey = random_flip(grey, index, seed, draw=epoch)
    return binarise(grey, index, seed, draw=epoch) if binary else quantise(grey, bits)


def _process() -> dict[str, int]:
    group = torch.distributed
    if not (group.is_available() and group.is_initialized()):
        return {}
    return {"num_replicas": group.get_world_size(), "rank": group.get_rank()}


def _whole(key: str, value: object, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise InputError(f"dataset.{key}={value!r}: expected a whole number, at least {least}.")
    return value


def _bits(num_bits: object, likelihood: str) -> int:
    bits = _whole("num_bits", num_bits, 1)
    if bits > 8:
        raise InputError(f"dataset.num_bits={bits}: expected 1 to 8 bits per colour.")
    if bits != 8 and likelihood == "bernoulli":
        raise InputError(
            f"dataset.num_bits={bits} with dataset.likelihood=bernoulli: binary pixels have no levels. Leave "
            "num_bits at 8, or set dataset.likelihood=logistic_mixture."
        )
    return bits


def _limit(key: str, value: int | None, most: int) -> int:
    if value is not None and value > most:
        raise InputError(
            f"dataset.{key}={value}: there are only {most:,} such images. Give at most that, or null for all."
        )
    return most if value is None else value


def _number(split: str) -> int:
    if split not in SPLITS:
        raise InputError(f"split {split!r}: expected one of {', '.join(SPLITS)}.")
    return SPLITS.index(split)
