"""Speed and memory of the evaluation against the published algorithm, in one process, on the paper's sizes.

    python benchmarks/evaluation.py --sizes 1 2 5 10 --samples 10 20 100 --threads 2

Three sides take turns, with the same weights and the same images:

(a) naive: the published algorithm, written plainly: one sample at a time, a full encoder and decoder pass
    for each of the S x S pairs (member that drew, member that scores), NCHW, weights normalised at every
    call, operations in the published order (``benchmarks/plain.py``);
(b) ours: the inference form, encoding included;
(c) floor: S decoder passes per sample alone, in our fastest layout, at given z: no prior or posterior, no
    noise, no densities.

(a) and (c) cost the same for every sample and (b) too but for encoding x, so each side is timed on few
samples (``--naive-samples``, ``--measured``) and the times for the L of the table are composed: L times the
cost per sample, plus the encoding measured by itself.
"""

import argparse
import csv
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from plain import as_published
from torch import Tensor

from miselbo import bounds
from miselbo.data import ImageSpec
from miselbo.ensemble import Ensemble
from miselbo.models.nvae.fast.ensemble import InferenceEnsemble, inference_form
from miselbo.protocols import latent_noise
from miselbo.runs.config import compose_config
from miselbo.runs.plan import build_ensemble
from miselbo.runtime import machine

IMAGE = ImageSpec(1, 28, 28, "bernoulli")
CLOCK = [time.perf_counter]  # --cpu-time: the process's own time, for one thread on a busy machine
COLUMNS = ["S", "L", "naive_s", "ours_s", "floor_s", "a_over_b", "b_over_c", "ours_per_member_s", "growth"]


def make_ensemble(size: int, model: str) -> Ensemble:
    """Random weights; batch-norm statistics and scales moved away from their initial values."""
    target, members = build_ensemble(compose_config([f"model={model}"]), IMAGE, size)
    ensemble = Ensemble(target, members).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for name, tensor in ensemble.state_dict().items():
        noise = torch.rand(tensor.shape, generator=generator)
        if "running_var" in name:
            tensor.mul_(0.75 + 0.5 * noise)
        elif "running_mean" in name:
            tensor.add_(0.2 * (noise - 0.5))
    return ensemble


@torch.no_grad()
def naive(ensemble: Ensemble, x: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """The published algorithm: S x S full passes per sample, one sample at a time."""
    size, index = len(ensemble.members), torch.arange(len(x))
    log_p = torch.empty(len(x), size, num_samples, dtype=torch.float64)
    log_q = torch.empty(len(x), size, num_samples, size, dtype=torch.float64)
    for sample in range(num_samples):
        for s, member in enumerate(ensemble.members):
            eps = latent_noise(ensemble.target.latent_shapes, 0, index, s, torch.tensor([sample]), x.dtype)
            drawn = ensemble.target.draw(x, member, member.encode(x), eps)
            log_p[:, s, sample], log_q[:, s, sample, s] = drawn.log_p[0], drawn.log_q[0]
            for j, other in enumerate(ensemble.members):
                if j != s:
                    again = ensemble.target.at(x, [z[None] for z in drawn.z])
                    log_q[:, s, sample, j] = other.log_prob(other.encode(x), again)[0]
                    again.log_p  # noqa: B018  the published pass computes it
    return log_p, log_q


@torch.inference_mode()
def floor(form: InferenceEnsemble, z: list[Tensor], passes: int) -> None:
    """Decoder passes alone."""
    for _ in range(passes):
        form.target(lambda i, feature, raw: z[i], with_prior=False)


def seconds(function: Callable[[], Any]) -> float:
    """Time of a call by :data:`CLOCK`."""
    start = CLOCK[0]()
    function()
    return CLOCK[0]() - start


def measure(size: int, args: argparse.Namespace) -> tuple[list[dict[str, float]], float]:
    """Rows of the table for one size, and the largest difference of scores between (a) and (b)."""
    ensemble = make_ensemble(size, args.model)
    form = inference_form(ensemble)
    as_published(ensemble)
    x = torch.rand((args.batch, 1, 28, 28), generator=torch.Generator().manual_seed(1)).round()
    samples = args.measured
    rows = min(form.rows, size * samples * args.batch)
    passes = size * samples * args.batch / rows
    z = [torch.randn(rows, height * width, latent) for latent, height, width in form.target.latent_shapes]
    expected, got = naive(ensemble, x, 1), form.score(x, 1)
    error = max((ours - theirs).abs().max().item() for ours, theirs in zip(got, expected, strict=True))
    times: dict[str, list[float]] = {"a": [], "b": [], "c": [], "encode": []}
    for _ in range(args.repeats):
        times["encode"].append(seconds(lambda: form.encode(x)))
        times["b"].append(seconds(lambda: form.score(x, samples)) - times["encode"][-1])
        times["c"].append(seconds(lambda: floor(form, z, round(passes))) * passes / round(passes))
        times["a"].append(seconds(lambda: naive(ensemble, x, args.naive_samples)))
    best = {side: args.statistic(values) for side, values in times.items()}
    table = []
    for total in args.samples:
        a = best["a"] / args.naive_samples * total
        b = best["encode"] + best["b"] / samples * total
        c = best["c"] / samples * total
        row = {
            "S": size,
            "L": total,
            "naive_s": a,
            "ours_s": b,
            "floor_s": c,
            "a_over_b": a / b,
            "b_over_c": b / c,
        }
        table.append({**row, "ours_per_member_s": b / size})
    return table, error


def memory(args: argparse.Namespace) -> tuple[int, int]:
    """Peak resident bytes after L = 100 and after L = 2,000 (one image, one member, scores not kept)."""
    form = inference_form(make_ensemble(1, args.model))
    peaks = []
    for total in (100, 2000):
        for _ in form.passes(torch.zeros(1, 1, 28, 28), total):
            pass
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    return peaks[0], peaks[1]


def half(size: int, args: argparse.Namespace) -> str:
    """Speed of bfloat16 against float32 and its change of the bounds, on the same noise."""
    ensemble = make_ensemble(size, args.model)
    x = torch.rand((args.batch, 1, 28, 28), generator=torch.Generator().manual_seed(1)).round()
    known, values, times = torch.ops.mkldnn._is_mkldnn_bf16_supported(), [], []
    samples = args.measured if known else 1
    for dtype in (torch.float32, torch.bfloat16):
        form = inference_form(ensemble, dtype=dtype)
        form.score(x, 1)
        times.append(seconds(lambda form=form: values.append(form.score(x, samples))))  # type: ignore[misc]
    lines = [f"bf16, S={size}, L={samples}: {times[0] / times[1]:.2f} times the speed of float32"]
    if not known:
        lines.append("this processor has no bf16 instructions: torch's fallback is used, which is slow")
    for name, bound in (("miselbo", bounds.miselbo), ("average IWELBO", bounds.average_iwelbo)):
        single, low = (bound(*scores).mean().item() for scores in values)
        lines.append(
            f"{name}: float32 {single:.4f}, bf16 {low:.4f}, change {low - single:+.4f} nats per example"
        )
    return "\n".join(lines)


def write(rows: list[dict[str, float]], notes: list[str], folder: Path) -> None:
    """evaluation.csv, evaluation.md and evaluation.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "evaluation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    lines += ["| " + " | ".join(f"{row[name]:.4g}" for name in COLUMNS) + " |" for row in rows]
    (folder / "evaluation.md").write_text("\n".join([*lines, "", *(f"- {note}" for note in notes), ""]))
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for total in sorted({row["L"] for row in rows}):
        part = [row for row in rows if row["L"] == total]
        sizes = [row["S"] for row in part]
        axes[0].plot(sizes, [row["a_over_b"] for row in part], "o-", label=f"L = {total:g}")
        axes[1].plot(sizes, [row["b_over_c"] for row in part], "o-", label=f"L = {total:g}")
    axes[0].set(xlabel="members S", ylabel="naive / ours", ylim=(0, None))
    axes[1].set(xlabel="members S", ylabel="ours / decoder alone", ylim=(0, None))
    axes[0].legend()
    figure.savefig(folder / "evaluation.png", dpi=120)


def parse() -> argparse.Namespace:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="nvae_mnist", help="configuration group model")
    parser.add_argument("--sizes", type=int, nargs="+", default=[1, 2, 5, 10], help="S")
    parser.add_argument("--samples", type=int, nargs="+", default=[10, 20, 100], help="L of the table")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--measured", type=int, default=20, help="samples on which ours and the floor are timed"
    )
    parser.add_argument(
        "--naive-samples", type=int, default=1, help="samples on which the naive side is timed"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds; the sides take turns in each")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time (one thread)")
    parser.add_argument("--median", action="store_true", help="median over rounds instead of the minimum")
    parser.add_argument("--memory", action="store_true", help="peak memory at L = 100 and 2,000 (first)")
    parser.add_argument("--bf16", action="store_true", help="bfloat16: speed and change of the bounds")
    parser.add_argument("--quick", action="store_true", help="S = 1, 2, 5; 5 samples; one round")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    if args.quick:
        args.sizes, args.measured, args.repeats = [1, 2, 5], 5, 1
    args.statistic = statistics.median if args.median else min
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse()
    machine.prepare(args.threads)
    if args.cpu_time:
        CLOCK[0] = time.process_time
    clock, best = "processor" if args.cpu_time else "wall", "median" if args.median else "minimum"
    notes = [
        f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {args.threads} thread(s),"
        f" {args.model}, batch {args.batch}, float32, {clock} time, {best} of {args.repeats} rounds",
        f"naive timed on {args.naive_samples} sample(s), ours and the floor on {args.measured}; costs per"
        " sample do not depend on L, so other L are composed (ours: encoding once, plus L times that cost)",
    ]
    if args.memory:
        low, high = memory(args)
        notes.append(
            f"peak memory: {low / 2**20:.0f} MiB at L=100, {high / 2**20:.0f} at L=2000 (x {high / low:.3f})"
        )
        print(notes[-1], flush=True)
    rows: list[dict[str, float]] = []
    print(("{:>8}" * 6).format("S", "L", "a/b", "b/c", "ours s", "growth"))
    for size in args.sizes:
        table, error = measure(size, args)
        notes.append(f"S={size}: scores of both sides agree within {error:.1e} nats")
        for row in table:
            first = next((r for r in rows if r["L"] == row["L"]), row)
            row["growth"] = row["ours_per_member_s"] / first["ours_per_member_s"]
            values = [row[name] for name in ("S", "L", "a_over_b", "b_over_c", "ours_s", "growth")]
            print("{:8g}{:8g}{:8.2f}{:8.2f}{:8.2f}{:8.2f}".format(*values), flush=True)
            rows.append(row)
    if args.bf16:
        notes += half(max(size for size in args.sizes if size <= 5), args).splitlines()
    write(rows, notes, args.out)
    print("\n".join(notes))


if __name__ == "__main__":
    main()
