"""What training and evaluation will cost: passes, operations, bytes, and minutes at measured speed.

Seconds are straight lines a + c n through medians of the real work at two sizes n: a batch's samples in the
evaluation, a batch's examples in training. Counts (operations, bytes) come from running the plain modules once under
torch's counters; one multiply-add is two operations.
"""

import copy
import time
from collections.abc import Sequence
from itertools import count
from types import SimpleNamespace
from typing import TypedDict

import torch
from torch import Tensor

from miselbo.data.interface import TrainingData
from miselbo.ensemble import Ensemble
from miselbo.evaluation.cost import MEASURE, EvaluationCost, _count, _through, evaluation_cost
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.workers import number_of_processes
from miselbo.models.hierarchical import HierarchicalDecoder, HierarchicalEncoder
from miselbo.runs.plan import TrainingPlan
from miselbo.runtime import machine
from miselbo.runtime.counters import line, parameter_bytes, size_text
from miselbo.training.member import MemberTraining, Objective

STEP_SECONDS = 3.0  # the same for a training step


class MemberCost(TypedDict):
    """Of one member's training."""

    member: int
    epochs: int
    steps: int
    decoder_passes: int
    gflop: float
    seconds_per_step: float
    minutes: float


class TrainingCost(TypedDict):
    """Of all members' training."""

    members: list[MemberCost]
    batch_size: int
    bytes: dict[str, int]
    decoder_passes: int
    gflop: float
    minutes: float


class Cost(TypedDict):
    """Of training and evaluation."""

    device: str
    training: TrainingCost
    evaluation: EvaluationCost
    minutes: float


def predict(
    plan: TrainingPlan,
    data: TrainingData,
    target: HierarchicalDecoder,
    members: Sequence[HierarchicalEncoder],
    settings: Settings,
    workers: int | str = 1,
    seconds: float = MEASURE,
) -> Cost:
    """Cost of training and evaluating an ensemble, from a few measured passes of copies of its modules.

    Args:
        plan: of the training.
        data: data module.
        target: built; its weights may be random.
        members: S of them.
        settings: of the evaluation.
        workers: processes of the evaluation.
        seconds: of measuring, at least, for the evaluation and for each kind of training.

    Returns:
        Plain JSON types: ``evaluation`` as from :func:`evaluation_cost`, ``training`` as from :func:`training_cost`,
        and ``minutes`` of both together.
    """
    device = machine.device(plan.trainer["accelerator"])
    processes = number_of_processes(workers, device)
    epochs = [plan.epochs_of(s) for s in range(1, len(members) + 1)]
    with torch.random.fork_rng(devices=[]):  # new modules and loaders draw from the global generator
        training = training_cost(target, members, data, Objective(**plan.objective), epochs, device, seconds)
        evaluation = evaluation_cost(Ensemble(target, members), data, settings, device, processes, seconds)
    return {
        "device": device,
        "training": training,
        "evaluation": evaluation,
        "minutes": training["minutes"] + evaluation["minutes"],
    }


def forecast(
    plan: TrainingPlan,
    data: TrainingData,
    target: HierarchicalDecoder,
    members: Sequence[HierarchicalEncoder],
    settings: Settings,
    workers: int | str = 1,
    seconds: float = MEASURE,
) -> Cost:
    """:func:`predict`, printed; the ``cost`` of a model whose members :mod:`miselbo.training.fit` trains."""
    result = predict(plan, data, target, members, settings, workers, seconds)
    print(cost_text(result))
    return result


def training_cost(
    target: HierarchicalDecoder,
    members: Sequence[HierarchicalEncoder],
    data: TrainingData,
    objective: Objective,
    epochs: Sequence[int],
    device: str = "cpu",
    seconds: float = MEASURE,
) -> TrainingCost:
    """Cost of fitting p and q_1, then the other members with p frozen, in one process, without validation.

    Args:
        target: stays as it is.
        members: S of them; stay as they are. Only the first two are run: the later ones cost as much as the second.
        data: data module.
        objective: hyper-parameters.
        epochs: [S] of each member.
        device: where it will run.
        seconds: of measuring each kind, at least.
    """
    steps, examples = len(data.train_dataloader()), len(data.split("train"))
    kinds = [
        _step_cost(target, members[:s], data, objective, epochs[s - 1], device, seconds)
        for s in range(1, min(len(members), 2) + 1)
    ]
    rows: list[MemberCost] = []
    for s, number in enumerate(epochs, 1):
        kind = kinds[min(s, len(kinds)) - 1]
        rows.append(
            {
                "member": s,
                "epochs": number,
                "steps": number * steps,
                "decoder_passes": number * examples * objective.num_samples,
                "gflop": number * (steps * kind["gflop"][0] + examples * kind["gflop"][1]),
                "seconds_per_step": kind["seconds"][0] + kind["seconds"][1] * examples / steps,
                "minutes": number * (steps * kind["seconds"][0] + examples * kind["seconds"][1]) / 60,
            }
        )
    return {
        "members": rows,
        "batch_size": data.batch_size,
        "bytes": {
            "parameters": parameter_bytes(target) + sum(parameter_bytes(member) for member in members),
            "working": round(max(kind["bytes"][0] + kind["bytes"][1] * data.batch_size for kind in kinds)),
        },
        "decoder_passes": sum(row["decoder_passes"] for row in rows),
        "gflop": sum(row["gflop"] for row in rows),
        "minutes": sum(row["minutes"] for row in rows),
    }


def _step_cost(
    target: HierarchicalDecoder,
    members: Sequence[HierarchicalEncoder],
    data: TrainingData,
    objective: Objective,
    epochs: int,
    device: str,
    seconds: float,
) -> dict[str, tuple[float, float]]:
    """``seconds``, ``gflop`` and peak ``bytes`` of a training step of the last member: a and c of a + c * examples."""
    target, members = copy.deepcopy((target, list(members)))
    module = MemberTraining(target, members, objective, seed=0).to(device)
    module.log_dict = lambda *_, **__: None  # type: ignore[method-assign]
    loader = data.train_dataloader()
    trainer = SimpleNamespace(
        global_step=0, max_epochs=epochs, estimated_stepping_batches=epochs * len(loader)
    )
    module._trainer = trainer  # type: ignore[assignment]
    module.on_fit_start()
    optimizer, schedule = module.optimiser()
    full = min(data.batch_size, len(data.split("train")))
    stream = (batch for _ in count() for batch in loader if len(batch["index"]) >= full)

    def step(examples: int) -> float:
        start = time.perf_counter()
        batch = {name: values[:examples].to(device) for name, values in next(stream).items()}
        loss = module.training_step(batch, 0)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        module.on_before_optimizer_step(optimizer)  # waits for the device
        optimizer.step()
        schedule.step()
        trainer.global_step += 1
        return time.perf_counter() - start

    step(min(2, full))  # warm-up: optimiser state, kernels
    small, probe = min(2, full), min(8, full)
    base = step(small)
    slope = max((step(probe) - base) / max(probe - small, 1), 1e-6)
    large = min(full, max(probe, small + int((STEP_SECONDS - base) / slope)))
    states = [value for state in optimizer.state.values() for value in state.values()]
    held = sum(value.nbytes for value in states if isinstance(value, Tensor))
    counts = [_count(step, examples) for examples in ((2, 4) if full > 3 else (full,))]
    return {
        "seconds": line(step, max(small, large // 4), large, seconds),
        "gflop": _through([gflop for gflop, _ in counts], full),
        "bytes": _through([held + peak for _, peak in counts], full),
    }


def cost_text(result: Cost) -> str:
    """A forecast as a table with units."""
    training, evaluation = result["training"], result["evaluation"]
    lines = [
        "",
        f"forecast at the speed measured now on {result['device']}; training in one process, without validation",
        "",
        f"{'':<16}{'decoder passes':>16}{'GFLOP':>18}{'minutes':>14}",
    ]
    for row in training["members"]:
        name = "train p and q1" if row["member"] == 1 else f"train q{row['member']}"
        lines.append(_row(name, row))
    lines += [_row("train, in all", training), _row("evaluate", evaluation)]
    fit, score = training["bytes"], evaluation["bytes"]
    lines += [
        f"{'total':<16}{'':>16}{'':>18}{result['minutes']:>14,.2f}",
        "",
        f"evaluation: {evaluation['num_data']:,} examples x S = {evaluation['S']} x L = {evaluation['L']:,}; "
        f"{evaluation['gflop_per_pass']:.4g} GFLOP per pass; {evaluation['processes']} process(es)",
        f"memory: parameters {size_text(fit['parameters'])}; beside them about {size_text(fit['working'])} in training "
        f"and {size_text(score['activations'])} in evaluation",
        f"disk: result shards {size_text(score['result_shards'])}, saved scores {size_text(score['saved_scores'])}",
    ]
    return "\n".join(lines)


def _row(name: str, row: MemberCost | TrainingCost | EvaluationCost) -> str:
    return f"{name:<16}{row['decoder_passes']:>16,}{row['gflop']:>18,.1f}{row['minutes']:>14,.2f}"
