"""A result as arviz reads it: log weights of every draw and the bounds of every example, as an ``xarray.DataTree``."""

from pathlib import Path

import numpy as np

from miselbo.bounds.quantities import NEEDED as BOUNDS
from miselbo.errors import InputError
from miselbo.evaluation.shards import SCORES
from miselbo.report.checked import read_table

MISSING = "this needs arviz-base: pip install 'miselbo[arviz]'"


def to_arviz(folder: str | Path) -> object:
    """The result of a run folder for arviz; its draws where ``evaluation.save_scores=true`` kept them.

    Args:
        folder: run folder.

    Returns:
        A DataTree. Group ``example_data``: every bound, ESS and k-hat, by ``example``. Group ``log_weights``, where the
        scores were kept: ``mixture``, log p(x, z) - log q_mix(z | x), and ``own``, with the member's own density, by
        ``chain`` (member), ``draw`` and ``example``: what arviz' PSIS smooths.

    Raises:
        InputError: arviz is not installed, or there is no result.

    Example:
        >>> to_arviz("no/such/run")
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: ...
    """
    try:
        import arviz_base
    except ImportError:
        raise InputError(MISSING) from None
    results = Path(folder) / "results"
    if not (results / "per_example.parquet").is_file():
        raise InputError(f"{folder} holds no result: evaluate it first (task=evaluate)")
    examples = read_table(results / "per_example.parquet", ("index", *BOUNDS))
    names = [name for name in (*BOUNDS, "ess", "max_weight", "pareto_k") if name in examples]
    groups = {"example_data": {name: examples[name].to_numpy(float) for name in names}}
    if all((results / "scores" / name).exists() for name in SCORES):
        groups["log_weights"] = log_weights(results / "scores")
    dims = {name: ["example"] for name in (*names, "mixture", "own")}
    coords = {"example": examples["index"].to_numpy()}
    return arviz_base.from_dict(groups, dims=dims, coords=coords)


def log_weights(scores: Path) -> dict[str, np.ndarray]:
    """``mixture`` and ``own`` [S, L, N] of the kept scores."""
    log_p = np.load(scores / "log_p.npy", mmap_mode="r", allow_pickle=False)
    log_q = np.load(scores / "log_q.npy", mmap_mode="r", allow_pickle=False)
    mixture = np.logaddexp.reduce(log_q, axis=3) - np.log(log_q.shape[3])
    own = np.stack([log_q[:, s, :, s] for s in range(log_q.shape[1])], axis=1)
    return {
        name: np.moveaxis(log_p - log_density, 0, 2)
        for name, log_density in (("mixture", mixture), ("own", own))
    }
