"""One training step against a plain implementation of the same step; joint against frozen-decoder steps.

    python benchmarks/training.py --threads 2

Three sides take turns on the same images with the same noise:

(a) plain: the network in the published order of operations with the library's operations alone, NCHW memory
    (``benchmarks/plain.py``), the spectral regulariser layer by layer, Adamax parameter by parameter;
(b) ours: the same step as :class:`miselbo.training.member.MemberTraining` takes it;
(c) ours with theta frozen: the step of q_2, which has no kernel gradients of the decoder.

Loss and parameters of (a) and (b) are compared after the first step. Figures are for the MNIST image size.
"""

import argparse
import csv
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from plain import as_published
from torch import Tensor
from torch.nn import functional as F

from miselbo.data import ImageSpec
from miselbo.runs.config import compose_config
from miselbo.runs.plan import build_ensemble
from miselbo.runtime import machine
from miselbo.training.member import MemberTraining, Objective
from miselbo.training.regularisers import SpectralNormSum

CLOCK = [time.perf_counter]  # --cpu-time: the process's own time, for one thread on a busy machine
IMAGE = ImageSpec(1, 28, 28, "bernoulli")
COLUMNS = ["model", "batch", "plain_ms", "ours_ms", "frozen_ms", "plain_over_ours", "joint_over_frozen"]


class LayerByLayer(torch.nn.Module):
    """The spectral regulariser with a power iteration for each kernel alone, from the same start vectors."""

    def __init__(self, batched: SpectralNormSum) -> None:
        super().__init__()
        self.iterations = 40
        self.vectors: dict[int, Tensor] = {}
        for (rows, columns), members in batched.groups.items():
            starts = batched.get_buffer(f"u_{rows}_{columns}")
            self.vectors |= {i: starts[k].clone() for k, i in enumerate(members)}

    def forward(self, kernels: list[Tensor]) -> Tensor:
        """Sum of the largest singular values."""
        total = kernels[0].new_zeros(())
        for i, kernel in enumerate(kernels):
            matrix = kernel.reshape(len(kernel), -1)
            with torch.no_grad():
                u = self.vectors[i]
                for _ in range(self.iterations):
                    v = F.normalize(u @ matrix, dim=0, eps=1e-3)
                    u = F.normalize(matrix @ v, dim=0, eps=1e-3)
                self.vectors[i] = u
            total = total + u @ matrix @ v
        self.iterations = 4
        return total


class Side:
    """A training module with its optimiser, outside a trainer."""

    def __init__(self, model: str, member: int, plain: bool) -> None:
        cfg = compose_config([f"model={model}"])
        target, members = build_ensemble(cfg, IMAGE, 2)
        objective: Any = OmegaConf.to_container(cfg.model.objective)
        self.module = MemberTraining(target, members[:member], Objective(**objective), seed=1)
        self.module._total_steps = 1000
        self.module._record = lambda values: None  # type: ignore[method-assign]
        if plain:
            self.module.spectral = LayerByLayer(self.module.spectral)  # type: ignore[assignment]
            as_published(self.module)
        self.module.train()
        trained = [p for p in self.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adamax(
            trained, lr=1e-3, eps=1e-3, weight_decay=objective["weight_decay"], foreach=not plain
        )

    def step(self, batch: dict[str, Tensor]) -> tuple[float, float]:
        """Seconds and loss."""
        start = CLOCK[0]()
        self.optimizer.zero_grad()
        loss = self.module.training_step(batch, 0)
        loss.backward()
        self.optimizer.step()
        return CLOCK[0]() - start, loss.item()


def measure(model: str, batch_size: int, steps: int) -> tuple[dict[str, Any], str]:
    """A row of the table, and how far the sides agree."""
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(batch_size, 1, 28, 28, generator=generator).round()
    batch = {"image": image, "index": torch.arange(batch_size)}
    sides = {"plain": Side(model, 1, True), "ours": Side(model, 1, False), "frozen": Side(model, 2, False)}
    losses = {name: side.step(batch)[1] for name, side in sides.items()}
    pairs = zip(sides["plain"].module.parameters(), sides["ours"].module.parameters(), strict=True)
    apart = max((p - q).abs().max().item() for p, q in pairs)
    relative = abs(losses["plain"] - losses["ours"]) / abs(losses["ours"])
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(steps):
        for name, side in sides.items():
            times[name].append(side.step(batch)[0])
    best = {name: 1e3 * min(values) for name, values in times.items()}
    row = {
        "model": model,
        "batch": batch_size,
        **{f"{name}_ms": value for name, value in best.items()},
        "plain_over_ours": best["plain"] / best["ours"],
        "joint_over_frozen": best["ours"] / best["frozen"],
    }
    note = (
        f"{model}: losses agree within {relative:.1e} (relative), parameters after a step within {apart:.1e}"
    )
    return row, note


def main() -> None:
    """Measure, print, write training.csv and training.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["nvae_mnist:32", "nvae:128"], help="name:batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5, help="measured steps of each side; they take turns")
    parser.add_argument("--cpu-time", action="store_true", help="processor time, not wall time (one thread)")
    parser.add_argument("--out", type=Path, default=Path("outputs/benchmarks"))
    args = parser.parse_args()
    machine.prepare(args.threads)
    if args.cpu_time:
        CLOCK[0] = time.process_time
    clock = "processor" if args.cpu_time else "wall"
    capability = torch.backends.cpu.get_cpu_capability()
    notes = [
        f"torch {torch.__version__}, {capability}, {args.threads} thread(s), float32, {clock} time, minimum of"
        f" {args.steps} steps"
    ]
    rows = []
    for name in args.models:
        model, batch_size = name.split(":")
        row, note = measure(model, int(batch_size), args.steps)
        rows.append(row)
        notes.append(note)
        print(row, note, sep="\n", flush=True)
    args.out.mkdir(parents=True, exist_ok=True)
    with (args.out / "training.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    shown = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in rows]
    lines = ["| " + " | ".join(cells) + " |" for cells in (COLUMNS, ["---"] * len(COLUMNS), *shown)]
    (args.out / "training.md").write_text("\n".join([*lines, "", *(f"- {note}" for note in notes), ""]))


if __name__ == "__main__":
    main()
