"""``task=sample``: a picture of prior samples, and the statistics they were made with as a file of their own."""

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from miselbo.data.grid import save_grid
from miselbo.errors import InputError
from miselbo.models.hierarchical import HierarchicalDecoder
from miselbo.models.nvae.convs import batch_norms
from miselbo.models.nvae.readjusted import readjusted
from miselbo.protocols import fingerprint
from miselbo.runs import checkpoints

KIND = "sampling target"


def sampling_path(folder: Path) -> Path:
    """Where a run keeps the copy of its target for sampling."""
    return folder / "members" / "target_sampling.ckpt"


@dataclass(frozen=True)
class Sampling:
    """How samples are drawn: the ``sampling`` group of the configuration.

    Args:
        num: images or trees.
        weighted: of trees: draws with their importance weights; False: resampled to equal weights.
        temperature: multiplies the prior's scales.
        readjust_batches: batches for batch-norm statistics at that temperature; 0: those of training.
        batch_size: images that run at once.
        columns: of the picture; None: as square as can be.
        seed: of the samples; None: that of the run.
    """

    num: int = 64
    weighted: bool = False
    temperature: float = 1.0
    readjust_batches: int = 500
    batch_size: int = 16
    columns: int | None = None
    seed: int | None = None


def check(options: Sampling) -> None:
    """Refuse values that cannot be.

    Raises:
        InputError: naming the key.
    """
    for name, least in (("num", 1), ("batch_size", 2), ("readjust_batches", 0), ("columns", 1)):
        value = getattr(options, name)
        if name == "columns" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InputError(f"sampling.{name} must be a whole number of at least {least}, got {value!r}")
    if options.seed is not None and (type(options.seed) is not int or options.seed < 0):
        raise InputError(f"sampling.seed must be a whole number of at least 0 or null, got {options.seed!r}")
    if not isinstance(options.weighted, bool):
        raise InputError(f"sampling.weighted must be true or false, got {options.weighted!r}")
    temperature = options.temperature
    if (
        isinstance(temperature, bool)
        or not isinstance(temperature, int | float)
        or not 0 < temperature < math.inf
    ):
        raise InputError(f"sampling.temperature must be a positive number, got {temperature!r}")


class Made(TypedDict):
    """How statistics for sampling were estimated."""

    temperature: float
    seed: int
    readjust_batches: int
    readjust_batch_size: int


def sample(target: Any, folder: Path, options: Sampling, seed: int, device: str) -> dict[str, object]:
    """Write ``samples/*.png`` from the finished target of a run folder.

    With ``sampling.readjust_batches`` above 0 the batch-norm statistics are estimated anew, in a copy that is kept as
    ``members/target_sampling.ckpt`` and used again for the same temperature, seed and batches. ``target.ckpt`` is only
    read.

    Args:
        target: freshly built; filled from the folder.
        folder: run folder.
        options: how.
        seed: of the run.
        device: where to compute.

    Returns:
        What was made: ``path``, ``num``, ``temperature``, ``seed``, ``readjust_batches``, ``target_fingerprint``.

    Raises:
        InputError: no finished target, one that makes no images, or a value out of range.
    """
    check(options)
    if not hasattr(target, "sample"):
        raise InputError("task=sample: this model has no prior to sample images from")
    stamp = checkpoints.load_target(folder, target)
    target.to(device).eval()
    seed = seed if options.seed is None else options.seed
    batches = options.readjust_batches if batch_norms(target) else 0
    made: Made = {
        "temperature": float(options.temperature),
        "seed": seed,
        "readjust_batches": batches,
        "readjust_batch_size": options.batch_size,
    }
    decoder = for_sampling(target, stamp, made, folder) if batches else target
    images = decoder.sample(options.num, options.temperature, seed, options.batch_size)
    tail = f"-readjusted{batches}" if batches else ""
    path = folder / "samples" / f"temperature{made['temperature']:g}-seed{seed}-num{options.num}{tail}.png"
    save_grid(images, path, options.columns)
    if fingerprint(target) != stamp:
        raise RuntimeError("sampling changed the scored target")
    print(f"{options.num} samples at temperature {made['temperature']:g}: {path}")
    return {"path": str(path), "num": options.num, **made, "target_fingerprint": stamp}


def for_sampling(target: HierarchicalDecoder, stamp: str, made: Made, folder: Path) -> HierarchicalDecoder:
    """The copy with statistics for sampling: from the folder if it was made in the same way, else made and kept."""
    path = sampling_path(folder)
    if path.is_file():
        content = checkpoints.read(path, KIND)
        if content["target_fingerprint"] == stamp and content["made"] == made:
            other = copy.deepcopy(target)
            checkpoints.load_state(other, content, path)
            return other
    other = readjusted(
        target, made["temperature"], made["readjust_batches"], made["seed"], made["readjust_batch_size"]
    )
    checkpoints.save(path, KIND, other, target, made=made)
    return other
