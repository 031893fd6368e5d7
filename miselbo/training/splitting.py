"""A training batch that does not fit into memory becomes parts, whose gradients add up to the batch's."""

from collections.abc import Callable
from typing import TypeVar

import pytorch_lightning as pl
import torch
from pytorch_lightning.core.optimizer import LightningOptimizer
from torch import Tensor

from miselbo.runtime import memory

T = TypeVar("T")


class SplitsBatches(pl.LightningModule):
    """Halves the batches of a module from the first one on that does not fit, and says so.

    The gradient of a batch of n is sum_i n_i / n times the gradient of part i: the same but for round-off, and for
    batch-norm statistics, which are each part's own. One process without accumulation alone does this; parts have at
    least two examples.

    ``training_step`` takes :meth:`part` of its batch and weights its loss by ``self.share``.
    """

    parts = 1
    share = 1.0
    _part = 0
    _parts_here = 1
    _batch_size = 0

    def part(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The part of a batch whose turn it is; sets its ``share`` n_i / n."""
        size = self._batch_size = len(batch["index"])
        self._parts_here = max(1, min(self.parts, size // 2))
        rows = torch.arange(size).tensor_split(self._parts_here)[self._part].to(batch["index"].device)
        self.share = len(rows) / size
        return batch if self._parts_here == 1 else {name: value[rows] for name, value in batch.items()}

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: torch.optim.Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], object] | None = None,
    ) -> None:
        """Run the closure once per part, and again with twice as many where memory runs out."""
        alone = self.trainer.world_size == 1 and self.trainer.accumulate_grad_batches == 1
        whole = optimizer_closure
        closure = (lambda: self._fitting(whole)) if alone and whole is not None else whole
        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        """Gradients of later parts add to those of the first."""
        if self._part == 0:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def forget_part(self) -> None:
        """Undo what a part that ran out of memory has changed beside gradients."""

    def _fitting(self, closure: Callable[[], T]) -> T:
        while True:
            self._part = 0
            try:
                while True:
                    result = closure()
                    if self._part + 1 == self._parts_here:
                        return result
                    self._part += 1
            except (RuntimeError, MemoryError) as error:
                if not memory.out_of_memory(error) or 2 * self._parts_here > self._batch_size // 2:
                    raise
            self._halve()

    def _halve(self) -> None:
        self.forget_part()
        self.zero_grad(set_to_none=True)
        memory.free()
        self.parts = 2 * self._parts_here
        size = -(-self._batch_size // self.parts)
        print(
            f"out of memory: from here on batches of {self._batch_size} images go in "
            f"{self.parts} parts of at most {size}, with the same gradient but for batch-norm statistics",
            flush=True,
        )
