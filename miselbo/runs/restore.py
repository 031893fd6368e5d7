"""The trained ensemble a configuration names: the members of a run folder, or official checkpoints."""

from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.protocols import fingerprint
from miselbo.runs import checkpoints, checks
from miselbo.runs.building import build_ensemble


def restore(cfg: DictConfig, data: Any) -> Ensemble:
    """The ensemble on the CPU, in evaluation mode.

    Args:
        cfg: whole configuration; with ``importer=nvlabs`` the architecture comes from ``checkpoints``.
        data: its data module, set up.

    Raises:
        InputError: a file is missing, damaged or of another model, or the data are not those of the checkpoints.
    """
    if cfg.importer == "nvlabs":
        return restore_official(cfg, data)
    target, members = build_ensemble(cfg, data.spec, cfg.ensemble.size)
    return checkpoints.load_ensemble(Path(cfg.run_dir), target, members)


def restore_official(cfg: DictConfig, data: Any) -> Ensemble:
    """The ensemble of ``checkpoints``, checked against the data."""
    from miselbo.importers.nvlabs import load_checkpoints

    given = getattr(data, "image", None)
    if given is None:
        raise InputError(f"importer=nvlabs needs a dataset of images, got dataset={data.name}")
    ensemble = load_checkpoints(checks.checkpoint_paths(cfg), cfg.target, image=given)
    image = ensemble.target.image
    wanted, got = (
        f"{spec.channels} x {spec.height} x {spec.width} images with likelihood {spec.likelihood}"
        for spec in (image, given)
    )
    if wanted != got:
        fix = "choose the dataset= the checkpoints were trained on"
        if (image.channels, image.height, image.width) == (given.channels, given.height, given.width):
            fix += f", or dataset.likelihood={image.likelihood} where the dataset has that key"
        raise InputError(f"the checkpoints are of {wanted}, but dataset={data.name} has {got}: {fix}")
    if given.num_bits not in (8, image.num_bits):
        raise InputError(
            f"the checkpoints are of images of {image.num_bits} bits per colour, but dataset={data.name} has them "
            f"reduced to {given.num_bits}: give them all 8 (they are reduced as the checkpoints ask), or "
            f"{image.num_bits}"
        )
    module: Any = ensemble
    return module.to(memory_format=torch.channels_last)


def about_official(cfg: DictConfig, ensemble: Ensemble) -> dict[str, Any]:
    """Lines of the protocol: which files, and what their theta stands for."""
    words = {
        "tied": "one decoder, equal in all files",
        "first": "the first file's decoder for all members",
        "each": "every member under its own decoder, as in the published program",
    }
    image = ensemble.target.image
    return {
        "model": "NVAE (official checkpoints)",
        "checkpoints": [str(path) for path in cfg.checkpoints],
        "decoder": words[cfg.target],
        **({"num_x_bits": image.num_bits} if image.num_bits != 8 else {}),
        **separate(ensemble),
    }


def separate(ensemble: Ensemble) -> dict[str, Any]:
    """What must be said of an ensemble whose members have decoders of their own; nothing of another one."""
    if ensemble.shares_target:
        return {}
    stamps = [fingerprint(ensemble.target_of(s)) for s in range(len(ensemble.members))]
    return {"remark": ensemble.remark, "target_fingerprint": stamps}
