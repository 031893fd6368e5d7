"""The files of an evaluation: tables, and a summary with headline, protocol, trust and cost."""

import math
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import miselbo
from miselbo.bounds.certificate import lower_limit
from miselbo.bounds.quantities import names
from miselbo.evaluation import replicates, subset_tables, tables, trust, worth
from miselbo.evaluation.settings import Settings
from miselbo.report.summary import Certificate, Summary
from miselbo.runtime import files
from miselbo.runtime.commit import source_commit
from miselbo.runtime.files import write_json
from miselbo.runtime.words import reword

MEMBER = ("member", "iwelbo", "iwelbo_se", "iwelbo_se_mc", "iwelbo_se_mc_trusted")


def write_results(
    values: dict[str, np.ndarray],
    settings: Settings,
    folder: Path,
    protocol: Mapping[str, object],
    stages: Sequence[dict[str, object]],
    num_dims: int | None,
    words: Mapping[str, str] | None = None,
    sections: Sequence[str] | None = None,
    cautions: Sequence[str] = (),
    looks: int = 1,
) -> Summary:
    """Write ``results/`` of a run folder.

    Args:
        values: per-example values of :func:`miselbo.evaluation.shards.score_all`.
        settings: of the evaluation.
        folder: run folder.
        protocol: what the numbers depend on, plain JSON types; printed with them.
        stages: rows of the cost table before the evaluation: stage, seconds, decoder_passes.
        num_dims: scalar observations per example, for bits/dim; None without.
        words: what the texts shall call things, by the word of this project; see :func:`miselbo.runtime.words.reword`.
        sections: of the report, those that not every run has.
        cautions: sentences of the data to stand before the others on trust.
        looks: how many values of L the shown one was chosen from, by what came out (``evaluation.stop_at_se``).

    Returns:
        The content of ``summary.json``.
    """
    results = folder / "results"
    seconds = float(values["seconds"].sum())
    examples = tables.example_table(values)
    equal_cost = worth.worth_table(values, settings.num_samples)
    frames = Frames(
        tables.bounds_table(values, settings.grid, seconds),
        tables.member_table(values, settings.grid),
        tables.pairwise_table(values),
        examples,
        values,
        equal_cost,
    )
    passes = len(examples) * values["miselbo"].shape[1] * settings.num_samples
    extra = worth.summary(equal_cost, words or {})
    extra.update(subset_tables.write(values, settings.num_samples, results))
    extra["certificate"] = certified(values, settings.confidence, looks)
    if "replicates" in protocol and (together := replicates.log_of_mean(values)) is not None:
        extra["log_of_mean"] = together
    cost = [*stages, {"stage": "evaluate", "seconds": seconds, "decoder_passes": passes}]
    about = About(protocol, cost, num_dims, words, sections, cautions)
    return write_frames(frames, settings, results, about, extra)


@dataclass(frozen=True)
class Frames:
    """The tables of an evaluation.

    ``trusted`` are per-example values of the examples that speak for the weights, ``trusted_at`` their draws per member
    where these are not L; ``worth`` may be empty.
    """

    bounds: pd.DataFrame
    members: pd.DataFrame
    pairwise: pd.DataFrame
    examples: pd.DataFrame
    trusted: dict[str, np.ndarray]
    worth: pd.DataFrame
    trusted_at: int | None = None


@dataclass(frozen=True)
class About:
    """What stands with the tables, see :func:`write_results`; ``cost`` has the row of the evaluation too."""

    protocol: Mapping[str, object]
    cost: Sequence[dict[str, object]]
    num_dims: int | None
    words: Mapping[str, str] | None = None
    sections: Sequence[str] | None = None
    cautions: Sequence[str] = ()


def write_frames(frames: Frames, settings: Settings, results: Path, about: About, extra: Summary) -> Summary:
    """Write the tables and ``summary.json``, whose content is returned; ``extra`` is added to it."""
    protocol = about.protocol
    headline = {key: number(value) for key, value in frames.bounds.tail(1).to_dict("records")[0].items()}
    size = int(frames.bounds["S"].max())
    summary: Summary = {
        "headline": headline,
        "headline_finite": trust.finite_means(frames.examples),
        "members": [
            {key: number(row[key]) for key in MEMBER if key in row}
            for row in frames.members[frames.members["L"] == settings.num_samples].to_dict("records")
        ],
        "protocol": {
            **protocol,  # type: ignore[typeddict-item]
            "num_data": len(frames.examples),
            "S": size,
            "L": settings.num_samples,
            "grid": sorted({int(samples) for samples in frames.bounds["L"]}),
            "evaluation_seed": settings.seed,
            "dtype": str(protocol.get("dtype", settings.dtype)),  # a target may have one of its own
            "versions": versions(),
            "commit": source_commit(),
        },
        "trust": trust.trust(
            frames.trusted, headline if frames.trusted_at is None else {**headline, "L": frames.trusted_at}
        ),
        "cost": list(about.cost),
        "num_dims": about.num_dims,
    }
    summary.update(extra)
    summary["trust"]["sentences"][:0] = about.cautions
    if about.words:
        summary["words"] = dict(about.words)
        summary["trust"]["sentences"] = [reword(line, about.words) for line in summary["trust"]["sentences"]]
    if about.sections is not None:
        summary["sections"] = list(about.sections)
    files.write_csv(frames.bounds, results / "bounds.csv")
    for name in ("worth.csv", "sandwich.csv", "card.json"):
        (results / name).unlink(missing_ok=True)
    if len(frames.worth):
        files.write_csv(frames.worth, results / "worth.csv")
    files.write_csv(frames.members, results / "per_member.csv")
    files.write_csv(frames.pairwise, results / "pairwise_jsd.csv")
    files.write_parquet(frames.examples, results / "per_example.parquet")
    if protocol.get("remark"):
        summary["trust"]["sentences"].insert(0, f"These numbers are {protocol['remark']}.")
        files.add_column(results, "remark", str(protocol["remark"]))
    write_json(results / "summary.json", summary)
    return summary


def certified(values: dict[str, np.ndarray], confidence: float, looks: int = 1) -> Certificate:
    """Lower limits of the mean of log p(x) over the examples, see :mod:`miselbo.bounds.certificate`.

    Returns:
        ``confidence``; ``joint_bound``: the limit by all members' draws; ``best_member``: the largest of the limits by
        one member's draws alone, each made with its share of 1 - confidence, and ``member``, its number;
        ``num_data``; ``looks``, how many values of L were looked at; ``sentence``. None where a limit is not finite.
    """
    joint = torch.from_numpy(values["joint_bound"][:, -1, -1])
    alone = torch.from_numpy(values["member_iwelbo"][:, :, -1])
    limit = float(lower_limit(joint, confidence, looks))
    limits = lower_limit(alone, confidence, looks * alone.shape[1])
    limits = limits.masked_fill(limits.isnan(), -math.inf)
    best = float(limits.max())
    probability = f"{100 * confidence:.10g}%"
    sentence = f"No lower limit of the mean log p(x) can be given with probability {probability}: not finite."
    if math.isfinite(limit):
        sentence = (
            f"Mean log p(x) >= {limit:.4f} with probability {probability}, whatever the tails of the weights."
        )
    return {
        "confidence": confidence,
        "joint_bound": limit if math.isfinite(limit) else None,
        "best_member": best if math.isfinite(best) else None,
        "member": int(limits.argmax()) + 1,
        "num_data": len(joint),
        "looks": looks,
        "sentence": sentence,
    }


def headline_text(summary: Summary) -> str:
    """The headline as lines of text, the protocol above the numbers."""
    row, protocol, dims = summary["headline"], summary["protocol"], summary.get("num_dims")
    lines = [
        "",
        f"{protocol['model']} on {protocol['dataset']}, {protocol['split']} split, {protocol['num_data']} examples, "
        f"S = {protocol['S']}, L = {protocol['L']}, seed {protocol['seed']}",
        str(protocol.get("binarisation") or protocol.get("replicates", "")),
        *([protocol["remark"]] if protocol.get("remark") else []),
        "",
        *([f"{summary['worth']['sentence']}\n"] if summary.get("worth") else []),
        f"{'nats':<16}{'value':>10}{'s.e. data':>12}{'s.e. MC':>10}" + (f"{'bits/dim':>11}" if dims else ""),
    ]
    members = summary.get("members", []) if row["S"] > 1 else []
    for name in names():
        lines.append(headline_row(name, row, name, dims))
        if name == "average_iwelbo":
            lines += [headline_row(f"  iwelbo q{each['member']}", each, "iwelbo", dims) for each in members]
    together, certificate = summary.get("log_of_mean"), summary.get("certificate")
    lines += ["", *(str(part["sentence"]) for part in (together, certificate) if part)]
    above = [str(summary["sandwich"]["sentence"])] if summary.get("sandwich") else []
    lines += ["", *summary["trust"]["sentences"], *above, *protocol.get("notes", [])]
    return reword("\n".join(lines), summary.get("words", {}))


def headline_row(label: str, row: Mapping[str, float], name: str, dims: int | None) -> str:
    """One line: nats, standard errors and bits/dim, which of a bound is a code length, of a difference bits saved.

    A Monte Carlo error that is known to be too small stands behind a ">".

    Example:
        >>> headline_row("miselbo", {"miselbo": -80.0, "miselbo_se": 0.5}, "miselbo", 784)
        'miselbo           -80.0000      0.5000         -     0.1472'
        >>> headline_row("delta", {"delta": 0.4}, "delta", 784)
        'delta               0.4000           -         -     0.0007'
        >>> headline_row("jsd", {"jsd": 0.5, "jsd_se_mc": 0.01, "jsd_se_mc_trusted": False}, "jsd", None)
        'jsd                 0.5000           -   >0.0100'
    """
    errors = [row.get(f"{name}_se"), row.get(f"{name}_se_mc")]
    shown = ["-" if error is None or math.isnan(error) else f"{error:.4f}" for error in errors]
    value = math.nan if row[name] is None else row[name]
    if row.get(f"{name}_se_mc_trusted") is False and shown[1] != "-":
        shown[1] = f">{shown[1]}"
    line = f"{label:<16}{value:>10.4f}{shown[0]:>12}{shown[1]:>10}"
    sign = -1 if name in ("iwelbo", *names("bound")) else 1
    return line + (f"{sign * value / (dims * math.log(2)):>11.4f}" if dims else "")


def number(value: float) -> float:
    """A plain Python number; JSON has no NaN: None."""
    value = value.item() if isinstance(value, np.generic) else value
    return None if math.isnan(value) else value  # type: ignore[return-value]


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "miselbo": miselbo.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "pytorch-lightning": metadata.version("pytorch-lightning"),
        "numpy": np.__version__,
        "pandas": pd.__version__,
    }
