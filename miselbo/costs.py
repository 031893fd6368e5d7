"""What training and evaluation will cost: passes, operations, bytes, and minutes at measured speed.

Seconds are straight lines a + c n through medians of the real work at two sizes n: a batch's samples in the
evaluation, a batch's examples in training. Counts (operations, bytes) come from running the plain modules once under
torch's counters; one multiply-add is two operations.
"""

import copy
import math
import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import cycle
from types import SimpleNamespace
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from miselbo.ensemble import Ensemble, evaluating
from miselbo.evaluation import NetworkSource, score_batch, scores_bytes
from miselbo.settings import Settings
from miselbo.training.module import MemberTraining, Objective
from miselbo.workers import number_of_processes

BUDGET = 8.0  # seconds one measured batch may take; larger ones are measured on some of their examples
MEASURE = 2.0  # seconds of measuring at least


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
    training = training_cost(target, members, data, Objective(**content), epochs, device, seconds)
    evaluation = evaluation_cost(Ensemble(target, members), data, settings, device, processes, seconds)
    return {
        "device": device,
        "training": training,
        "evaluation": evaluation,
        "minutes": training["minutes"] + evaluation["minutes"],
    }


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

    def score(examples: int, samples: int) -> tuple[float, dict[str, Any]]:
        """Seconds and values of the real work on some examples with some samples."""
        points = min(len(settings.grid), samples)
        source.settings = replace(settings, num_samples=samples, grid=(*range(1, points), samples))
        start = time.perf_counter()
        values = score_batch(source, index[:examples], batch[:examples], source.settings)
        return time.perf_counter() - start, values

    step = min(settings.samples_per_pass, num_samples)
    score(1, 1)  # warm-up
    probe = min(8, len(index))
    one_pass = score(probe, step)[0] / probe * len(index)
    examples = len(index) if one_pass < BUDGET / 4 else max(1, int(len(index) * BUDGET / 4 / one_pass))
    one_pass *= examples / len(index)
    # at least one pass and a grid with as many points as the real one, where there are so many samples
    few = min(num_samples, step * math.ceil(min(len(settings.grid), 1 + BUDGET / 4 / one_pass) / step))
    many = min(num_samples, few + step * max(1, int(seconds / 4 / one_pass)))
    with Peak() as peak:
        values = score(examples, few)[1]
    fixed, per_sample = line(lambda n: score(examples, n)[0], few, many, seconds)
    scale = source.num_data / examples
    whole = batches * fixed * min(1.0, len(index) / examples) if examples == len(index) else scale * fixed
    wall = (whole + scale * num_samples * per_sample) * math.ceil(batches / processes) / batches
    source.settings = settings
    row_bytes = sum(array.nbytes for array in values.values() if array.shape[:1] == (examples,)) / examples
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
            "activations": round(peak.bytes * len(index) / examples),
            "result_shards": round(row_bytes * source.num_data),
            "saved_scores": scores_bytes(source, settings) if settings.save_scores else 0,
        },
        "seconds_per_batch": fixed * len(index) / examples,
        "seconds_per_sample": per_sample * len(index) / examples,
        "processes": processes,
        "minutes": wall / 60,
    }


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
    """Cost of fitting p and q_1, then the other members with p frozen, in one process; validation is not in it.

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
    for s, count in enumerate(epochs, 1):
        kind = kinds[min(s, len(kinds)) - 1]
        rows.append(
            {
                "member": s,
                "epochs": count,
                "steps": count * steps,
                "decoder_passes": count * examples,
                "gflop": count * (steps * kind["gflop"][0] + examples * kind["gflop"][1]),
                "seconds_per_step": kind["seconds"][0] + kind["seconds"][1] * examples / steps,
                "minutes": count * (steps * kind["seconds"][0] + examples * kind["seconds"][1]) / 60,
            }
        )
    return {
        "members": rows,
        "batch_size": data.batch_size,
        "bytes": {
            "parameters": parameter_bytes(target) + sum(parameter_bytes(member) for member in members),
            "memory": round(max(kind["bytes"][0] + kind["bytes"][1] * data.batch_size for kind in kinds)),
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
    stream = cycle(loader)

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

    full = max(2, min(data.batch_size, len(data.split("train"))))
    small = min(8, full)
    step(2)  # warm-up: optimiser state, kernels
    per_example = step(small) / small
    large = max(2, min(full, int(BUDGET / 2 / per_example)))
    counts = [_count(step, examples) for examples in (2, 4)] if full > 3 else [_count(step, full)]
    return {
        "seconds": line(step, max(2, large // 2), large, seconds),
        "gflop": _through([gflop for gflop, _ in counts], full),
        "bytes": _through([peak + parameter_bytes(module) for _, peak in counts], full),
    }


def _count(step: Callable[[int], float], examples: int) -> tuple[float, float]:
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


def line(measure: Callable[[int], float], small: int, large: int, seconds: float) -> tuple[float, float]:
    """Intercept and slope of ``measure(n)`` seconds: medians at two n, measured in turn for so many seconds.

    Neither is negative; when both n are the same the intercept is 0.

    Example:
        >>> line(lambda n: 0.5 + 0.25 * n, small=2, large=4, seconds=1)
        (0.5, 0.25)
    """
    times: dict[int, list[float]] = {small: [], large: []}
    while sum(map(sum, times.values())) < seconds or len(times[large]) < 3:
        for n, values in times.items():
            values.append(measure(n))
        if sum(map(sum, times.values())) > 3 * BUDGET:
            break
    low, high = statistics.median(times[small]), statistics.median(times[large])
    if small == large:
        return 0.0, high / large
    slope = min(max((high - low) / (large - small), 0.0), high / large)
    return high - slope * large, slope


def count_gflop(work: Callable[[], Any]) -> tuple[float, Any]:
    """10^9 operations of matrix products and convolutions inside ``work()``, and what it returns.

    Example:
        >>> count_gflop(lambda: torch.ones(10, 20) @ torch.ones(20, 30))[0] == 2 * 10 * 20 * 30 / 1e9
        True
    """
    with FlopCounterMode(display=False) as counter:
        result = work()
    return counter.get_total_flops() / 1e9, result


def parameter_bytes(module: nn.Module) -> int:
    """Bytes of all parameters and buffers.

    Example:
        >>> parameter_bytes(nn.Linear(3, 2))
        32
    """
    tensors = {id(tensor): tensor for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.nbytes for tensor in tensors.values())


class Peak(TorchDispatchMode):
    """The largest number of bytes that tensors made inside the block hold at one time.

    Example:
        >>> with Peak() as peak:
        ...     for _ in range(5):
        ...         _ = torch.zeros(100) + 1
        >>> peak.bytes <= 3 * 400
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.bytes = self._now = 0
        self._alive: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.layout == torch.strided:
                self._see(tensor.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._alive:
            self._alive[key] = storage.nbytes()
            self._now += storage.nbytes()
            self.bytes = max(self.bytes, self._now)
            weakref.finalize(storage, self._forget, key)

    def _forget(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


def cost_text(result: dict[str, Any]) -> str:
    """A forecast as a table with units."""
    training, evaluation = result["training"], result["evaluation"]
    lines = [
        "",
        f"forecast for one {result['device'].upper()} process at the speed measured now",
        "",
        f"{'':<16}{'decoder passes':>16}{'GFLOP':>14}{'minutes':>10}",
    ]
    for row in training["members"]:
        name = "train p and q1" if row["member"] == 1 else f"train q{row['member']}"
        lines.append(_row(name, row))
    lines += [_row("train, in all", training), _row("evaluate", evaluation)]
    memory, disk = training["bytes"], evaluation["bytes"]
    lines += [
        f"{'total':<16}{'':>16}{'':>14}{result['minutes']:>10.2f}",
        "",
        f"evaluation: {evaluation['num_data']:,} examples x S = {evaluation['S']} x L = {evaluation['L']:,}; "
        f"{evaluation['gflop_per_pass']:.4g} GFLOP per pass; {evaluation['processes']} process(es)",
        f"parameters {size_text(memory['parameters'])}; memory: training about {size_text(memory['memory'])}, "
        f"evaluation about {size_text(disk['parameters'] + disk['activations'])}",
        f"on disk: result shards {size_text(disk['result_shards'])}, saved scores {size_text(disk['saved_scores'])}",
    ]
    return "\n".join(lines)


def _row(name: str, row: dict[str, Any]) -> str:
    return f"{name:<16}{row['decoder_passes']:>16,}{row['gflop']:>14,.1f}{row['minutes']:>10.2f}"


def size_text(count: float) -> str:
    """Bytes with a unit.

    Example:
        >>> size_text(900), size_text(3 * 2**20)
        ('900 B', '3.0 MiB')
    """
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            break
        count /= 1024
    else:
        unit = "TiB"
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
