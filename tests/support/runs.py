"""Runs of a second or two: overrides, run folders, and what is compared between them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from miselbo.pipeline import run
from miselbo.runs import config
from miselbo.runs.folder import load_folder

PROJECT = Path(__file__).resolve().parents[2]
TINY = [
    "trainer.max_epochs=2",
    "trainer.enable_progress_bar=false",
    "trainer.accelerator=cpu",
    "dataset.num_train=64",
    "dataset.num_validation=16",
    "dataset.num_test=12",
    "dataset.batch_size=32",
    "evaluation.num_samples=4",
    "evaluation.batch_size=5",
    "evaluation.num_pictures=2",
    "report=false",  # seconds of drawing a run; tests of a report say report=true
]
VAE = [
    "model=vae",
    "model.target.num_latents=2",
    "model.target.num_channels=4",
    "model.approximation.num_channels=4",
]
NVAE = [
    "model=nvae",
    "model.target.num_latent_per_group=2",
    "model.target.num_channels=4",
    "model.target.num_postprocess_cells=1",
    "model.approximation.num_channels=4",
    "model.approximation.num_preprocess_cells=1",
]


def overrides(folder: Path, *more: str, model: list[str] = VAE) -> list[str]:
    return [*model, *TINY, f"run_dir={folder}", *more]


def configure(folder: Path, *more: str, model: list[str] = VAE) -> Any:
    return config.compose_config(overrides(folder, *more, model=model))


def fit(folder: Path, *more: str, model: list[str] = VAE) -> dict[str, Any]:
    return run(configure(folder, *more, model=model))


def from_folder(task: str, folder: Path, *more: str) -> dict[str, Any]:
    return run(load_folder(folder, [f"task={task}", f"run_dir={folder}", *more]))


def snapshot(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def state(folder: Path, name: str) -> dict[str, torch.Tensor]:
    return torch.load(folder / "members" / f"{name}.ckpt", weights_only=True)["state"]


def same_tensors(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def start(folder: Path, *arguments: str, **environment: str) -> subprocess.Popen[str]:
    """``python run.py`` in another process, with nothing to answer a prompt."""
    return subprocess.Popen(
        [sys.executable, str(PROJECT / "run.py"), *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def command(folder: Path, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of ``python run.py``."""
    process = start(folder, *arguments, **environment)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err
