"""Where the time of an evaluation goes, and how near it is to what the machine can do.

    python benchmarks/profile_evaluation.py --size 1 --samples 20 --threads 2

Every convolution of the inference form is timed in place and summed by kind, beside its arithmetic rate; what is left
is everything between the convolutions (gates, interpolation, noise, densities). The last lines are the machine's own
rates in the same process: a large float32 matrix product, and a copy that does not fit the cache.
"""

import argparse
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from evaluation import make_ensemble
from torch import Tensor, nn

from miselbo.models.nvae.fast.ensemble import inference_form
from miselbo.models.nvae.fast.fused_conv import FusedConv2d
from miselbo.runtime import machine

COLUMNS = ("part", "calls", "seconds", "share", "GFLOP", "GFLOP/s", "GB/s")


def kind(conv: FusedConv2d) -> str:
    """Kernel size, and whether each channel has a kernel of its own."""
    depthwise = conv.groups == conv.in_channels > 1
    size = f"{conv.kernel_size[0]} x {conv.kernel_size[1]}"
    return f"{size} depthwise" if depthwise else f"{size} convolution"


@contextmanager
def timed(model: nn.Module) -> Iterator[dict[str, list[float]]]:
    """Per kind of convolution inside the block: calls, seconds, operations, bytes read and written."""
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0] * 4)
    started: list[float] = []

    def before(conv: nn.Module, arguments: Any) -> None:
        started.append(time.perf_counter())

    def after(conv: nn.Module, arguments: tuple[Tensor], result: Tensor) -> None:
        assert isinstance(conv, FusedConv2d)
        seconds = time.perf_counter() - started.pop()
        pixels = len(result) * math.prod(result.shape[2:])
        moved = (arguments[0].numel() + result.numel() + conv.weight.numel()) * result.element_size()
        values = (1.0, seconds, 2.0 * pixels * conv.weight.numel(), float(moved))
        sums[kind(conv)] = [a + b for a, b in zip(sums[kind(conv)], values, strict=True)]

    handles = []
    for module in model.modules():
        if isinstance(module, FusedConv2d):
            handles += [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def fastest(work: Callable[[], Any], repeats: int = 10) -> float:
    """Least seconds of some calls."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def peaks() -> tuple[float, float]:
    """GFLOP/s of a float32 matrix product, GB/s of a copy (read and written)."""
    n = 1536
    a, b, c = torch.rand(n, n), torch.rand(n, n), torch.empty(n, n)
    product = 2 * n**3 / fastest(lambda: torch.mm(a, b, out=c)) / 1e9
    source = torch.rand(2**26)
    target = torch.empty_like(source)
    return product, 2 * source.nbytes / fastest(lambda: target.copy_(source)) / 1e9


def profile(args: argparse.Namespace) -> list[tuple[Any, ...]]:
    """Rows of the table."""
    form = inference_form(make_ensemble(args.size, args.model))
    x = torch.rand((args.batch, 1, 28, 28), generator=torch.Generator().manual_seed(1)).round()
    form.score(x, args.samples)
    with timed(form) as sums:
        start = time.perf_counter()
        form.score(x, args.samples)
        total = time.perf_counter() - start
    rows: list[tuple[Any, ...]] = []
    for name, (calls, seconds, operations, moved) in sorted(sums.items(), key=lambda item: -item[1][1]):
        rates = (operations / 1e9, operations / seconds / 1e9, moved / seconds / 1e9)
        rows.append(
            (name, f"{calls:.0f}", f"{seconds:.3f}", f"{seconds / total:.1%}", *(f"{r:.1f}" for r in rates))
        )
    rest = total - sum(values[1] for values in sums.values())
    rows.append(("between the convolutions", "", f"{rest:.3f}", f"{rest / total:.1%}", "", "", ""))
    whole = sum(values[2] for values in sums.values()) / 1e9
    rows.append(("whole", "", f"{total:.3f}", "100%", f"{whole:.1f}", f"{whole / total:.1f}", ""))
    product, copy = peaks()
    rows.append(("machine: matrix product", "", "", "", "", f"{product:.1f}", ""))
    rows.append(("machine: copy", "", "", "", "", "", f"{copy:.1f}"))
    return rows


def main() -> None:
    """Measure, print, write a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nvae_mnist", help="configuration group model")
    parser.add_argument("--size", type=int, default=1, help="S")
    parser.add_argument("--samples", type=int, default=20, help="L")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    machine.prepare(args.threads)
    rows = profile(args)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(str(cell) for cell in row) + " |" for row in rows]
    note = f"- {args.model}, S = {args.size}, L = {args.samples}, batch {args.batch}, float32, {args.threads} thread(s)"
    note += f", torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    args.out.mkdir(parents=True, exist_ok=True)
    text = "\n".join([*lines, "", note, ""])
    (args.out / f"profile_S{args.size}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
