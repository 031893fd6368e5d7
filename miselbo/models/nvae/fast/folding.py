"""Trained cells of an NVAE in a form for evaluation alone: the same function, fewer and cheaper operations.

Steps shortened by :mod:`miselbo.models.nvae.fast.steps` become plain modules: kernels fixed, channels last,
activations in place where the value is not the caller's.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from miselbo.models.nvae.cells import Cell, DoublingSkip, HalvingSkip, SqueezeExcitation, double
from miselbo.models.nvae.fast.fused_conv import FusedConv2d
from miselbo.models.nvae.fast.steps import (
    Activation,
    Affine,
    Convolution,
    Doubling,
    Step,
    convolution,
    quarter,
    shorten,
    steps_of,
)

RESIDUAL = 0.1  # factor of a cell's operations


class Steps(nn.Module):
    """Shortened steps, run one after the other, in place where the value is not the caller's."""

    def __init__(self, steps: Sequence[Step], dtype: torch.dtype) -> None:
        super().__init__()
        self.steps = nn.ModuleList(_modules(steps, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C', H', W']."""
        y = x
        for step in self.steps:
            y = step(y, y is not x) if isinstance(step, _Activation) else step(y)
        return y


def _modules(steps: Sequence[Step], dtype: torch.dtype) -> list[nn.Module]:
    modules: list[nn.Module] = []
    rest = list(steps)
    while rest:
        step = rest.pop(0)
        if isinstance(step, Doubling) and rest and _dense(rest[0]):
            count = 1 + _count_pointwise(rest[1:])
            modules.append(_Quarters(rest[:count], dtype))
            del rest[:count]
        elif isinstance(step, Convolution):
            swish = bool(rest) and isinstance(rest[0], Activation) and rest[0].function is F.silu
            modules.append(FusedConv2d(step, dtype, swish))
            del rest[: int(swish)]
        elif isinstance(step, Affine):
            modules.append(_Affine(step, dtype))
        else:
            modules.append(_Activation(step.function) if isinstance(step, Activation) else _Doubling())
    return modules


def _dense(step: Step) -> bool:
    return isinstance(step, Convolution) and step.stride == step.dilation == 1


def _count_pointwise(steps: Sequence[Step]) -> int:
    passes = [
        isinstance(s, Affine | Activation) or (isinstance(s, Convolution) and s.pointwise) for s in steps
    ]
    return passes.index(False) if False in passes else len(passes)


class _Activation(nn.Module):
    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor, inplace: bool) -> Tensor:
        return self.function(x, inplace=inplace)


class _Doubling(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return double(x)


class _Affine(nn.Module):
    def __init__(self, step: Affine, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("scale", step.scale.to(dtype).view(1, -1, 1, 1))
        self.register_buffer("shift", step.shift.to(dtype).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.shift, x, self.scale)  # type: ignore[arg-type]


class _Quarters(nn.Module):
    """Doubling and a convolution, then pointwise steps: four small convolutions, put together at the end."""

    _pixels = ((0, 0), (0, 1), (1, 0), (1, 1))

    def __init__(self, steps: Sequence[Step], dtype: torch.dtype) -> None:
        super().__init__()
        first, *after = steps
        assert isinstance(first, Convolution)
        self.parts = nn.ModuleList(Steps([quarter(first, *pixel), *after], dtype) for pixel in self._pixels)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor | None = None
        for part, (row, column) in zip(self.parts, self._pixels, strict=True):
            y = part(x)
            if out is None:
                shape = (len(y), 2 * y.shape[2], 2 * y.shape[3], y.shape[1])
                out = y.new_empty(shape).permute(0, 3, 1, 2)
            out[:, :, row::2, column::2] = y
        assert out is not None
        return out


class FoldedCell(nn.Module):
    """skip(x) + 0.1 SE(steps(x)), the same function as the trained cell in evaluation mode.

    Example:
        >>> cell = Cell(4, ("e3k5g0",), -1, True).eval()
        >>> x = torch.randn(2, 4, 3, 3)
        >>> torch.allclose(FoldedCell(cell)(x), cell(x), atol=1e-6)
        True
    """

    def __init__(self, cell: Cell, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        dtype = dtype or next(cell.parameters()).dtype
        steps = [step for operation in cell.ops for step in steps_of(operation)]
        self.se = None if cell.se is None else _folded_se(cell.se, dtype)
        if self.se is None:
            channels = torch.full_like(convolution(_last_conv(cell)).bias, RESIDUAL)
            steps.append(Affine(channels, torch.zeros_like(channels)))
        self.steps = Steps(shorten(steps), dtype)
        self.skip = None if cell.skip is None else _folded_skip(cell.skip, dtype)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in, H, W] -> [N, out, H', W']; x is left as it is."""
        y = self.steps(x)
        skip = x if self.skip is None else self.skip(x)
        if self.se is None:
            return y.add_(skip)
        out = None if torch.compiler.is_compiling() else y  # the compiler plans memory itself
        return torch.addcmul(skip, y, self.se(y), out=out)


def _last_conv(cell: Cell) -> nn.Conv2d:
    return [module for module in cell.ops.modules() if isinstance(module, nn.Conv2d)][-1]


class _Gate(nn.Module):
    def __init__(self, squeeze: nn.Linear, excite: nn.Linear) -> None:
        super().__init__()
        self.squeeze, self.excite = squeeze, excite

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3))), inplace=True))
        return gate.sigmoid_().mul_(RESIDUAL)[:, :, None, None]


def _folded_se(se: SqueezeExcitation, dtype: torch.dtype) -> nn.Module:
    return _Gate(_copied(se.squeeze, dtype), _copied(se.excite, dtype))


def _copied(linear: nn.Linear, dtype: torch.dtype) -> nn.Linear:
    copy = nn.Linear(linear.in_features, linear.out_features, device=linear.weight.device, dtype=dtype)
    copy.load_state_dict(linear.state_dict())
    return copy.requires_grad_(False)


class _Halving(nn.Module):
    def __init__(self, skip: HalvingSkip, dtype: torch.dtype) -> None:
        super().__init__()
        steps = (convolution(conv) for conv in skip.convs)  # type: ignore[arg-type]
        self.convs = nn.ModuleList(FusedConv2d(step, dtype) for step in steps)
        self.offsets = skip._offsets

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(x)
        parts = zip(self.convs, self.offsets, strict=True)
        return torch.cat([conv(x[:, :, row::2, column::2]) for conv, (row, column) in parts], 1)


class _BilinearDoubling(nn.Module):
    def __init__(self, skip: DoublingSkip, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv = FusedConv2d(convolution(skip.conv), dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear", align_corners=True)


def _folded_skip(skip: nn.Module, dtype: torch.dtype) -> nn.Module:
    if isinstance(skip, HalvingSkip):
        return _Halving(skip, dtype)
    assert isinstance(skip, DoublingSkip)
    return _BilinearDoubling(skip, dtype)
