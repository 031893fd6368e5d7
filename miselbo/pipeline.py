"""fit members -> score once -> tables -> report. The command line, tests and notebooks call :func:`run`."""

import contextlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import sample as sampling
from miselbo.evaluation.run import check_splits, evaluate
from miselbo.evaluation.settings import Settings, make_settings
from miselbo.evaluation.shards import forget_other_shards, score_all, shard_key
from miselbo.evaluation.summary import headline_text, write_results
from miselbo.protocols import Approximation, Target
from miselbo.runs import checkpoints, checks, curves
from miselbo.runs import restore as restoring
from miselbo.runs.building import build, build_ensemble
from miselbo.runs.folder import check_folder, claim_folder
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
    checks.check_values(cfg)
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
    if cfg.importer is not None:
        return IMPORTERS[cfg.importer](cfg, folder)
    data = build(cfg.dataset)
    data.prepare_data()
    data.setup()
    check_splits(data)
    # built before anything is written, so that a model that cannot be fails now
    target, members = build_ensemble(cfg, data.spec, cfg.ensemble.size)
    return TASKS[cfg.task](cfg, folder, data, target, members)


def run_all(
    cfg: DictConfig, folder: Path, data: Any, target: Target, members: list[Approximation]
) -> dict[str, Any]:
    """Train what is missing, evaluate, report."""
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    fit = trainer_of_members(cfg, folder)
    # a foreign file fails now, with nothing written
    finished = checkpoints.load_finished(folder, target, members)
    done = len(finished) == len(members)
    if done and cfg.ensemble.objective == "mixture" and len(members) > 1:
        done = checkpoints.trained_jointly(folder, len(members))
    claim_folder(cfg, folder)
    with Loggers(cfg, folder) as loggers:
        curves.collect(folder, cfg.ensemble.size, loggers.of_member)
        with contextlib.nullcontext() if done else ranks.together(cfg, folder):
            ensemble = fit(cfg, data, folder, loggers.of_member)
        summary = evaluate(cfg, data, ensemble, settings, folder)
        if cfg.report:
            report(folder)
        loggers.finish(summary, folder)
    return summary


def fit_member(
    cfg: DictConfig, folder: Path, data: Any, target: Target, members: list[Approximation]
) -> dict[str, Any]:
    """Train one member of a run folder that jobs for the others share."""
    make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    return member_jobs.fit_member(cfg, data, folder, target, members, trainer_of_members(cfg, folder))


def trainer_of_members(cfg: DictConfig, folder: Path) -> Callable[..., Ensemble]:
    """The family's fit function with its objective, once the run folder is known to be this configuration's."""
    check_folder(cfg, folder)
    fit = build(cfg.model.fit)
    member_jobs.check_apart(cfg, fit)
    return partial(fit, objective=OmegaConf.to_container(cfg.model.objective))


def evaluate_run(
    cfg: DictConfig, folder: Path, data: Any, target: Target, members: list[Approximation]
) -> dict[str, Any]:
    """Evaluate the members a run folder holds."""
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    member_jobs.check_all(folder, cfg.ensemble.size)
    ensemble = checkpoints.load_ensemble(folder, target, members)
    return evaluate_members(cfg, data, ensemble, settings, folder)


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


def evaluate_checkpoints(cfg: DictConfig, folder: Path) -> dict[str, Any]:
    """Tables and report for official NVAE / MISELBO checkpoints."""
    from miselbo.importers.nvlabs.reading import check_path

    cfg.checkpoints = [str(check_path(path)) for path in checks.checkpoint_paths(cfg)]
    cfg.ensemble.size = len(cfg.checkpoints)
    data = build(cfg.dataset)
    data.prepare_data()
    data.setup()
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    ensemble = restoring.restore(cfg, data)
    check_folder(cfg, folder)
    claim_folder(cfg, folder)
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
    check_folder(cfg, folder)
    claim_folder(cfg, folder)
    shards = folder / "results" / "shards"
    values = score_all(source, settings, shards, source.fingerprint, cfg.trainer.enable_progress_bar)
    forget_other_shards(shards, [shard_key(settings, source.fingerprint)])
    protocol = {**source.protocol(), "seed": cfg.seed, "fingerprint": source.fingerprint}
    return conclude(cfg, write_results(values, settings, folder, protocol, [], None), folder)


def cost(
    cfg: DictConfig, folder: Path, data: Any, target: Target, members: list[Approximation]
) -> dict[str, Any]:
    """Forecast passes, bytes and minutes; runs nothing else."""
    if cfg.model.get("cost") is None:
        raise InputError(f"task=cost: model={cfg.model.name} has no forecast (its yaml has no node 'cost')")
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    return build(cfg.model.cost)(cfg, data, target, members, settings)


def sample(
    cfg: DictConfig, folder: Path, data: Any, target: Target, members: list[Approximation]
) -> dict[str, Any]:
    """Draw examples from the target of a run folder."""
    return sampling.sample(cfg, target, folder)


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


# tasks on built data, target and members; report and export come before them
TASKS = {"run": run_all, "fit_member": fit_member, "evaluate": evaluate_run, "sample": sample, "cost": cost}
IMPORTERS = {"arrays": evaluate_import, "nvlabs": evaluate_checkpoints}
