"""What a VBPI run will cost, ``task=cost``: likelihood evaluations, bytes, and minutes at measured speed."""

import copy
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch

from miselbo.ensemble import Ensemble
from miselbo.evaluation.cost import MEASURE, evaluation_seconds, shard_bytes
from miselbo.evaluation.scoring import NetworkSource
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.shards import scores_bytes
from miselbo.evaluation.workers import number_of_processes
from miselbo.noise import derive
from miselbo.phylo.comparison import DRAWS
from miselbo.phylo.data import AlignmentData
from miselbo.phylo.member import MONITOR, Training
from miselbo.phylo.objective import Objective
from miselbo.phylo.output.draws import SAMPLES
from miselbo.phylo.vbpi import Posterior, Vbpi
from miselbo.runs.plan import TrainingPlan
from miselbo.runtime.counters import parameter_bytes, size_text


class TrainingCost(TypedDict):
    """Of one member's training."""

    iterations: int
    rounds: int
    likelihoods: int
    milliseconds_per_iteration: float
    minutes: float


class EvaluationCost(TypedDict):
    """Of the evaluation with its tree summaries."""

    replicates: int
    S: int
    L: int
    likelihoods: int
    processes: int
    minutes: float


class Cost(TypedDict):
    """Of both."""

    training: TrainingCost
    evaluation: EvaluationCost
    bytes: dict[str, int]
    minutes: float


def predict(
    plan: TrainingPlan,
    data: AlignmentData,
    target: Posterior,
    members: Sequence[Vbpi],
    settings: Settings,
    workers: int | str = 1,
    seconds: float = MEASURE,
) -> Cost:
    """Cost of training and evaluating an ensemble, from a few measured iterations of copies of its modules.

    Args:
        plan: of the training.
        data: alignment.
        target: the posterior.
        members: S of them; stay as they are.
        settings: of the evaluation.
        workers: processes of the evaluation.
        seconds: of measuring, at least, for the training and for the evaluation.

    Returns:
        Plain JSON types: ``training`` of each member, ``evaluation`` of all with its tree summaries; each with
        ``likelihoods`` (those of training with their gradient) and ``minutes``; and ``bytes``.
    """
    objective, epochs, size = Objective(**plan.objective), plan.epochs, len(members)
    training = Training(target, copy.deepcopy(members[0]), objective, epochs, derive(plan.seed, 1))
    iteration, monitor = (per_call(work, seconds) for work in (training.iteration, training.monitor))
    steps = epochs * objective.steps_per_epoch
    processes = number_of_processes(workers, "cpu")
    source = NetworkSource(Ensemble(target, list(members)), data, settings, "cpu")
    timed = evaluation_seconds(source, settings, processes, seconds)
    draws = source.num_data * size * settings.num_samples
    summaries = timed["seconds_per_sample"] * (SAMPLES + DRAWS) / min(settings.batch_size, source.num_data)
    weights = parameter_bytes(members[0])
    pass_draws = min(settings.samples_per_pass, settings.num_samples) * min(
        settings.batch_size, source.num_data
    )
    train: TrainingCost = {
        "iterations": steps,
        "rounds": len(objective.ends(steps)),
        "likelihoods": steps * objective.num_particles + epochs * MONITOR,
        "milliseconds_per_iteration": 1000 * iteration,
        "minutes": (steps * iteration + epochs * monitor) / 60,
    }
    evaluate: EvaluationCost = {
        "replicates": source.num_data,
        "S": size,
        "L": settings.num_samples,
        "likelihoods": draws + size * (SAMPLES + DRAWS),
        "processes": processes,
        "minutes": timed["minutes"] + summaries / 60,
    }
    held = {
        "target": parameter_bytes(target),
        "member": weights,
        "resume_point": 3 * weights,  # Adam keeps two numbers per parameter
        "activations": timed["activations"] + pass_draws * tree_bytes(target, members[0]),
        "result_shards": shard_bytes(size, settings) * source.num_data,
        "saved_scores": scores_bytes(source, settings) if settings.save_scores else 0,
    }
    minutes = size * train["minutes"] + evaluate["minutes"]
    return {"training": train, "evaluation": evaluate, "bytes": held, "minutes": minutes}


def tree_bytes(target: Posterior, member: Vbpi) -> int:
    """Bytes of one indexed tree, which the counter of tensors does not see."""
    trees = member.sbn.sample(torch.full((1, target.num_taxa - 1), 0.5, dtype=torch.float64))
    return sum(array.nbytes for array in (trees.nodes, trees.splits, trees.psps, trees.pairs))


def per_call(work: Callable[[], object], seconds: float) -> float:
    """Median seconds of a call, the first left out (it compiles)."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def forecast(
    plan: TrainingPlan,
    data: AlignmentData,
    target: Posterior,
    members: Sequence[Vbpi],
    settings: Settings,
    workers: int | str = 1,
    seconds: float = MEASURE,
) -> Cost:
    """:func:`predict`, printed; the ``cost`` of ``conf/model/vbpi.yaml``."""
    result = predict(plan, data, target, members, settings, workers, seconds)
    print(cost_text(result))
    return result


def cost_text(result: Cost) -> str:
    """A forecast as a table with units."""
    training, evaluation, has = result["training"], result["evaluation"], result["bytes"]
    size = evaluation["S"]
    rows = [("train q1" if size == 1 else "train one member", training["likelihoods"], training["minutes"])]
    if size > 1:
        rows.append((f"train all {size}", size * training["likelihoods"], size * training["minutes"]))
    rows.append(("evaluate", evaluation["likelihoods"], evaluation["minutes"]))
    return "\n".join(
        [
            "",
            "forecast at the speed measured now on the cpu; members one after another in one process",
            "",
            f"{'':<18}{'likelihoods':>16}{'minutes':>12}",
            *(f"{name:<18}{likelihoods:>16,}{minutes:>12,.2f}" for name, likelihoods, minutes in rows),
            f"{'total':<18}{'':>16}{result['minutes']:>12,.2f}",
            "",
            f"training: {training['iterations']:,} iterations of {training['milliseconds_per_iteration']:.2f} ms; "
            "its likelihoods are with gradient"
            + (
                f"; at most: it may stop after any of {training['rounds']} rounds"
                if training["rounds"] > 1
                else ""
            ),
            f"evaluation: {evaluation['replicates']:,} replicates x S = {size} x L = {evaluation['L']:,}, and "
            f"{SAMPLES + DRAWS:,} draws of each member for the tree summaries; {evaluation['processes']} process(es)",
            f"memory: target {size_text(has['target'])}, a member {size_text(has['member'])} "
            f"({size_text(has['resume_point'])} with the optimiser, as its resume point); about "
            f"{size_text(has['activations'])} beside them in evaluation",
            f"disk: result shards {size_text(has['result_shards'])}, saved scores {size_text(has['saved_scores'])}",
        ]
    )
