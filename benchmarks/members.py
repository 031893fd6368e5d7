"""Members side by side against one after another: the same tensors, in how much less time.

    python benchmarks/members.py --model vbpi --size 4 --workers 2
    python benchmarks/members.py --model vae --size 4 --workers 2 trainer.max_epochs=200

Each side is one ``python run.py`` in an empty folder, start-up included. Times: the training of the members that do not
depend on each other (for a network q_2..q_S, after q_1 and its decoder), and the whole training.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

PROJECT = Path(__file__).resolve().parents[1]
DEFAULTS = {
    "vae": ["trainer.max_epochs=200", "model.member_epoch_share=1.0"],
    "nvae": ["trainer.max_epochs=20", "model.member_epoch_share=1.0"],
    "vbpi": ["trainer.max_epochs=10"],
}


def train(folder: Path, size: int, workers: int, overrides: list[str]) -> dict[str, float]:
    """Seconds of one run's training, from the times of its checkpoints."""
    fixed = [
        "report=false",
        "evaluation.num_samples=1",
        "evaluation.num_examples=1",
        "evaluation.num_pictures=0",
    ]
    own = [f"ensemble.size={size}", f"ensemble.workers={workers}", f"run_dir={folder}"]
    started = time.time()
    command = [sys.executable, str(PROJECT / "run.py"), *fixed, *overrides, *own]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    ends = [(folder / "members" / f"q{s}.ckpt").stat().st_mtime for s in range(1, size + 1)]
    if "model=vbpi" in overrides:  # q1 is one of those side by side
        return {"whole": max(ends) - started}
    return {"whole": max(ends) - started, "after q1": max(ends) - ends[0]}


def states(folder: Path, size: int) -> dict[str, torch.Tensor]:
    """Every tensor of every member."""
    found = {}
    for name in ("target", *(f"q{s}" for s in range(1, size + 1))):
        content = torch.load(folder / "members" / f"{name}.ckpt", weights_only=True)
        found |= {f"{name}.{key}": value for key, value in content["state"].items()}
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="vbpi", choices=sorted(DEFAULTS))
    parser.add_argument("--size", type=int, default=4)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=1)
    options, more = parser.parse_known_args()
    overrides = [f"model={options.model}", *DEFAULTS[options.model], *more]
    sides = {"one after another": 1, "side by side": options.workers}
    print(f"S = {options.size}, {options.workers} workers, {os.cpu_count()} cores: {' '.join(overrides)}")
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as place:
            folders = {name: Path(place) / str(workers) for name, workers in sides.items()}
            seconds = {
                name: train(folders[name], options.size, workers, overrides)
                for name, workers in sides.items()
            }
            one, other = (states(folder, options.size) for folder in folders.values())
            curves = [
                sorted((folder / "metrics.csv").read_text().splitlines()) for folder in folders.values()
            ]
        same = one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)
        for name, values in seconds.items():
            print(f"{name}: " + ", ".join(f"{key} {value:.1f} s" for key, value in values.items()))
        first, second = seconds.values()
        ratios = ", ".join(f"{key} {first[key] / second[key]:.2f}" for key in first)
        print(
            f"ratio: {ratios} (load average {os.getloadavg()[0]:.1f}); "
            f"{len(one)} tensors {'identical' if same else 'DIFFERENT'}, "
            f"curves {'identical' if curves[0] == curves[1] else 'DIFFERENT'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
