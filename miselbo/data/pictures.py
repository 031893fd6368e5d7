"""A few images for the report: originals, each member's reconstructions, samples from the prior."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from miselbo.protocols import evaluating, latent_noise
from miselbo.runtime.files import atomic


@torch.inference_mode()
def save_pictures(ensemble: Any, data: Any, split: str, seed: int, count: int, path: Path) -> None:
    """Write ``originals`` [N, C, H, W], ``reconstructions`` [S, N, C, H, W] and ``samples`` [2 N, C, H, W] to an npz.

    Reconstructions are mean images at one posterior sample of each member; nothing is written for a target that makes
    no images.
    """
    target = ensemble.target
    if count < 1 or not hasattr(target, "sample_prior"):
        return
    device = next(ensemble.parameters()).device
    batch = next(iter(data.evaluation_batches(split, count)))
    x, index = batch["image"].to(device), batch["index"].to(device)
    first = torch.zeros(1, dtype=torch.int64, device=device)
    shapes = target.latent_shapes
    with evaluating(ensemble):
        reconstructions = []
        for s, member in enumerate(ensemble.members):
            eps = latent_noise(shapes, seed, index, s, first, x.dtype)
            own = ensemble.target_of(s)
            reconstructions.append(own.image_mean(own.draw(x, member, member.encode(x), eps).logits))
        numbers = torch.arange(2 * count, device=device)
        eps = latent_noise(shapes, seed, numbers, len(ensemble.members), first, x.dtype)
        samples = target.sample_prior([part[0] for part in eps])
    arrays = {"originals": x, "reconstructions": torch.stack(reconstructions), "samples": samples}
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, **{name: array.cpu().numpy() for name, array in arrays.items()})


def save_gallery(data: Any, split: str, results: Path) -> None:
    """Write ``gallery.npz``: ``index`` [N] and ``images`` [N, C, H, W] of a gallery's examples."""
    import pandas as pd

    from miselbo.report.gallery import indices

    wanted, found = indices(pd.read_parquet(results / "per_example.parquet")), dict[int, np.ndarray]()
    for batch in data.evaluation_batches(split, 100):
        for number, image in zip(batch["index"].tolist(), batch["image"], strict=True):
            if number in wanted:
                found[number] = image.cpu().numpy()
        if len(found) == len(wanted):
            break
    path = results / "gallery.npz"
    if not found:
        path.unlink(missing_ok=True)
        return
    with atomic(path) as temporary, temporary.open("wb") as file:
        np.savez_compressed(file, index=np.array([*found]), images=np.stack([*found.values()]))
