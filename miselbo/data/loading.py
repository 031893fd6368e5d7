"""Whole batches by one tensor indexing: a split of images in memory, and the sampler that cuts it up."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from miselbo.data.draws import permutation
from miselbo.errors import InputError

Batch = dict[str, Tensor]
"""``{"index": int64 [B], "image": float32 [B, C, H, W] in [0, 1]}``."""

Transform = Callable[[Tensor, Tensor, int], Tensor]
"""``(grey [B, C, H, W], index [B], epoch) -> image [B, C, H, W]``."""


@dataclass(frozen=True)
class BatchKey:
    """Names a batch: the epoch (chance draws depend on it) and the positions in the split, int64 [B]."""

    epoch: int
    index: Tensor


def keep_grey(grey: Tensor, index: Tensor, epoch: int) -> Tensor:
    """The transform that changes nothing."""
    return grey


class ImageSplit(Dataset[Batch]):
    """Images of one split, held in memory as stored, turned into [0, 1] and transformed when fetched.

    Args:
        images: [N, C, H, W], uint8 or float.
        white: stored value of full intensity (255 for 8-bit files, 1 for floats in [0, 1]).
        transform: what is done to a fetched batch, for example binarisation.

    Example:
        >>> split = ImageSplit(torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1), white=255)
        >>> len(split), split[BatchKey(0, torch.tensor([2, 1]))]["image"].flatten().tolist()
        (3, [1.0, 0.20000000298023224])
    """

    def __init__(self, images: Tensor, white: float, transform: Transform = keep_grey) -> None:
        self.images = images
        self.white = white
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def grey(self, index: Tensor) -> Tensor:
        """The images [B, C, H, W] at positions ``index`` [B] as intensities in [0, 1], nothing drawn."""
        return self.images[index].to(torch.float32) / self.white

    def batch(self, index: Tensor, epoch: int = 0) -> Batch:
        """The batch at positions ``index`` [B], each in 0 .. N - 1."""
        return {"index": index, "image": self.transform(self.grey(index), index, epoch)}

    def __getitem__(self, key: BatchKey | int) -> Batch:
        """A batch by its key, or one example (without batch axis) by its position."""
        if isinstance(key, BatchKey):
            return self.batch(key.index, key.epoch)
        if not -len(self) <= key < len(self):
            raise IndexError(f"position {key} of a split of {len(self)} images")
        return {name: value[0] for name, value in self.batch(torch.tensor([key % len(self)])).items()}


class BatchSampler(DistributedSampler[BatchKey]):
    """Yields the key of each batch of an epoch; the order is a function of (seed, epoch).

    Lightning calls :meth:`set_epoch` before every epoch, after a resume too. The base class tells Lightning
    that the cut over processes is done here.

    Shuffled (training): R processes cut each batch of one process with R times the batch size, so their steps are
    that process's. The last batch may be short, and then uneven over the processes; one of fewer than two examples or
    fewer than R joins the batch before it, as batch normalisation needs two and every process one. In order
    (evaluation): every example once, nothing padded or joined.

    Args:
        split: the data to cut.
        batch_size: examples per batch and process.
        shuffle: random order (training), or 0, 1, 2 ...
        seed: of the order.
        num_replicas: processes that share the data.
        rank: which of them this is.

    Example:
        >>> split = ImageSplit(torch.zeros(5, 1, 1, 1), white=1)
        >>> [len(key.index) for key in BatchSampler(split, 2, shuffle=True)]
        [2, 3]
        >>> [key.index.tolist() for key in BatchSampler(split, 2, shuffle=False)]
        [[0, 1], [2, 3], [4]]
    """

    def __init__(
        self,
        split: ImageSplit,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(split, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self.split = split
        self.batch_size = batch_size
        self.skip = 0  # batches of the first epoch that an earlier process has had
        if shuffle and len(split) < num_replicas:
            raise InputError(
                f"{len(split)} training images for {num_replicas} processes: each needs at least one. "
                "Use fewer devices, or raise dataset.num_train."
            )

    def _sizes(self) -> list[int]:
        """Sizes of the batches: in training those of all processes together, in evaluation this one's own."""
        replicas, size = self.num_replicas, self.batch_size
        if not self.shuffle:
            return _cut(len(range(self.rank, len(self.split), replicas)), size)
        size *= replicas
        sizes = _cut(len(self.split), size)
        if len(sizes) > 1 and sizes[-1] < min(max(2, replicas), size):
            sizes[-2:] = [sum(sizes[-2:])]
        return sizes

    def __len__(self) -> int:
        """Number of batches of this process."""
        return len(self._sizes())

    def __iter__(self) -> Iterator[BatchKey]:
        """Keys of the batches of the epoch last set."""
        epoch, whole = self.epoch, len(self.split)
        order = permutation(whole, self.seed, draw=epoch) if self.shuffle else torch.arange(whole)
        here = slice(self.rank, None, self.num_replicas)
        if self.shuffle:
            parts = [batch[here] for batch in order.split(self._sizes())]
        else:
            parts = list(order[here].split(self.batch_size))
        skip, self.skip = self.skip, 0
        for index in parts[skip:]:
            if len(index):
                yield BatchKey(epoch, index)


def _cut(count: int, size: int) -> list[int]:
    full, rest = divmod(count, size)
    return [size] * full + [rest] * (rest > 0)


def batch_loader(sampler: BatchSampler, num_workers: int = 0) -> DataLoader[Batch]:
    """A DataLoader whose items are the sampler's whole batches."""
    return DataLoader(
        sampler.split,
        batch_size=None,
        sampler=sampler,
        num_workers=num_workers,
        pin_memory=torch.cuda.is_available(),
    )
