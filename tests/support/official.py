"""Small NVAE ensembles, official files made of them, and files edited afterwards."""

import argparse
from pathlib import Path
from typing import Any

import small
import torch

from miselbo.data import ImageSpec
from miselbo.ensemble import Ensemble
from miselbo.importers.nvlabs import export_checkpoints
from miselbo.models.nvae import Decoder, Encoder

MNIST = ImageSpec(1, 28, 28, "bernoulli")
TINY = {
    "num_latent_scales": 2,
    "num_groups_per_scale": 2,
    "num_latent_per_group": 2,
    "ada_groups": True,
    "num_preprocess_blocks": 1,
    "num_postprocess_cells": 1,
}


def make(
    size: int = 2,
    image: ImageSpec = MNIST,
    dtype: torch.dtype = torch.float32,
    encoder: dict[str, Any] | None = None,
    **decoder: Any,
) -> Ensemble:
    """An ensemble with parameters and statistics that are not the initial ones; sizes shared where both have them."""
    torch.manual_seed(0)
    given = {"num_channels": 4, "use_se": False, **TINY, **decoder}
    target = Decoder(image, **given)
    shared = {
        key: given[key] for key in ("num_channels", "num_cells_per_group", "arch", "use_se") if key in given
    }
    sizes = {"num_preprocess_cells": 1, **shared, **(encoder or {})}
    return small.prepared(target, [Encoder(target, **sizes) for _ in range(size)], dtype)


def write(folder: Path, *ensembles: Ensemble) -> list[Path]:
    """One official file per member of each ensemble."""
    return [
        path
        for number, ensemble in enumerate(ensembles or [make()])
        for path in export_checkpoints(ensemble, folder / str(number))
    ]


def content(path: Path) -> dict[str, Any]:
    with torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, weights_only=True)


def edit(path: Path, change: Any) -> Path:
    """The same file after ``change(content)``."""
    held = content(path)
    change(held)
    torch.save(held, path)
    return path
