"""fit members -> score once -> tables -> report. The command line, tests and notebooks call :func:`run`."""

import contextlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import card, check, multilevel, sandwich
from miselbo.evaluation import sample as sampling
from miselbo.evaluation.result import Result
from miselbo.evaluation.run import Request, check_splits, evaluate, headline_of
from miselbo.evaluation.scoring import check_form
from miselbo.evaluation.settings import Settings, make_plan, make_settings
from miselbo.evaluation.shards import forget_other_shards, score_all, shard_key
from miselbo.evaluation.summary import headline_text, write_results
from miselbo.protocols import TrainableMember, TrainableTarget
from miselbo.report.checked import read_summary
from miselbo.report.summary import Summary
from miselbo.runs import checkpoints, checks, curves, early
from miselbo.runs.building import build
from miselbo.runs.folder import check_folder, claim_folder, config_path, identity
from miselbo.runs.plain import plain
from miselbo.runs.plan import (
    TrainingPlan,
    build_ensemble,
    check_objective,
    data_of,
    is_able,
    source_of,
    study_of,
    training_plan,
)
from miselbo.runs.restore import about_official, restore, separate
from miselbo.runs.reuse import copy, reusable
from miselbo.runs.using import using
from miselbo.runtime import locks, machine, stopping
from miselbo.runtime.files import write_json
from miselbo.runtime.reading import read_json
from miselbo.training.parallel import members as member_jobs
from miselbo.training.parallel import ranks

if TYPE_CHECKING:
    from pytorch_lightning.loggers.logger import Logger


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
        return dict(carry_out(cfg))


def carry_out(cfg: DictConfig) -> Mapping[str, object]:
    """What :func:`run` does."""
    machine.prepare(cfg.num_threads)
    folder = Path(cfg.run_dir)
    if cfg.task == "report":
        with using(folder, "report"):
            return report(folder)
    if cfg.task == "log":
        with using(folder, "log"):
            return log(cfg, folder)
    if cfg.task in ("run", "fit_member"):
        machine.check_accelerator(cfg.trainer.accelerator)
        ranks.check(plain(cfg.trainer), trained_alone(cfg))
    if cfg.study is not None and cfg.task in ("evaluate", "export", "sample", "check"):
        raise InputError(
            f"{folder} holds an experiment of several runs (study is set), each in a folder of its own below it: name "
            f"one of these as run_dir for task={cfg.task}"
        )
    if cfg.study is not None:
        return build(cfg.study)(study_of(cfg))
    if cfg.task == "export":
        with using(folder, "export"):
            return export(cfg, folder)
    if cfg.task == "check":
        return check_run(cfg, folder)
    if cfg.importer is not None:
        return IMPORTERS[cfg.importer](cfg, folder)
    data = data_of(cfg)
    check_splits(data)
    # built before anything is written, so that a model that cannot be fails now
    target, members = build_ensemble(cfg, data.spec, cfg.ensemble.size)
    return TASKS[cfg.task](cfg, folder, data, target, members)


def run_all(
    cfg: DictConfig, folder: Path, data: Data, target: TrainableTarget, members: list[TrainableMember]
) -> Summary:
    """Train what is missing, evaluate, report."""
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    check_form(target, settings.dtype, settings.compile)
    plan, family = training_plan(cfg), training_of(cfg, folder, data)
    from miselbo.runs.loggers import Loggers  # Lightning takes seconds to import: not for an evaluation

    loggers = Loggers(plain(cfg), folder)
    # a foreign file fails now, with nothing written
    finished = checkpoints.load_finished(folder, target, members)
    elsewhere = reusable(cfg.from_run, identity(cfg), cfg.ensemble.size, folder)
    done = len(finished) == len(members)
    if done and cfg.ensemble.objective == "mixture" and len(members) > 1:
        done = checkpoints.trained_jointly(folder, len(members))
    claim_folder(cfg, folder)
    with using(folder, "run"), loggers:
        for s in checkpoints.missing_members(folder, cfg.ensemble.size) if is_able(family, "apart") else ():
            with locks.hold(folder, f"q{s}"):  # a job of task=fit_member is refused now, not after the others
                pass
        if elsewhere is not None:
            copy(*elsewhere, folder)
            done = len(checkpoints.load_finished(folder, target, members)) == len(members)
        curves.collect(folder, cfg.ensemble.size, loggers.of_member)
        with contextlib.nullcontext() if done else ranks.together(plan.trainer, config_path(folder)):
            ensemble = family(target, members, data, plan, folder, loggers.of_member)
        curves.complete(folder, cfg.ensemble.size)
        summary = evaluate(request(cfg), data, ensemble, settings, folder)
        if cfg.report:
            report(folder)
        loggers.finish(summary)
    return summary


def fit_member(
    cfg: DictConfig, folder: Path, data: Data, target: TrainableTarget, members: list[TrainableMember]
) -> Mapping[str, object]:
    """Train one member of a run folder that jobs for the others share."""
    make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    family = training_of(cfg, folder, data)
    checkpoints.load_for(
        folder, target, members, cfg.member
    )  # a foreign file fails now, with nothing written
    claim = cfg.copy()
    claim.task, claim.member = "run", None
    claim_folder(claim, folder)
    return member_jobs.fit_member(target, members, cfg.member, data, training_plan(cfg), folder, family)


def training_of(cfg: DictConfig, folder: Path, data: Data) -> Callable[..., Ensemble]:
    """The family's fit function, once the run folder is this configuration's and its trainer can be built."""
    check_folder(cfg, folder)
    family, plan = build(cfg.model.fit), training_plan(cfg)
    member_jobs.check_apart(plan, family, cfg.task == "fit_member")
    check_objective(family, plan.objective)
    if is_able(family, "ranks"):
        early.check_trainer(plan.trainer)
        early.check_batches(plan.trainer, data, ranks.processes(plan.trainer))
    return family


def trained_alone(cfg: DictConfig) -> str | None:
    """What of this command trains in one process alone, in words; None where several can train together."""
    if cfg.task == "fit_member":
        return "task=fit_member trains a member"
    if cfg.study is not None:
        return "an experiment of several runs trains each of them"
    if not is_able(build(cfg.model.fit), "ranks"):
        return f"model={cfg.model.name} trains all its members"
    return None


def request(cfg: DictConfig) -> Request:
    """What the configuration says of an evaluation, besides its settings."""
    noise_seed = cfg.evaluation.seed
    return Request(
        model=cfg.model.name,
        seed=cfg.seed,
        accelerator=cfg.trainer.accelerator,
        workers=cfg.evaluation.workers,
        method=cfg.evaluation.method,
        stop_at_se=cfg.evaluation.stop_at_se,
        annealed=make_plan(cfg.evaluation.annealed, cfg.seed if noise_seed is None else noise_seed),
        annealed_examples=cfg.evaluation.annealed.num_examples,
        precision=cfg.evaluation.precision,
        num_pictures=cfg.evaluation.num_pictures,
        size=cfg.ensemble.size,
        progress=cfg.trainer.enable_progress_bar,
        recipe=OmegaConf.to_yaml(cfg, resolve=True),
        sandwich=cfg.sandwich,
    )


def fit(
    target: TrainableTarget,
    members: Sequence[TrainableMember],
    data: Data | Tensor | None = None,
    plan: TrainingPlan | None = None,
    *,
    folder: str | Path | None = None,
    loggers: "Sequence[Logger]" = (),
) -> Ensemble:
    """Train an ensemble from a program: q_1 with the target's parameters, then q_2..q_S against the frozen target.

    Args:
        target: of one of the families: images (latents and a decoder), a density, trees.
        members: q_1..q_S; they are trained in place.
        data: data module of the family, or images [N, C, H, W] in [0, 1] as a tensor; None for a density.
        plan: epochs, objective, seed; default :class:`TrainingPlan`'s own.
        folder: run folder, in which a killed training goes on; None keeps nothing.
        loggers: Lightning loggers of every member's curves.

    Returns:
        The ensemble in evaluation mode.

    Raises:
        InputError: target, members and data do not go together, or the folder holds something else.
        TrainingDivergedError: too many non-finite steps in a row.

    Example:
        >>> import torch
        >>> from miselbo.data import ImageSpec
        >>> from miselbo.models.vae import Decoder, Encoder
        >>> decoder = Decoder(ImageSpec(1, 8, 8, "bernoulli"), num_latents=2, num_channels=4)
        >>> encoders = [Encoder(decoder, num_channels=4) for _ in range(2)]
        >>> ensemble = fit(decoder, encoders, torch.rand(40, 1, 8, 8), TrainingPlan(epochs=1))
        >>> len(ensemble.members)
        2
    """
    plan = TrainingPlan() if plan is None else plan
    if not members:
        raise InputError("an ensemble needs at least one member, got none")
    family, data = family_of(target, data)
    keep = contextlib.nullcontext(folder) if folder else tempfile.TemporaryDirectory(prefix="miselbo-")
    with keep as place:
        Path(place, "members").mkdir(parents=True, exist_ok=True)
        return family(target, members, data, plan, Path(place), lambda _: list(loggers))


def family_of(
    target: object, data: Data | Tensor | None
) -> tuple[Callable[..., Ensemble], Data | Tensor | None]:
    """What trains members of this target, with its data."""
    from miselbo.models.classical import DensityTarget
    from miselbo.phylo.vbpi import Posterior

    if isinstance(target, Posterior):
        from miselbo.phylo.training import fit_members as fit_trees

        return fit_trees, data
    if isinstance(target, DensityTarget):
        from miselbo.training.vectorised import fit_together

        return fit_together, data
    if not hasattr(target, "latent_shapes") or not hasattr(target, "draw"):
        raise InputError(
            f"fit trains a target with latents (draw, latent_shapes), a density or trees, got {type(target).__name__}; "
            "for any other model write the loop yourself: docs/library.md has one of five lines"
        )
    from miselbo.training.fit import fit_members
    from miselbo.training.library import as_data

    if data is None:
        raise InputError("data=None is for a density: images come as a data module or a tensor [N, C, H, W]")
    return fit_members, as_data(data, target)


def evaluate_run(
    cfg: DictConfig, folder: Path, data: Data, target: TrainableTarget, members: list[TrainableMember]
) -> Summary:
    """Evaluate the members a run folder holds."""
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    member_jobs.check_all(folder, cfg.ensemble.size)
    with using(folder, "evaluate"):
        ensemble = checkpoints.load_ensemble(folder, target, members)
        return evaluate_members(cfg, data, ensemble, settings, folder)


def evaluate_members(
    cfg: DictConfig, data: Data, ensemble: Ensemble, settings: Settings, folder: Path
) -> Summary:
    """Evaluation and report; if members come from jobs of their own, their curves go to the run's dashboard first."""
    size = cfg.ensemble.size
    if not curves.waiting(folder, size):
        return conclude(cfg, evaluate(request(cfg), data, ensemble, settings, folder), folder)
    from miselbo.runs.loggers import Loggers  # Lightning takes seconds to import: not for an evaluation

    with Loggers(plain(cfg), folder) as loggers:
        curves.collect(folder, size, loggers.of_member)
        summary = evaluate(request(cfg), data, ensemble, settings, folder)
        conclude(cfg, summary, folder)
        loggers.finish(summary)
    return summary


def evaluate_checkpoints(cfg: DictConfig, folder: Path) -> Summary:
    """Tables and report for official NVAE / MISELBO checkpoints."""
    from miselbo.importers.nvlabs.reading import check_path

    cfg.checkpoints = [str(check_path(path)) for path in checks.checkpoint_paths(plain(cfg)["checkpoints"])]
    cfg.ensemble.size = len(cfg.checkpoints)
    data = data_of(cfg)
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    ensemble = restore(source_of(cfg), data)
    check_folder(cfg, folder)
    claim_folder(cfg, folder)
    about = about_official(list(map(Path, cfg.checkpoints)), cfg.target, ensemble)
    with using(folder, "evaluate"):
        return conclude(cfg, evaluate(request(cfg), data, ensemble, settings, folder, about), folder)


def export(cfg: DictConfig, folder: Path) -> Mapping[str, object]:
    """Write the members of a run as official NVAE checkpoints: ``<run_dir>/nvlabs/q1/checkpoint.pt`` ..."""
    from miselbo.importers.nvlabs import export_checkpoints

    data = build(cfg.dataset)
    data.setup()
    ensemble = restore(source_of(cfg), data)
    paths = export_checkpoints(
        ensemble,
        folder / "nvlabs",
        dataset=cfg.dataset.name,
        seed=cfg.seed,
        batch_size=cfg.dataset.batch_size,
    )
    print("\n".join(map(str, paths)))
    return {"checkpoints": [str(path) for path in paths]}


def evaluate_import(cfg: DictConfig, folder: Path) -> Summary:
    """Tables and report for scores made elsewhere."""
    from miselbo.importers.arrays import WORDS, ArraySource

    if cfg.evaluation.method != "full":
        raise InputError(
            f"importer=arrays has all scores already: evaluation.method={cfg.evaluation.method} would leave some out; "
            "use evaluation.method=full"
        )
    batch_size, limit = cfg.evaluation.batch_size, cfg.evaluation.num_examples
    source = ArraySource(cfg.scores, batch_size=batch_size, num_examples=limit)
    cfg.evaluation.num_samples = source.num_samples  # all of them; evaluation.grid picks what is reported
    settings = make_settings(cfg.evaluation, cfg.seed)
    check_folder(cfg, folder)
    claim_folder(cfg, folder)
    shards = folder / "results" / "shards"
    with using(folder, "evaluate"):
        values = score_all(source, settings, shards, source.fingerprint, cfg.trainer.enable_progress_bar)
        forget_other_shards(shards, [shard_key(settings, source.fingerprint, source.num_members)])
        protocol = {**source.protocol(), "seed": cfg.seed, "fingerprint": source.fingerprint}
        summary = write_results(values, settings, folder, protocol, [], None, WORDS)
        card.write(folder, summary)
        return conclude(cfg, summary, folder)


def cost(
    cfg: DictConfig, folder: Path, data: Data, target: TrainableTarget, members: list[TrainableMember]
) -> Mapping[str, object]:
    """Forecast passes, bytes and minutes; runs nothing else."""
    if cfg.model.get("cost") is None:
        raise InputError(f"task=cost: model={cfg.model.name} has no forecast (its yaml has no node 'cost')")
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    make = build(cfg.model.cost)
    found = make(training_plan(cfg), data, target, members, settings, cfg.evaluation.workers)
    if cfg.evaluation.method == "multilevel":
        total = len(data.split(settings.split))
        count = min(total, settings.num_examples or total)
        found["multilevel"] = multilevel.forecast(settings, count, len(members))
        print(found["multilevel"])
    return found


def optimized(cfg: DictConfig) -> float:
    """The bound of a finished run that a tuning sweeper maximises: of the validation split, where the data have one.

    It is kept in ``results/validation.json``, so that a finished job of a sweep is not scored again.
    """
    data = data_of(cfg)
    folder = Path(cfg.run_dir)
    summary = read_summary(folder / "results" / "summary.json")
    if "validation" not in data.splits or cfg.evaluation.split == "validation":
        return float(summary["headline"][cfg.optimized_metric])
    settings = replace(
        make_settings(cfg.evaluation, cfg.seed, data.pass_dims), split="validation", save_scores=False
    )
    path = folder / "results" / "validation.json"
    of = shard_key(settings, summary["protocol"]["fingerprint"], cfg.ensemble.size)
    kept = read_json(path) if path.is_file() else {}
    if not isinstance(kept, dict) or kept.get("of") != of:
        ensemble = restore(source_of(cfg), data)
        device = machine.device(cfg.trainer.accelerator)
        kept = {"of": of, **headline_of(ensemble, data, settings, device, cfg.trainer.enable_progress_bar)}
        write_json(path, kept)
    return float(kept[cfg.optimized_metric])


def sample(
    cfg: DictConfig, folder: Path, data: Data, target: TrainableTarget, members: list[TrainableMember]
) -> Mapping[str, object]:
    """Draw examples from the target of a run folder, or what the data module draws from its members."""
    options = sampling.Sampling(**plain(cfg.sampling))
    with using(folder, "sample"):
        if hasattr(data, "draw_samples"):
            sampling.check(options)
            ensemble = checkpoints.load_ensemble(folder, target, members)
            seed = cfg.seed if options.seed is None else options.seed
            return data.draw_samples(ensemble, options.num, options.weighted, seed, folder / "samples")
        return sampling.sample(target, folder, options, cfg.seed, machine.device(cfg.trainer.accelerator))


def log(cfg: DictConfig, folder: Path) -> Summary:
    """Send the curves and the result of a finished run to dashboards: ``metrics.csv`` is the truth they are made of.

    Raises:
        InputError: no dashboard is named, or the run has no result.
    """
    from miselbo.runs.loggers import Loggers, logger_nodes

    if not logger_nodes(plain(cfg.logger)):
        raise InputError("task=log sends a finished run to dashboards: name some, as in logger=wandb")
    path = folder / "results" / "summary.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: run task=evaluate run_dir={folder} first")
    summary = read_summary(path)
    with Loggers(plain(cfg), folder) as loggers:
        loggers.replay()
        loggers.finish(summary)
    print(
        f"sent to {', '.join((*loggers.per_run, *loggers.per_member))}: the curves and the result of {folder}"
    )
    return summary


def sandwich_run(
    cfg: DictConfig, folder: Path, data: Data, target: TrainableTarget, members: list[TrainableMember]
) -> Summary:
    """Bound a finished run from both sides, on data simulated from its model."""
    member_jobs.check_all(folder, cfg.ensemble.size)
    ensemble = checkpoints.load_ensemble(folder, target, members)
    summary = Result.read(folder).summary
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    device = machine.device(cfg.trainer.accelerator)
    with using(folder, "sandwich"):
        return conclude(cfg, sandwich.add(ensemble, settings, summary, folder, device), folder)


def check_run(cfg: DictConfig, folder: Path) -> Mapping[str, object]:
    """Hold a result's card against its data, model, tables and new scores of some examples."""
    if cfg.importer == "arrays":
        raise InputError(
            f"task=check scores examples again, and {folder} holds scores made elsewhere, no model"
        )
    data = data_of(cfg)
    settings = make_settings(cfg.evaluation, cfg.seed, data.pass_dims)
    with using(folder, "check"):
        ensemble = restore(source_of(cfg), data)
        about = {"model": cfg.model.name, "seed": cfg.seed, **separate(ensemble)}
        if cfg.importer == "nvlabs":
            about["model"] = about_official(list(map(Path, cfg.checkpoints)), cfg.target, ensemble)["model"]
        found = check.check(folder, ensemble, data, settings, about, machine.device(cfg.trainer.accelerator))
    print(found["verdict"])
    return found


def conclude(cfg: DictConfig, summary: Summary, folder: Path) -> Summary:
    """Report and headline of a finished evaluation; the headline alone with ``report=false``."""
    if cfg.report:
        return report(folder)
    print(headline_text(summary))
    return summary


def report(folder: Path) -> Summary:
    """Rebuild figures and report from the files of the run folder; print the headline."""
    from miselbo import report as reporting  # matplotlib is slow to import

    page = reporting.write(folder)
    summary = read_summary(folder / "results" / "summary.json")
    print(headline_text(summary))
    print(f"\nreport: {page}")
    return summary


# tasks on built data, target and members; report and export come before them
TASKS = {
    "run": run_all,
    "fit_member": fit_member,
    "evaluate": evaluate_run,
    "sample": sample,
    "cost": cost,
    "sandwich": sandwich_run,
}
IMPORTERS = {"arrays": evaluate_import, "nvlabs": evaluate_checkpoints}
