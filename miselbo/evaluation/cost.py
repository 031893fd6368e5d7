"""What an evaluation will cost: passes, operations, bytes, and minutes at measured speed."""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import TypedDict

import torch
from torch import Tensor

from miselbo.data.interface import Data
from miselbo.ensemble import Ensemble
from miselbo.evaluation.scoring import NetworkSource, score_batch
from miselbo.evaluation.settings import Settings
from miselbo.evaluation.shards import scores_bytes
from miselbo.protocols import evaluating
from miselbo.runtime.counters import Peak, count_gflop, line, parameter_bytes

MEASURE = 2.0  # seconds of measuring at least, for each line
PASS_SECONDS = 0.5  # what a measured pass may take: more, and it is measured on some of a batch's examples


class EvaluationCost(TypedDict):
    """Of one evaluation."""

    num_data: int
    S: int
    L: int
    batches: int
    decoder_passes: int
    gflop_per_pass: float
    gflop_by_part: dict[str, float]
    gflop: float
    bytes: dict[str, int]
    seconds_per_batch: float
    seconds_per_sample: float
    processes: int
    minutes: float


class Speed(TypedDict):
    """Of one evaluation, as measured."""

    minutes: float
    seconds_per_batch: float
    seconds_per_sample: float
    activations: int


def evaluation_cost(
    ensemble: Ensemble,
    data: Data,
    settings: Settings,
    device: str = "cpu",
    processes: int = 1,
    seconds: float = MEASURE,
) -> EvaluationCost:
    """Cost of one evaluation at ``settings.num_samples`` (the most that it is with ``evaluation.stop_at_se``).

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
) -> Speed:
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
    source = SimpleNamespace(num_members=size, passes=lambda *_: iter([scores]))
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
    member = ensemble.members[0]
    index, first = torch.zeros(1, dtype=torch.int64, device=x.device), torch.zeros(1, dtype=torch.int64)
    with evaluating(ensemble):
        encoder, context = count_gflop(lambda: member.encode(x))
        drawn = ensemble.target.draw(x, member, context, ensemble.noise(x, first.to(x.device), 0, index, 0))
        decoder, draw = count_gflop(lambda: ensemble.target.at(x, [z.unsqueeze(0) for z in drawn.z]))
        head, _ = count_gflop(lambda: member.log_prob(context, draw))
    whole = decoder + len(ensemble.members) * head
    return {"encoder": encoder, "decoder": decoder, "head": head, "pass": whole}


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
