"""fit members -> score once -> tables -> report. The command line, tests and notebooks call :func:`run`."""

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from miselbo import bounds
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import sample as sampling
from miselbo.evaluation.scoring import (
    NetworkSource,
    forget_other_shards,
    inference_form,
    score_all,
    shard_key,
)
from miselbo.evaluation.settings import Settings, doublings, make_settings
from miselbo.evaluation.summary import headline_text, write_results
from miselbo.evaluation.workers import number_of_processes, score_in_processes
from miselbo.protocols import fingerprint
from miselbo.runs import checkpoints, config, curves
from miselbo.runs import restore as restoring
from miselbo.runs.building import build, build_ensemble
from miselbo.runs.loggers import Loggers
from miselbo.runtime import machine, stopping
from miselbo.training.parallel import members as member_jobs
from miselbo.training.parallel import ranks


def run(cfg: DictConfig) -> dict[str, Any]:
    """Carry out ``cfg.task``: everything; or an evaluation, report or export of an existing run; or a forecast.

    Args:
        cfg: resolved configuration, see ``conf/config.yaml`` and :func:`miselbo.runs.config.compose_config`.

    Returns:
        The content of ``results/summary.json``; for ``task=cost`` the forecast, for ``task=export`` the files.

    Raises:
        InputError: bad configuration, data, run folder or checkpoint; before any long work starts.
        Stopped: SIGTERM, or ``trainer.max_time`` is over; the same call goes on.
    """
    config.check_values(cfg)
    with stopping.watching(stopping.seconds(cfg.trainer.max_time)):
        return carry_out(cfg)


def carry_out(cfg: DictConfig) -> dict[str, Any]:
    """What :func:`run` does."""
    machine.prepare(cfg.num_threads)
    folder = Path(cfg.run_dir)
    if cfg.task == "report":
        return report(folder)
    if cfg.task in ("run", "fit_member"):
        machine.check_accelerator(cfg.trainer.accelerator)
        ranks.check(cfg)
    if cfg.study is not None:
        return build(cfg.study)(cfg)
    if cfg.task == "export":
        return export(cfg, folder)
    if cfg.importer == "nvlabs":
        return evaluate_checkpoints(cfg, folder)
    if cfg.importer is not None:
        return evaluate_import(cfg, folder)
    data = build(cfg.dataset)
    data.prepare_data()
    data.setup()
    check_splits(data)
    # built before anything is written, so that a model that cannot be fails now
    target, members = build_ensemble(cfg, data.spec, cfg.ensemble.size)
    if cfg.task == "sample":
        return sampling.sample(cfg, target, folder)
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    if cfg.task == "cost":
        return cost(cfg, data, target, members, settings)
    if cfg.task == "evaluate":
        member_jobs.check_all(folder, cfg.ensemble.size)
        ensemble = checkpoints.load_ensemble(folder, target, members)
        return evaluate_members(cfg, data, ensemble, settings, folder)
    config.check_folder(cfg, folder)
    fit, objective = build(cfg.model.fit), OmegaConf.to_container(cfg.model.objective)
    member_jobs.check_apart(cfg, fit)
    if cfg.task == "fit_member":
        return member_jobs.fit_member(cfg, data, folder, target, members, partial(fit, objective=objective))
    # a foreign file fails now, with nothing written
    finished = checkpoints.load_finished(folder, target, members)
    done = len(finished) == len(members)
    if done and cfg.ensemble.objective == "mixture" and len(members) > 1:
        done = checkpoints.trained_jointly(folder, len(members))
    config.claim_folder(cfg, folder)
    with Loggers(cfg, folder) as loggers:
        curves.collect(folder, cfg.ensemble.size, loggers.of_member)
        with contextlib.nullcontext() if done else ranks.together(cfg, folder):
            ensemble = fit(cfg, data, folder, loggers.of_member, objective=objective)
        summary = evaluate(cfg, data, ensemble, settings, folder)
        if cfg.report:
            report(folder)
        loggers.finish(summary, folder)
    return summary


def evaluate_members(
    cfg: DictConfig, data: Any, ensemble: Ensemble, settings: Settings, folder: Path
) -> dict[str, Any]:
    """Evaluation and report; if members come from jobs of their own, their curves go to the run's dashboard first."""
    size = cfg.ensemble.size
    if not curves.waiting(folder, size):
        return conclude(cfg, evaluate(cfg, data, ensemble, settings, folder), folder)
    with Loggers(cfg, folder) as loggers:
        curves.collect(folder, size, loggers.of_member)
        summary = evaluate(cfg, data, ensemble, settings, folder)
        conclude(cfg, summary, folder)
        loggers.finish(summary, folder)
    return summary


def check_splits(data: Any) -> None:
    """Every split must hold an example."""
    for name in data.splits:
        if len(data.split(name)) == 0:
            raise InputError(f"the {name} split of {data.name} holds no example")


def evaluate(
    cfg: DictConfig,
    data: Any,
    ensemble: Ensemble,
    settings: Settings,
    folder: Path,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Score the split and write ``results/``; ``about``: lines of the protocol of an ensemble trained elsewhere."""
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    device = "cuda" if gpu else "cpu"
    processes = number_of_processes(cfg.evaluation.workers, device)
    stamp = fingerprint(ensemble)
    data_stamp = f"{stamp} {data.protocol(settings.split)}"
    shards, keys = folder / "results" / "shards", list[str]()
    target: Any = ensemble.target
    protocol = {
        **data.protocol(settings.split),
        **(target.protocol() if hasattr(target, "protocol") else {}),
        "seed": cfg.seed,
        "model": cfg.model.name,
        "device": device,
        "fingerprint": stamp,
        "target_fingerprint": fingerprint(ensemble.target),
        **(about or {}),
    }

    def score(settings: Settings) -> dict[str, np.ndarray]:
        source = NetworkSource(ensemble, data, settings, device)
        share = None
        if processes > 1:
            share = partial(score_in_processes, cfg, settings, device, processes, source.num_data)
        keys.append(shard_key(settings, data_stamp))
        return score_all(source, settings, shards, data_stamp, cfg.trainer.enable_progress_bar, share)

    goal = cfg.evaluation.stop_at_se
    settings, values, scored = until_precise(goal, settings, score)
    forget_other_shards(shards, keys)
    if goal is not None:
        protocol["notes"] = [stop_note(goal, settings.num_samples, scored)]
    if settings.dtype == "bfloat16" or settings.compile:
        change = change_against_float32(ensemble, data, settings, device)
        protocol |= {"compile": settings.compile, "change_against_float32": change}
        protocol["notes"] = [*protocol.get("notes", []), change_note(change)]
    stages = [] if about else training_stages(folder, cfg.ensemble.size)
    summary = write_results(
        values, settings, folder, protocol, stages, data.num_dims, data.words, data.sections, data.cautions
    )
    data.save_extras(ensemble, settings, cfg.evaluation.num_pictures, folder / "results")
    return summary


def evaluate_checkpoints(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Tables and report for official NVAE / MISELBO checkpoints."""
    from miselbo.importers.nvlabs.reading import check_path

    cfg.checkpoints = [str(check_path(path)) for path in config.checkpoint_paths(cfg)]
    cfg.ensemble.size = len(cfg.checkpoints)
    data = build(cfg.dataset)
    data.prepare_data()
    data.setup()
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    ensemble = restoring.restore(cfg, data)
    config.check_folder(cfg, folder)
    config.claim_folder(cfg, folder)
    about = restoring.about_official(cfg, ensemble)
    return conclude(cfg, evaluate(cfg, data, ensemble, settings, folder, about), folder)


def export(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Write the members of a run as official NVAE checkpoints: ``<run_dir>/nvlabs/q1/checkpoint.pt`` ..."""
    from miselbo.importers.nvlabs import export_checkpoints

    data = build(cfg.dataset)
    data.setup()
    ensemble = restoring.restore(cfg, data)
    paths = export_checkpoints(
        ensemble,
        folder / "nvlabs",
        dataset=cfg.dataset.name,
        seed=cfg.seed,
        batch_size=cfg.dataset.batch_size,
    )
    print("\n".join(map(str, paths)))
    return {"checkpoints": [str(path) for path in paths]}


def evaluate_import(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Tables and report for scores made elsewhere."""
    from miselbo.importers.arrays import ArraySource

    batch_size, limit = cfg.evaluation.batch_size, cfg.evaluation.num_examples
    source = ArraySource(cfg.scores, batch_size=batch_size, num_examples=limit)
    cfg.evaluation.num_samples = source.num_samples  # all of them; evaluation.grid picks what is reported
    settings = make_settings(cfg.evaluation, cfg.seed)
    config.check_folder(cfg, folder)
    config.claim_folder(cfg, folder)
    shards = folder / "results" / "shards"
    values = score_all(source, settings, shards, source.fingerprint, cfg.trainer.enable_progress_bar)
    forget_other_shards(shards, [shard_key(settings, source.fingerprint)])
    protocol = {**source.protocol(), "seed": cfg.seed, "fingerprint": source.fingerprint}
    return conclude(cfg, write_results(values, settings, folder, protocol, [], None), folder)


def until_precise(
    goal: float | None, settings: Settings, score: Callable[[Settings], dict[str, np.ndarray]]
) -> tuple[Settings, dict[str, np.ndarray], int]:
    """Score at L, or with a goal at L = 16, 32, ... until the headline's Monte Carlo error is at most the goal.

    Each doubling scores from the first sample again, so the total, which is returned too, is less than three times
    the last one.
    """
    if goal is None:
        return settings, score(settings), settings.num_samples
    scored = 0
    for step in doublings(settings):
        values = score(step)
        scored += step.num_samples
        error = float(np.sqrt(values["miselbo_var"][:, -1, -1].sum()) / len(values["index"]))
        print(f"L = {step.num_samples}: Monte Carlo standard error of MISELBO {error:.5f} nats (goal {goal})")
        if error <= goal:
            break
    return step, values, scored


def stop_note(goal: float, used: int, scored: int) -> str:
    """What ``evaluation.stop_at_se`` did."""
    return (
        f"L = {used} is where doublings from 16 ended (evaluation.stop_at_se = {goal:g}); each starts from the first "
        f"sample again, so {scored} samples per member and example were scored in all."
    )


def change_note(change: dict[str, float]) -> str:
    """Measured effect of a cheaper form of the network."""
    return (
        f"Against plain float32 this evaluation changes MISELBO by {change['mean']:+.5f} nats on average, at most "
        f"{change['largest']:.5f} (first {change['examples']} examples, L = {change['L']}, same noise)."
    )


def change_against_float32(
    ensemble: Ensemble, data: Any, settings: Settings, device: str
) -> dict[str, float]:
    """Change of MISELBO by dtype and compilation against plain float32, first examples, same noise, nats."""
    batch = next(iter(data.evaluation_batches(settings.split, min(8, settings.batch_size))))
    x, index = batch[data.input_key].to(device), batch["index"].to(device)
    samples = min(settings.num_samples, 20)
    fast, plain = (
        bounds.miselbo(*inference_form(ensemble, *form).score(x, samples, settings.seed, index))
        for form in ((settings.dtype, settings.compile), ("float32", False))
    )
    change = fast - plain
    return {
        "mean": float(change.mean()),
        "largest": float(change.abs().max()),
        "examples": len(x),
        "L": samples,
    }


def cost(cfg: DictConfig, data: Any, target: Any, members: list[Any], settings: Settings) -> dict[str, Any]:
    """Forecast passes, bytes and minutes; runs nothing else."""
    if cfg.model.get("cost") is None:
        raise InputError(f"task=cost: model={cfg.model.name} has no forecast (its yaml has no node 'cost')")
    return build(cfg.model.cost)(cfg, data, target, members, settings)


def training_stages(folder: Path, size: int) -> list[dict[str, Any]]:
    """Seconds and decoder passes of each member's training."""
    rows = []
    for s in range(1, size + 1):
        content = checkpoints.read(checkpoints.member_path(folder, s), "member")
        name = content.get("stage") or ("train p and q1" if s == 1 else f"train q{s}")
        rows.append({"stage": name, **{key: content[key] for key in ("seconds", "decoder_passes")}})
    return rows


def conclude(cfg: DictConfig, summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Report and headline of a finished evaluation; the headline alone with ``report=false``."""
    if cfg.report:
        return report(folder)
    print(headline_text(summary))
    return summary


def report(folder: Path) -> dict[str, Any]:
    """Rebuild figures and report from the files of the run folder; print the headline."""
    from miselbo import report as reporting  # matplotlib is slow to import

    page = reporting.write(folder)
    summary = json.loads((folder / "results" / "summary.json").read_text())
    print(headline_text(summary))
    print(f"\nreport: {page}")
    return summary
