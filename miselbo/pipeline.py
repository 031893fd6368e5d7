"""fit members -> score once -> tables -> report. The command line, tests and notebooks call :func:`run`."""

import math
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch
from omegaconf import DictConfig, OmegaConf

import miselbo
from miselbo import checkpoints, config, machine, subset_tables, tables
from miselbo.building import build, build_ensemble
from miselbo.ensemble import Ensemble, fingerprint
from miselbo.errors import InputError
from miselbo.evaluation import Settings, make_settings, score_split
from miselbo.files import write_json
from miselbo.loggers import Loggers
from miselbo.pictures import save_pictures


def run(cfg: DictConfig) -> dict[str, Any]:
    """Carry out ``cfg.task``: everything, or from an existing run folder an evaluation or a report.

    Args:
        cfg: resolved configuration, see ``conf/config.yaml`` and :func:`miselbo.config.compose_config`.

    Returns:
        The content of ``results/summary.json``.

    Raises:
        InputError: bad configuration, data, run folder or checkpoint; before any long work starts.
    """
    config.check_values(cfg)
    machine.prepare(cfg.num_threads)
    folder = Path(cfg.run_dir)
    if cfg.task == "report":
        return report(folder)
    data = build(cfg.dataset)
    data.prepare_data()
    data.setup()
    check_splits(data)
    target, members = build_ensemble(
        cfg, data.image, cfg.ensemble.size
    )  # so that a model that cannot be fails now
    settings = make_settings(cfg.evaluation, cfg.seed, data.image.num_dims)
    if cfg.task == "evaluate":
        ensemble = checkpoints.load_ensemble(folder, target, members)
        evaluate(cfg, data, ensemble, settings, folder)
        return report(folder)
    config.check_folder(cfg, folder)
    checkpoints.load_finished(
        folder, target, members
    )  # so that a foreign file fails now, nothing written yet
    config.claim_folder(cfg, folder)
    with Loggers(cfg, folder) as loggers:
        fit = build(cfg.model.fit)
        ensemble = fit(
            cfg, data, folder, loggers.of_member, objective=OmegaConf.to_container(cfg.model.objective)
        )
        summary = evaluate(cfg, data, ensemble, settings, folder)
        report(folder)
        loggers.finish(summary, folder)
    return summary


def check_splits(data: Any) -> None:
    """Every split must hold an example."""
    for name in ("train", "validation", "test"):
        if len(data.split(name)) == 0:
            raise InputError(f"the {name} split of {data.name} holds no example")


def evaluate(
    cfg: DictConfig, data: Any, ensemble: Ensemble, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Score the split and write ``results/``."""
    results = folder / "results"
    protocol = data.protocol(settings.split)
    stamp = fingerprint(ensemble)
    device = (
        "cuda" if torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda") else "cpu"
    )
    show = cfg.trainer.enable_progress_bar
    values = score_split(ensemble, data, settings, results / "shards", f"{stamp} {protocol}", device, show)
    seconds = float(values.pop("seconds").sum())
    bounds = tables.bounds_table(values, settings.grid, seconds)
    examples = tables.example_table(values)
    headline = {key: number(value) for key, value in bounds.tail(1).to_dict("records")[0].items()}
    summary = {
        "headline": headline,
        "protocol": {
            **protocol,
            "num_data": len(examples),
            "S": cfg.ensemble.size,
            "L": settings.num_samples,
            "grid": list(settings.grid),
            "seed": cfg.seed,
            "evaluation_seed": settings.seed,
            "model": cfg.model.name,
            "dtype": str(next(ensemble.parameters()).dtype).removeprefix("torch."),
            "device": device,
            "fingerprint": stamp,
            "target_fingerprint": fingerprint(ensemble.target),
            "versions": versions(),
        },
        "trust": tables.trust(examples, headline),
        "cost": cost(
            folder, cfg.ensemble.size, len(examples) * cfg.ensemble.size * settings.num_samples, seconds
        ),
        "num_dims": data.image.num_dims,
        **subset_tables.write(values, settings.num_samples, results),
    }
    tables.write_csv(bounds, results / "bounds.csv")
    tables.write_csv(tables.member_table(values, settings.grid), results / "per_member.csv")
    tables.write_csv(tables.pairwise_table(values), results / "pairwise_jsd.csv")
    tables.write_parquet(examples, results / "per_example.parquet")
    save_pictures(ensemble, data, settings, cfg.evaluation.num_pictures, results / "images.npz")
    write_json(results / "summary.json", summary)
    return summary


def cost(folder: Path, size: int, passes: int, seconds: float) -> list[dict[str, Any]]:
    """Seconds and decoder passes (examples x samples) of every stage."""
    rows = []
    for s in range(1, size + 1):
        content = checkpoints.read(checkpoints.member_path(folder, s), "member")
        rows.append(
            {
                "stage": f"train q{s}" if s > 1 else "train p and q1",
                "seconds": content["seconds"],
                "decoder_passes": content["decoder_passes"],
            }
        )
    return [*rows, {"stage": "evaluate", "seconds": seconds, "decoder_passes": passes}]


def report(folder: Path) -> dict[str, Any]:
    """Rebuild figures and report from the files of the run folder; print the headline."""
    import json

    from miselbo import report as reporting  # matplotlib is slow to import

    page = reporting.write(folder)
    summary = json.loads((folder / "results" / "summary.json").read_text())
    print(headline_text(summary))
    print(f"\nreport: {page}")
    return summary


def headline_text(summary: dict[str, Any]) -> str:
    """The headline as lines of text, the protocol above the numbers."""
    row, protocol = summary["headline"], summary["protocol"]
    lines = [
        "",
        f"{protocol['model']} on {protocol['dataset']}, {protocol['split']} split, {protocol['num_data']} examples, "
        f"S = {protocol['S']}, L = {protocol['L']}, seed {protocol['seed']}",
        f"{protocol['binarisation']}",
        "",
        f"{'nats':<16}{'value':>10}{'s.e. data':>12}{'s.e. MC':>10}",
    ]
    for name in tables.BOUNDS:
        errors = [row.get(f"{name}_se"), row.get(f"{name}_se_mc")]
        shown = ["-" if error is None or math.isnan(error) else f"{error:.4f}" for error in errors]
        lines.append(f"{name:<16}{row[name]:>10.4f}{shown[0]:>12}{shown[1]:>10}")
    return "\n".join([*lines, "", *summary["trust"]["sentences"]])


def number(value: float | int) -> float | int | None:
    """A plain Python number; JSON has no NaN: None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if math.isnan(value) else value


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "miselbo": miselbo.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch-lightning": pl.__version__,
        "numpy": np.__version__,
        "pandas": pd.__version__,
    }
