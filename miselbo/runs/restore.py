"""The trained ensemble a configuration names: the members of a run folder, or official checkpoints."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.protocols import fingerprint
from miselbo.runs import checkpoints
from miselbo.runs.building import build_model


@dataclass(frozen=True)
class Source:
    """Where trained members are: in a run folder, as modules of a model, or in official checkpoints.

    Args:
        folder: of the run.
        model: nodes of the model (:func:`miselbo.runs.building.build_model`).
        seed: of the run.
        size: S.
        official: files of official checkpoints, whose architecture is in them; None: the members of the folder.
        decoder: what theta of several official files is, a name in ``miselbo.importers.nvlabs.DECODERS``.
    """

    folder: Path
    model: Mapping[str, Any]
    seed: int
    size: int
    official: Sequence[Path] | None = None
    decoder: str = "tied"


def restore(source: Source, data: Data) -> Ensemble:
    """The ensemble on the CPU, in evaluation mode.

    Args:
        source: of the members.
        data: their data module, set up.

    Raises:
        InputError: a file is missing, damaged or of another model, or the data are not those of the checkpoints.
    """
    if source.official is not None:
        return restore_official(source.official, source.decoder, data)
    target, members = build_model(source.model, source.seed, data.spec, source.size)
    return checkpoints.load_ensemble(source.folder, target, members)


def restore_official(files: Sequence[Path], decoder: str, data: Data) -> Ensemble:
    """The ensemble of official checkpoints, checked against the data."""
    from miselbo.importers.nvlabs import load_checkpoints

    given = getattr(data, "image", None)
    if given is None:
        raise InputError(f"importer=nvlabs needs a dataset of images, got dataset={data.name}")
    ensemble = load_checkpoints(files, decoder, image=given)
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
    return ensemble.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def about_official(files: Sequence[Path], decoder: str, ensemble: Ensemble) -> dict[str, object]:
    """Lines of the protocol: which files, and what their theta stands for."""
    words = {
        "tied": "one decoder, equal in all files",
        "first": "the first file's decoder for all members",
        "each": "every member under its own decoder, as in the published program",
    }
    image = ensemble.target.image
    return {
        "model": "NVAE (official checkpoints)",
        "checkpoints": [str(path) for path in files],
        "decoder": words[decoder],
        **({"num_x_bits": image.num_bits} if image.num_bits != 8 else {}),
        **separate(ensemble),
    }


def separate(ensemble: Ensemble) -> dict[str, object]:
    """What must be said of an ensemble whose members have decoders of their own; nothing of another one."""
    if ensemble.shares_target:
        return {}
    stamps = [fingerprint(ensemble.target_of(s)) for s in range(len(ensemble.members))]
    return {"remark": ensemble.remark, "target_fingerprint": stamps}
