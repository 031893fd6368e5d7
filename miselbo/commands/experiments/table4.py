"""Section 5.3: VBPI ensembles on DS1..DS8, and what the published evaluation recipe would report for the same draws."""

import contextlib
import functools
import io
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from miselbo import bounds
from miselbo.bounds.diagnostics import half_width, paired
from miselbo.commands.study import PUBLISHED, SubRun, examples_of, finish, results_folder, run_parts
from miselbo.ensemble import Ensemble
from miselbo.errors import InputError
from miselbo.phylo.published import score_both_ways
from miselbo.report.checked import read_summary, read_table
from miselbo.report.tables import fixed
from miselbo.runs import checkpoints, config
from miselbo.runs.building import build
from miselbo.runs.folder import stored
from miselbo.runs.plan import Study, source_of
from miselbo.runs.restore import restore
from miselbo.runtime.files import atomic, write_csv, write_text
from miselbo.runtime.progress import Meter

PAPER = PUBLISHED / "5_3_phylogenetics" / "paper.csv"
SETS = tuple(f"ds{number}" for number in range(1, 9))
GROUPS = ("model", "dataset", "ensemble", "evaluation")  # what is set in them holds for every part
OF_ONE_SET = ("dataset.posterior", "dataset.support.file", "dataset.evidence.chains")
METHODS = {
    "phylogfn": "PhyloGFN",
    "mrbayes": "MrBayes stepping stone",
    "vbpi_gnn": "VBPI-GNN",
    "sbn_elbo": "SBN ELBO",
    "artree_elbo": "ARTree ELBO",
}  # columns and names of anchors in PAPER
DIFFERENCE = (
    "The published recipe scores another member's branch lengths with the means and standard deviations which that "
    "member has on a tree of its own, and pushes the drawing member's base noise through that member's flow, so what "
    "it averages is no density of the drawn tree and lengths. "
    "With the identity flow these values are mostly far too small (with RealNVP they err both ways): the mixture "
    "collapses to q_s / S and the result moves from the average IWELBO towards the average IWELBO + log S whatever the "
    "members are, so that S copies of one model seem to gain and the number can exceed log p(Y). "
    "With every member's density evaluated at the drawn tree and the drawn lengths, S copies of one model gain "
    "exactly nothing, and what MISELBO gains for different members is theirs."
)


def run(
    study: Study,
    results: str,
    sets: Sequence[str] = SETS,
    name: str = "table4",
    workers: int = 1,
) -> dict[str, object]:
    """Train and score an ensemble on every data set; write tables, figure, text and the first set's report.

    Args:
        study: the whole; what it sets under model, dataset, ensemble, evaluation and for trainer.max_epochs holds
            for every part.
        results: folder for ``<name>.csv``, ``.md``, ``.png`` and ``<name>_<set>_report.html``.
        sets: data sets, of ds1..ds8.
        name: of the files.
        workers: processes, each for one data set.

    Raises:
        InputError: an unknown data set, a model of another family, a file that is of one data set given for several.
    """
    started, chosen = time.monotonic(), check(study, sets)
    folder = results_folder(results)
    folders = run_parts(study, [SubRun(one, overrides(study, one)) for one in chosen], workers)
    meter = Meter("published recipe", len(folders), study.progress)
    rows = []
    for done, (one, path) in enumerate(folders.items(), start=1):
        rows.append({"set": one, **row(path)})
        meter.update(done, one)
    meter.close()
    table = pd.DataFrame(rows).merge(anchors(), on="set", how="left")
    write_csv(table, folder / f"{name}.csv")
    draw(table, folder / f"{name}.png")
    keep_report(folders[chosen[0]], folder / f"{name}_{chosen[0]}_report.html")
    text = markdown(table, name, study.seed)
    write_text(folder / f"{name}.md", text)
    return finish(name, folder, text, started)


def check(study: Study, sets: Sequence[str] | str) -> list[str]:
    """The data sets of a study; InputError for what cannot be."""
    several = isinstance(sets, Sequence) and not isinstance(sets, str)
    chosen = [str(one) for one in sets] if several else [str(sets)]
    unknown = [one for one in chosen if one not in SETS]
    if unknown or not chosen or len(set(chosen)) < len(chosen):
        raise InputError(f"study.sets must list different ones of {', '.join(SETS)}, got {chosen}")
    model, dataset = study.values["model.name"], study.values["dataset.name"]
    if not str(model).startswith("vbpi"):
        raise InputError(f"this experiment is for model=vbpi and its like, got model={model}")
    if dataset not in SETS:
        raise InputError(f"study.sets names the data sets here, and dataset={dataset} is none of them")
    if study.values["dataset.root"] is None:
        raise InputError("this experiment needs dataset.root=<a folder with DS1.fasta .. DS8.fasta>")
    given = changes(study, chosen[0])
    for key in OF_ONE_SET:
        if len(chosen) > 1 and key in given:
            raise InputError(
                f"{key} is of one data set, but study.sets lists {len(chosen)}: give one of them"
            )
    return chosen


def changes(study: Study, one: str) -> dict[str, object]:
    """What the study sets otherwise than an ordinary run of its model on that data set."""
    plain = config.compose_config([f"model={study.values['model.name']}", f"dataset={one}", "run_dir=unused"])
    before, epochs = config.flatten(plain), study.values["trainer.max_epochs"]
    found = {
        key: value
        for key, value in study.written.items()
        if key.split(".")[0] in GROUPS and "." in key and before.get(key) != value and key != "dataset.name"
    }
    if epochs != plain.trainer.max_epochs:
        found["trainer.max_epochs"] = epochs
    return {key: value for key, value in found.items() if not isinstance(value, dict)}


def overrides(study: Study, one: str) -> list[str]:
    """The part of a data set, as a command line."""
    given = [f"{key}={written(value)}" for key, value in changes(study, one).items()]
    return [f"model={study.values['model.name']}", f"dataset={one}", *given]


def written(value: object) -> str:
    """A value as Hydra reads it on a command line.

    Example:
        >>> [written(value) for value in (None, True, 3, "a folder/it's", [1, 10])]
        ['null', 'true', '3', "'a folder/it\\\\'s'", '[1,10]']
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    return str(value)


def row(path: Path) -> dict[str, float]:
    """The numbers of one run folder, and of the published recipe on the same draws."""
    cfg = stored(path)
    headline = read_summary(path / "results" / "summary.json")["headline"]
    examples = examples_of(path)
    size, samples = int(headline["S"]), int(headline["L"])
    values: dict[str, float] = {"S": size, "L": samples, "replicates": len(examples)}
    for name in (
        "average_iwelbo",
        "miselbo",
        "joint_bound",
        "jsd",
        *(f"iwelbo_{s + 1}" for s in range(size)),
    ):
        values |= error_of(name, examples[name])
    values |= error_of("gain", examples["miselbo"] - examples["average_iwelbo"])
    data = build(cfg.dataset)
    data.setup()
    cfg.run_dir = str(path)
    ensemble = restore(source_of(cfg), data)
    seed = cfg.seed if cfg.evaluation.seed is None else cfg.evaluation.seed
    index = torch.tensor(examples["index"].to_numpy())
    found = compare(ensemble, samples, seed, index)
    if not torch.allclose(found["miselbo"], torch.tensor(examples["miselbo"].to_numpy()), rtol=0, atol=1e-6):
        raise RuntimeError(f"{path}: the draws of the comparison are not those of the evaluation")
    copies = compare(Ensemble(ensemble.target, [ensemble.members[0]] * size), samples, seed, index)
    for prefix, part in (("", found), ("copies_", copies)):
        if prefix:
            values |= error_of("copies_average_iwelbo", part["average_iwelbo"])
            values |= error_of("copies_gain", part["miselbo"] - part["average_iwelbo"])
        values |= error_of(f"{prefix}recipe", part["recipe"])
        values |= error_of(f"{prefix}recipe_gain", part["recipe"] - part["average_iwelbo"])
        values |= error_of(f"{prefix}recipe_jsd", part["recipe_jsd"])
    kept = [checkpoints.read(checkpoints.member_path(path, s), "member") for s in range(1, size + 1)]
    values |= {
        "training_seconds": sum(content["seconds"] for content in kept) / size,
        "cpu_seconds": sum(content.get("cpu_seconds", math.nan) for content in kept) / size,
        "steps": sum(content["steps"] for content in kept) / size,
    }
    return values | of_trees(path)


def of_trees(path: Path) -> dict[str, float]:
    """What the 10,000 fresh draws of every member say: averages over members, and the mixture's (``mixture_``).

    ``kl`` and ``tv`` are there where the data set has a posterior to compare with, else NaN.
    """
    table = read_table(path / "results" / "trees.csv", ("elbo", "ess")).set_index("member")
    members, found = table.drop("mixture"), {}
    for name in ("elbo", "ess", "kl", "tv"):
        known = name in table
        found[name] = float(members[name].mean()) if known else math.nan
        if name != "elbo":
            found[f"mixture_{name}"] = float(table.loc["mixture", name]) if known else math.nan
    return {**found, "lowest_elbo": float(members["elbo"].min())}


def error_of(name: str, values: pd.Series) -> dict[str, float]:
    """Mean and standard error over the replicates."""
    return {
        key: value
        for key, value in paired(name, np.array(values.tolist())).items()
        if key in (name, f"{name}_se")
    }


def compare(ensemble: Ensemble, samples: int, seed: int, index: torch.Tensor) -> dict[str, torch.Tensor]:
    """Average IWELBO, MISELBO and the recipe's MISELBO and JSD of the same draws, per replicate.

    Args:
        ensemble: of VBPI members.
        samples: L.
        seed: of the noise.
        index: [B] replicates.
    """
    log_p, log_q, recipe = score_both_ways(ensemble, samples, seed, index)
    return {
        "average_iwelbo": bounds.average_iwelbo(log_p, log_q),
        "miselbo": bounds.miselbo(log_p, log_q),
        "recipe": bounds.miselbo(log_p, recipe),
        "recipe_jsd": bounds.jsd(recipe),
    }


def anchors() -> pd.DataFrame:
    """Published log marginal likelihoods, one column per method."""
    known = pd.read_csv(PAPER)
    columns = [
        known[known["method"] == method][["set", "value"]].rename(columns={"value": name})
        for name, method in METHODS.items()
    ]
    return functools.reduce(lambda one, other: one.merge(other, on="set"), columns)


def keep_report(path: Path, page: Path) -> None:
    """Write the report of a part and keep a copy of it."""
    from miselbo import report  # matplotlib is slow to import

    with contextlib.redirect_stdout(io.StringIO()):
        made = report.write(path)
    write_text(page, made.read_text())


def markdown(table: pd.DataFrame, name: str, seed: int) -> str:
    """The tables as text."""
    first = table.iloc[0]
    number = int(first["S"])
    lines = [
        f"# {name}: log-likelihood bounds of VBPI ensembles, nats",
        "",
        f"S = {number} members trained independently, L = {int(first['L']):,} draws of each, "
        f"{int(first['replicates'])} replicates; ± one standard error over the replicates; seed {seed}. Gain: MISELBO "
        "- average IWELBO of the same draws. Seconds: training of one member by the clock of the machine. Published "
        "values with their sources and status: paper.csv; MrBayes is quoted from memory.",
        "",
        "| set | average IWELBO | MISELBO | gain | joint bound | JSD | members' IWELBO | seconds | PhyloGFN | "
        "MrBayes |",
        "| :-- | --: | --: | --: | --: | --: | :-- | --: | --: | --: |",
    ]
    for line in table.to_dict("records"):
        cells = [cell(line, key) for key in ("average_iwelbo", "miselbo", "gain", "joint_bound", "jsd")]
        members = ", ".join(f"{line[f'iwelbo_{s + 1}']:.2f}" for s in range(number))
        lines.append(
            f"| {line['set'].upper()} | {' | '.join(cells)} | {members} | {line['training_seconds']:.0f} | "
            f"{line['phylogfn']:.1f} | {line['mrbayes']:.2f} |"
        )
    lines += members_text(table)
    lines += [
        "",
        "## The same draws by the published evaluation recipe",
        "",
        "| set | ensemble | average IWELBO | MISELBO's gain | the recipe's number | its gain | its JSD |",
        "| :-- | :-- | --: | --: | --: | --: | --: |",
    ]
    for line in table.to_dict("records"):
        for what, prefix in ((f"the {number} members", ""), (f"q_1 {number} times", "copies_")):
            keys = ("average_iwelbo", "gain", "recipe", "recipe_gain", "recipe_jsd")
            cells = [cell(line, f"{prefix}{key}") for key in keys]
            lines.append(f"| {line['set'].upper()} | {what} | {' | '.join(cells)} |")
    order = (
        "The recipe is written from its description (miselbo/phylo/published.py), not run from the published code. The "
        "copies of q_1 differ in their draws alone. A recipe value depends on the order of inner edges, which is ours."
    )
    return "\n".join([*lines, "", DIFFERENCE, "", order, ""])


def members_text(table: pd.DataFrame) -> list[str]:
    """The members by themselves, beside published ones, as lines."""
    lines = [
        "",
        "## The members by themselves",
        "",
        "Averages over the members. ELBO and effective sample size (ESS) are of 10,000 fresh draws of each, IWELBO of "
        "L; KL and total variation (TV) are from the MrBayes posterior where there is one; published numbers are from "
        "memory (paper.csv). CPU s: user and system time of one member's training.",
        "",
        "| set | ELBO | lowest | SBN | ARTree | IWELBO | VBPI-GNN | ESS | KL, mixture | TV, mixture | iterations | "
        "CPU s |",
        "| :-- | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: | --: |",
    ]
    for line in table.to_dict("records"):
        cells = [f"{line[key]:.2f}" for key in ("elbo", "lowest_elbo", "sbn_elbo", "artree_elbo")]
        cells += [f"{line['average_iwelbo']:.2f}", f"{line['vbpi_gnn']:.2f}", f"{line['ess']:.0f}"]
        cells += [
            ", ".join(fixed(line[f"{part}{name}"], 3) for part in ("", "mixture_")) for name in ("kl", "tv")
        ]
        cells += [f"{line['steps']:.0f}", fixed(line["cpu_seconds"], 0)]
        lines.append(f"| {line['set'].upper()} | {' | '.join(cells)} |")
    return lines


def cell(line: Mapping[str, float], key: str) -> str:
    """A value with its error; a zero by rounding is written as 0."""
    value, error = line[key], line[f"{key}_se"]
    return f"{0.0 if abs(value) < 5e-4 else value:.3f} ± {error:.3f}"


def draw(table: pd.DataFrame, path: Path) -> None:
    """Bounds and the recipe's numbers against the published log marginal likelihood."""
    from miselbo.report.style import GREY, label, legend_below, member_style, new_figure

    size = int(table["S"].iloc[0])
    shown = {
        "average_iwelbo": "average\nIWELBO",
        "miselbo": "MISELBO",
        "joint_bound": "joint\nbound",
        "recipe": "published\nrecipe",
        "copies_miselbo": f"MISELBO,\nq_1 {size} times",
        "copies_recipe": f"published recipe,\nq_1 {size} times",
    }
    footer = "95% intervals over the replicates; 0: log marginal likelihood by PhyloGFN (paper.csv)"
    figure, (axis,) = new_figure(3.8, footer=footer)
    for number, line in enumerate(table.to_dict("records")):
        line["copies_miselbo"] = line["copies_average_iwelbo"] + line["copies_gain"]
        line["copies_miselbo_se"] = line["copies_average_iwelbo_se"]
        shift = 0.06 * (number - (len(table) - 1) / 2)
        look = member_style(number)
        look["linestyle"] = "none"
        axis.errorbar(
            [place + shift for place in range(len(shown))],
            [line[key] - line["phylogfn"] for key in shown],
            [half_width(int(line["replicates"])) * line[f"{key}_se"] for key in shown],
            label=line["set"].upper(),
            capsize=3,
            **look,
        )
    axis.axhline(0.0, color=GREY, linewidth=1)
    axis.set_xticks(range(len(shown)), list(shown.values()))
    label(axis, y="nats above log p(Y)")
    legend_below(figure, axis, columns=8)
    with atomic(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})
