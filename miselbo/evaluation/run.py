"""One evaluation from scoring to ``results/``."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from miselbo import bounds
from miselbo.bounds.diagnostics import standard_error
from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.evaluation import annealed_run, card, multilevel, multilevel_tables, precision, sandwich, tables
from miselbo.evaluation.annealed import Plan
from miselbo.evaluation.data_hash import hash_examples
from miselbo.evaluation.scoring import Fitting, NetworkSource, inference_form, refined
from miselbo.evaluation.settings import Settings, doublings
from miselbo.evaluation.shards import forget_other_shards, score_all, shard_key
from miselbo.evaluation.summary import About, number, write_results
from miselbo.evaluation.workers import number_of_processes, score_in_processes
from miselbo.models.refined import passes as refined_passes
from miselbo.protocols import fingerprint
from miselbo.report.summary import Summary
from miselbo.runs import checkpoints
from miselbo.runtime import machine
from miselbo.runtime.progress import Meter


def check_splits(data: Data) -> None:
    """Every split must hold an example."""
    for name in data.splits:
        if len(data.split(name)) == 0:
            raise InputError(f"the {name} split of {data.name} holds no example")


@dataclass(frozen=True)
class Request:
    """What an evaluation depends on besides the ensemble, the data and its :class:`Settings`.

    Args:
        model: name, for the protocol.
        seed: of the run.
        accelerator: ``trainer.accelerator``.
        workers: processes that share the examples, or "auto".
        method: one of :data:`miselbo.evaluation.settings.METHODS`.
        stop_at_se: nats, or "auto"; see ``conf/config.yaml``.
        annealed: how examples are annealed, with method "annealed".
        annealed_examples: the first so many; None for all.
        precision: nats that every example's log p(x) shall be known to; None leaves it out.
        num_pictures: examples shown in the report.
        size: S.
        progress: show it.
        recipe: the run's configuration as YAML, for processes that share the work.
        sandwich: also bound from above, on data simulated from the model.
    """

    model: str
    seed: int
    accelerator: str
    workers: int | str
    method: str
    stop_at_se: float | str | None
    annealed: Plan
    annealed_examples: int | None
    precision: float | None
    num_pictures: int
    size: int
    progress: bool
    recipe: str
    sandwich: bool = False


def evaluate(
    request: Request,
    data: Data,
    ensemble: Ensemble,
    settings: Settings,
    folder: Path,
    about: Mapping[str, object] | None = None,
) -> Summary:
    """Score the split and write ``results/``; ``about``: lines of the protocol of an ensemble trained elsewhere."""
    if request.sandwich:
        sandwich.check(ensemble)
    device = machine.device(request.accelerator)
    processes = number_of_processes(request.workers, device)
    stamp, frozen = fingerprint(ensemble), ensemble
    ensemble = refined(ensemble, settings)
    data_stamp = f"{stamp} {data.protocol(settings.split)}"
    shards, keys = folder / "results" / "shards", list[str]()
    target = ensemble.target
    protocol: dict[str, object] = {
        **data.protocol(settings.split),
        **(target.protocol() if hasattr(target, "protocol") else {}),
        "seed": request.seed,
        "model": request.model,
        "device": device,
        "fingerprint": stamp,
        "target_fingerprint": fingerprint(ensemble.target),
        **(about or {}),
    }

    def score(settings: Settings) -> dict[str, np.ndarray]:
        source = NetworkSource(ensemble, data, settings, device)
        share = None
        if processes > 1:
            share = partial(
                score_in_processes,
                request.recipe,
                request.progress,
                settings,
                device,
                processes,
                source.num_data,
            )
        keys.append(shard_key(settings, data_stamp, source.num_members))
        return score_all(source, settings, shards, data_stamp, request.progress, share)

    def finish(summary: Summary) -> Summary:
        """What stands beside the tables."""
        data.save_extras(frozen, settings, request.num_pictures, folder / "results")
        if request.precision is not None:
            source = NetworkSource(ensemble, data, settings, device)
            precision.add(summary, source, request.precision, settings, folder / "results", request.progress)
        if request.method == "annealed":
            plan, count = request.annealed, request.annealed_examples
            places = annealed_run.of_split(data, settings)
            annealed_run.add(
                summary, ensemble, places, settings, plan, count, folder, data_stamp, device, request.progress
            )
        return sandwich.add(ensemble, settings, summary, folder, device) if request.sandwich else summary

    goal = request.stop_at_se
    looks = 1 if goal is None else len(list(doublings(settings)))
    stages = [] if about else training_stages(folder, request.size)
    if request.method == "multilevel":
        of = About(protocol, stages, data.num_dims, data.words, data.sections, data.cautions)
        summary = by_levels(
            request, NetworkSource(ensemble, data, settings, device), settings, folder, data_stamp, of
        )
        return finish(summary)
    if request.method == "annealed":
        annealed_run.check(ensemble, annealed_run.of_split(data, settings))
    settings, values = until_precise(goal, settings, score, keys)
    forget_other_shards(shards, keys)
    values["data_hash"], protocol["data_sha256"] = hash_examples(data, settings.split, settings.num_examples)
    given = protocol.get("notes")
    notes = list(given) if isinstance(given, list) else []
    if goal is not None:
        notes = [stop_note(goal, settings.num_samples)]
    if settings.refine_steps:
        each = refined_passes(settings.refine_steps) * len(ensemble.members)
        total = each * len(values["index"]) * len(keys)
        protocol |= {"refine_steps": settings.refine_steps, "refine_passes": total}
        notes = [*notes, refine_note(settings.refine_steps, each)]
    if settings.dtype == "bfloat16" or settings.compile:
        change = change_against_float32(ensemble, data, settings, device)
        protocol |= {"compile": settings.compile, "change_against_float32": change}
        notes.append(change_note(change))
    if notes:
        protocol["notes"] = notes
    summary = write_results(
        values,
        settings,
        folder,
        protocol,
        stages,
        data.num_dims,
        data.words,
        data.sections,
        data.cautions,
        looks,
    )
    card.write(folder, summary)
    return finish(summary)


def by_levels(
    request: Request, source: NetworkSource, settings: Settings, folder: Path, data_stamp: str, of: About
) -> Summary:
    """Multilevel evaluation of a split into ``results/``."""
    key = multilevel.key(settings, data_stamp)
    pieces = folder / "results" / "shards" / key
    pieces.mkdir(parents=True, exist_ok=True)
    processes = number_of_processes(request.workers, source.device)

    def share(units: Sequence[int], place: Path, pilot: bool) -> None:
        score_in_processes(
            request.recipe, False, settings, source.device, processes, 0, place, (list(units), pilot)
        )

    found = multilevel.run(
        source,
        settings,
        request.stop_at_se or "auto",
        pieces,
        request.progress,
        share if processes > 1 else None,
    )
    forget_other_shards(pieces.parent, [key])
    protocol = {**of.protocol, "method": "multilevel", "notes": [multilevel.about(found)["sentence"]]}
    return multilevel_tables.write(found, settings, folder, replace(of, protocol=protocol))


def headline_of(
    ensemble: Ensemble, data: Data, settings: Settings, device: str, show: bool
) -> dict[str, float | None]:
    """The last row of the table of bounds of a split, from a pass of its own that keeps no file."""
    source = NetworkSource(ensemble, data, settings, device)
    fitting, meter, done, parts = (
        Fitting(source, settings, None),
        Meter("validate", source.num_data, show),
        0,
        [],
    )
    for index, batch in source.batches():
        parts.append(fitting.score(index, batch, slice(done, done + len(index))))
        done += len(index)
        meter.update(done)
    meter.close()
    values = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    table = tables.bounds_table(values, settings.grid, float(values["seconds"].sum()))
    return {key: number(value) for key, value in table.tail(1).to_dict("records")[0].items()}


def until_precise(
    goal: float | str | None,
    settings: Settings,
    score: Callable[[Settings], dict[str, np.ndarray]],
    keys: Sequence[str],
) -> tuple[Settings, dict[str, np.ndarray]]:
    """Score at L, or with a goal at L = 16, 32, ... until the headline's Monte Carlo error is at most the goal.

    The draws of a step are kept with its shards, so the next one scores those after them alone; its bounds are of all.

    Args:
        goal: nats.
        settings: with the largest L.
        score: per-example values at some settings.
        keys: names of the shards of all steps so far; ``score`` adds one.
    """
    if goal is None:
        return settings, score(settings)
    seconds: float | np.ndarray = 0.0
    for step in doublings(settings):
        more = step.num_samples < settings.num_samples
        step = replace(step, earlier=tuple(keys), keep_draws=more)  # noqa: PLW2901
        values = score(step)
        seconds = seconds + values["seconds"]
        error = tables.columns(values, "miselbo", (-1, -1))["miselbo_se_mc"]
        if isinstance(goal, str):
            wanted = float(standard_error(torch.from_numpy(values["miselbo"][:, -1, -1]))) / multilevel.AUTO
        else:
            wanted = goal
        print(
            f"L = {step.num_samples}: Monte Carlo standard error of MISELBO {error:.5f} nats (goal {wanted:.5g})"
        )
        if error <= wanted:
            break
    return step, {**values, "seconds": np.asarray(seconds)}


def stop_note(goal: float | str, used: int) -> str:
    """What ``evaluation.stop_at_se`` did."""
    return (
        f"L = {used} is where doublings from 16 ended (evaluation.stop_at_se = {goal}); each went on from the "
        "draws before it."
    )


def refine_note(steps: int, passes: int) -> str:
    """What ``evaluation.refine_steps`` did."""
    return (
        f"Every member's mean and scale took {steps} steps for each x (evaluation.refine_steps), {passes:,} decoder "
        "passes of an example with their gradient; the draws of the scores are others."
    )


def change_note(change: dict[str, float]) -> str:
    """Measured effect of a cheaper form of the network."""
    return (
        f"Against plain float32 this evaluation changes MISELBO by {change['mean']:+.5f} nats on average, at most "
        f"{change['largest']:.5f} (first {change['examples']} examples, L = {change['L']}, same noise)."
    )


def change_against_float32(
    ensemble: Ensemble, data: Data, settings: Settings, device: str
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


def training_stages(folder: Path, size: int) -> list[dict[str, object]]:
    """Seconds and decoder passes of each member's training."""
    rows = []
    for s in range(1, size + 1):
        content = checkpoints.read(checkpoints.member_path(folder, s), "member")
        name = content.get("stage") or ("train p and q1" if s == 1 else f"train q{s}")
        rows.append({"stage": name, **{key: content.get(key) for key in ("seconds", "decoder_passes")}})
    return rows
