"""What training and evaluation will cost: passes, operations, bytes, and minutes at measured speed.

Seconds are straight lines a + c n through medians of the real work at two sizes n: a batch's samples in the
evaluation, a batch's examples in training. Counts (operations, bytes) come from running the plain modules once under
torch's counters; one multiply-add is two operations.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from miselbo.ensemble import Ensemble
from miselbo.evaluation.scoring import NetworkSource, score_batch, scores_bytes
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.workers import number_of_processes
from miselbo.protocols import evaluating
from miselbo.runtime.counters import Peak, count_gflop, line, parameter_bytes, size_text
from miselbo.training.member import MemberTraining, Objective

MEASURE = 2.0  # seconds of measuring at least, for each line
PASS_SECONDS = 0.5  # what a measured pass may take: more, and it is measured on some of a batch's examples
STEP_SECONDS = 3.0  # the same for a training step


def predict(
    cfg: DictConfig,
    data: Any,
    target: Any,
    members: Sequence[Any],
    settings: Settings,
    seconds: float = MEASURE,
) -> dict[str, Any]:
    """Cost of training and evaluating an ensemble, from a few measured passes of copies of its modules.

    Args:
        cfg: whole resolved configuration: gives epochs, objective, device and evaluation processes.
        data: data module.
        target: built; its weights may be random.
        members: S of them.
        settings: of the evaluation.
        seconds: of measuring, at least, for the evaluation and for each kind of training.

    Returns:
        Plain JSON types: ``evaluation`` as from :func:`evaluation_cost`, ``training`` as from :func:`training_cost`,
        and ``minutes`` of both together.
    """
    gpu = torch.cuda.is_available() and cfg.trainer.accelerator in ("auto", "gpu", "cuda")
    device = "cuda" if gpu else "cpu"
    processes = number_of_processes(cfg.evaluation.workers, device)
    content: Any = OmegaConf.to_container(cfg.model.objective, resolve=True)
    epochs = [cfg.trainer.max_epochs]
    if len(members) > 1:  # as miselbo.training.fit does
        later = max(1, round(cfg.model.member_epoch_share * cfg.trainer.max_epochs))
        epochs += [later] * (len(members) - 1)
    with torch.random.fork_rng(devices=[]):  # new modules and loaders draw from the global generator
        training = training_cost(target, members, data, Objective(**content), epochs, device, seconds)
        evaluation = evaluation_cost(Ensemble(target, members), data, settings, device, processes, seconds)
    return {
        "device": device,
        "training": training,
        "evaluation": evaluation,
        "minutes": training["minutes"] + evaluation["minutes"],
    }


def forecast(*arguments: Any) -> dict[str, Any]:
    """:func:`predict`, printed; the ``cost`` of a model whose members :mod:`miselbo.training.fit` trains."""
    result = predict(*arguments)
    print(cost_text(result))
    return result


def evaluation_cost(
    ensemble: Ensemble,
    data: Any,
    settings: Settings,
    device: str = "cpu",
    processes: int = 1,
    seconds: float = MEASURE,
) -> dict[str, Any]:
    """Cost of one evaluation at ``settings.num_samples`` (an upper bound with ``evaluation.stop_at_se``).

    The decoder runs num_data * S * L times; per run S posterior heads are scored; x is encoded once per member.

    Args:
        ensemble: stays as it is.
        data: data module.
        settings: of the evaluation.
        device: where it will run.
        processes: that share the batches.
        seconds: of measuring, at least.
    """
    ensemble = copy.deepcopy(ensemble).requires_grad_(False)
    source = NetworkSource(ensemble, data, settings, device)
    index, batch = next(iter(source.batches()))
    batches = math.ceil(source.num_data / settings.batch_size)
    size, num_samples = source.num_members, settings.num_samples
    gflop = evaluation_gflop(ensemble, batch[:1].to(device, source.dtype))
    passes = source.num_data * size * num_samples
    total = gflop["encoder"] * source.num_data * size + gflop["pass"] * passes

    timed = evaluation_seconds(source, settings, processes, seconds)
    return {
        "num_data": source.num_data,
        "S": size,
        "L": num_samples,
        "batches": batches,
        "decoder_passes": passes,
        "gflop_per_pass": gflop["pass"],
        "gflop_by_part": gflop,
        "gflop": total,
        "bytes": {
            "parameters": parameter_bytes(ensemble),
            "activations": timed["activations"],
            "result_shards": shard_bytes(size, settings) * source.num_data,
            "saved_scores": scores_bytes(source, settings) if settings.save_scores else 0,
        },
        "seconds_per_batch": timed["seconds_per_batch"],
        "seconds_per_sample": timed["seconds_per_sample"],
        "processes": processes,
        "minutes": timed["minutes"],
    }


def evaluation_seconds(
    source: NetworkSource, settings: Settings, processes: int = 1, seconds: float = MEASURE
) -> dict[str, Any]:
    """Measured speed of one evaluation: ``minutes``, seconds of a batch and of each of its samples, peak bytes.

    Args:
        source: of the whole split; its settings change while it is measured.
        settings: of the evaluation.
        processes: that share the batches.
        seconds: of measuring, at least.
    """
    index, batch = next(iter(source.batches()))
    batches = math.ceil(source.num_data / settings.batch_size)
    num_samples = settings.num_samples

    def score(examples: int, samples: int) -> float:
        """Seconds of the real work on some examples with some samples."""
        points = min(len(settings.grid), samples)
        source.settings = replace(settings, num_samples=samples, grid=(*range(1, points), samples))
        start = time.perf_counter()
        score_batch(source, index[:examples], batch[:examples], source.settings)
        return time.perf_counter() - start

    step = min(settings.samples_per_pass, num_samples)
    score(1, 1)  # warm-up
    probe = min(8, len(index))
    one_pass = score(probe, step) / probe * len(index)
    examples = min(len(index), max(1, int(len(index) * PASS_SECONDS / one_pass)))
    one_pass *= examples / len(index)
    # where time allows a grid with as many points as the real one, so that their cost is in the intercept
    few = step * math.ceil(min(len(settings.grid), 1 + PASS_SECONDS / one_pass) / step)
    few = min(num_samples, few)
    many = min(num_samples, few + step * max(1, int(PASS_SECONDS / one_pass)))
    with Peak() as peak:
        score(examples, few)
    fixed, per_sample = line(lambda n: score(examples, n), few, many, seconds)
    scale = source.num_data / examples
    in_all = (batches if examples == len(index) else scale) * fixed + scale * num_samples * per_sample
    wall = in_all * math.ceil(batches / processes) / batches
    source.settings = settings
    return {
        "minutes": wall / 60,
        "seconds_per_batch": fixed * len(index) / examples,
        "seconds_per_sample": per_sample * len(index) / examples,
        "activations": round(peak.bytes * len(index) / examples),
    }


def shard_bytes(size: int, settings: Settings) -> int:
    """Bytes an example takes in the result shards of an evaluation of ``size`` members."""
    points = len(settings.grid)
    samples = min(settings.num_samples, max(points, 64))  # beyond it nothing stored grows with L
    scores = torch.zeros(1, size, samples), torch.zeros(1, size, samples, size)
    source: Any = SimpleNamespace(num_members=size, passes=lambda *_: iter([scores]))
    short = replace(settings, num_samples=samples, grid=(*range(1, points), samples))
    values = score_batch(source, torch.zeros(1, dtype=torch.int64), None, short)
    return sum(array.nbytes for name, array in values.items() if name != "seconds")  # of a whole batch


@torch.no_grad()
def evaluation_gflop(ensemble: Ensemble, x: Tensor) -> dict[str, float]:
    """10^9 operations on one example: ``encoder`` of a member, ``decoder``, ``head`` of a member, and the ``pass``.

    A pass is the decoder on one sample of one member and that sample's density under all S members.

    Args:
        ensemble: plain modules whose parameters require no gradients (the counter hooks those that do).
        x: [1, ...], one example.
    """
    member: Any = ensemble.members[0]
    index, first = torch.zeros(1, dtype=torch.int64, device=x.device), torch.zeros(1, dtype=torch.int64)
    with evaluating(ensemble):
        encoder, context = count_gflop(lambda: member.encode(x))
        drawn = ensemble.target.draw(x, member, context, ensemble.noise(x, first.to(x.device), 0, index, 0))
        decoder, draw = count_gflop(lambda: ensemble.target.at(x, [z.unsqueeze(0) for z in drawn.z]))
        head, _ = count_gflop(lambda: member.log_prob(context, draw))
    whole = decoder + len(ensemble.members) * head
    return {"encoder": encoder, "decoder": decoder, "head": head, "pass": whole}


def training_cost(
    target: Any,
    members: Sequence[Any],
    data: Any,
    objective: Objective,
    epochs: Sequence[int],
    device: str = "cpu",
    seconds: float = MEASURE,
) -> dict[str, Any]:
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
    rows = []
    for s, number in enumerate(epochs, 1):
        kind = kinds[min(s, len(kinds)) - 1]
        rows.append(
            {
                "member": s,
                "epochs": number,
                "steps": number * steps,
                "decoder_passes": number * examples,
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
    target: Any,
    members: Sequence[Any],
    data: Any,
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
    trainer: Any = SimpleNamespace(
        global_step=0, max_epochs=epochs, estimated_stepping_batches=epochs * len(loader)
    )
    module._trainer = trainer
    module.on_fit_start()
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
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


def _count(step: Callable[[int], float], examples: int) -> tuple[float, int]:
    gflop, _ = count_gflop(lambda: step(examples))
    with Peak() as peak:
        step(examples)
    return gflop, peak.bytes


def _through(counts: Sequence[float], full: int) -> tuple[float, float]:
    """Line through counts at 2 and 4 examples; one count is that of a full batch."""
    if len(counts) == 1:
        return 0.0, counts[0] / full
    slope = (counts[1] - counts[0]) / 2
    return counts[0] - 2 * slope, slope


def cost_text(result: dict[str, Any]) -> str:
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


def _row(name: str, row: dict[str, Any]) -> str:
    return f"{name:<16}{row['decoder_passes']:>16,}{row['gflop']:>18,.1f}{row['minutes']:>14,.2f}"
