"""Counters of a piece of work: operations, bytes, and seconds as a straight line in its size."""

import math
import statistics
import weakref
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

T = TypeVar("T")
Shape = Sequence[int]


def line(measure: Callable[[int], float], small: int, large: int, seconds: float) -> tuple[float, float]:
    """Intercept and slope of ``measure(n)`` seconds: medians at two n, measured in turn for so many seconds.

    Neither is negative; when both n are the same the intercept is 0.

    Example:
        >>> line(lambda n: 0.5 + 0.25 * n, small=2, large=4, seconds=1)
        (0.5, 0.25)
    """
    times: dict[int, list[float]] = {small: [], large: []}
    while len(times[large]) < 3 or sum(map(sum, times.values())) < seconds:
        for n, values in times.items():
            values.append(measure(n))
    low, high = statistics.median(times[small]), statistics.median(times[large])
    if small == large:
        return 0.0, high / large
    slope = min(max((high - low) / (large - small), 0.0), high / large)
    return high - slope * large, slope


def count_gflop(work: Callable[[], T]) -> tuple[float, T]:
    """10^9 operations of matrix products and convolutions inside ``work()``, and what it returns.

    Example:
        >>> count_gflop(lambda: torch.ones(10, 20) @ torch.ones(20, 30))[0] == 2 * 10 * 20 * 30 / 1e9
        True
    """
    backward = {torch.ops.aten.convolution_backward: _convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=backward) as counter:
        result = work()
    return counter.get_total_flops() / 1e9, result


def _convolution_backward(
    gradient: Shape, x: Shape, kernel: Shape, _bias: object, _stride: object, _padding: object, _dilation: object,
    transposed: bool, _output_padding: object, _groups: int, wanted: Sequence[bool], **_: object,
) -> int:  # fmt: skip
    """Operations of a convolution's gradients from shapes; torch's own count forgets the groups in the kernel's."""
    pixels = math.prod((x if transposed else gradient)[2:])
    return 2 * x[0] * pixels * math.prod(kernel) * sum(wanted[:2])


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers.

    Example:
        >>> parameter_bytes(nn.Linear(3, 2))
        32
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


class Peak(TorchDispatchMode):
    """The largest number of bytes that tensors made inside the block hold at one time.

    Example:
        >>> with Peak() as peak:
        ...     for _ in range(5):
        ...         _ = torch.zeros(100) + 1
        >>> peak.bytes <= 3 * 400
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.bytes = max(self.bytes, self._now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def size_text(size: float) -> str:
    """Bytes with a unit.

    Example:
        >>> size_text(900), size_text(3 * 2**20)
        ('900 B', '3.0 MiB')
    """
    power = min(int(math.log(max(size, 1), 1024)), 4)
    return f"{size / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"
