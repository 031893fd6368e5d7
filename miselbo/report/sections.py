"""What the report shows, in order: titles, text, tables and figures. HTML and Markdown both come from it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.text import Text

from miselbo.report import (
    density,
    gallery,
    heading,
    latex,
    levels,
    pictures,
    plots,
    sandwich_parts,
    subset_parts,
    tables,
    texts,
    trees,
    worth_parts,
)
from miselbo.report.folder import RunFolder
from miselbo.report.tables import Table, fixed, plus_minus
from miselbo.report.texts import paragraphs
from miselbo.runtime.words import reword


@dataclass(frozen=True)
class Picture:
    """A figure of the report: file name without ending, what a screen reader says, and the figure itself."""

    name: str
    alt: str
    figure: Figure


@dataclass(frozen=True)
class Section:
    """One part of the report; ``note`` is the line that stands there when the data for it are not."""

    anchor: str
    title: str
    text: Sequence[str] = ()
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    note: str = ""


@dataclass(frozen=True)
class Report:
    """Title, one line of protocol, the headline, and the sections below it."""

    title: str
    protocol_line: str
    glance: str
    headline: Table
    trust: Sequence[str]
    protocol: Table
    sections: Sequence[Section]
    caption: str = ""  # what every figure and table adds to its own words
    links: Sequence[str] = ()  # files beside the page
    latex: str = ""
    words: str = "The result"  # caption of the first table


def build(run: RunFolder) -> Report:
    """All sections of the report of one run, in the words of its data."""
    footer = heading.short_protocol(run)
    special = [SPECIAL[name](run, footer) for name in run.sections if name in SPECIAL]
    report = Report(
        title=heading.title(run),
        protocol_line=heading.protocol_line(run),
        glance=heading.glance(run),
        headline=tables.headline(run),
        trust=heading.trust(run),
        protocol=tables.protocol(run),
        sections=[
            *([_worth(run, footer)] if worth_parts.of(run) else []),
            _against_samples(run, footer),
            _against_size(run, footer),
            *([_sandwich(run, footer)] if run.sandwich is not None else []),
            _delta_and_jsd(run, footer),
            _pairwise(run, footer),
            _which_members(run, footer),
            _delta_histogram(run, footer),
            _gallery(run, footer),
            _weights(run, footer),
            _members(run),
            *special,
            _training(run, footer),
            _cost(run),
            *_levels(run),
            *_annealed(run),
            _grid(run),
        ],
        caption=footer,
        links=[name for name in LINKED if (run.path / name).is_file()],
        latex=latex.headline(run),
    )
    return reworded(report, run.words) if run.words else report


LINKED = (
    "results/summary.json", "results/card.json", "results/bounds.csv", "results/per_member.csv",
    "results/per_example.parquet", "results/pairwise_jsd.csv", "results/subsets.csv", "results/marginal.csv",
    "results/worth.csv", "results/sandwich.csv", "metrics.csv",
)  # fmt: skip


def reworded(part: Any, words: Mapping[str, str]) -> Any:
    """A report, or a part of it, with all its text (figures too) through :func:`miselbo.runtime.words.reword`."""
    if isinstance(part, str):
        return reword(part, words)
    if isinstance(part, Figure):
        for text in part.findobj(Text):
            text.set_text(reword(text.get_text(), words))
        return part
    if isinstance(part, Sequence):
        return [reworded(item, words) for item in part]
    if is_dataclass(part) and not isinstance(part, type):
        keep = ("name", "anchor", "align", "links")
        changed = {f.name: reworded(getattr(part, f.name), words) for f in fields(part) if f.name not in keep}
        return replace(part, **changed)
    return part


def _left_out(run: RunFolder, name: str) -> str:
    return f"Left out: {run.notes.get(name, name + ' is not in the run folder.')}"


def _worth(run: RunFolder, footer: str) -> Section:
    alt = "Line plot: the joint bound against decoder passes, a line for each number of members"
    shown = [Picture("worth", alt, worth_parts.figure(run, footer))]
    text = [worth_parts.of(run)["sentence"], *paragraphs(texts.WORTH)]
    return Section("worth", "Is the ensemble worth it?", text, shown, [worth_parts.table(run)])


def _against_samples(run: RunFolder, footer: str) -> Section:
    figure = plots.bounds_against_samples(run.bounds, run.size, footer)
    alt = "Line plot: MISELBO, joint bound, average IWELBO and average ELBO against the number of samples L"
    text = paragraphs(texts.AGAINST_SAMPLES)
    return Section(
        "samples", "Bounds against the number of samples", text, [Picture("bounds_vs_L", alt, figure)]
    )


def _against_size(run: RunFolder, footer: str) -> Section:
    anchor, title = "members", "Bounds against the number of members"
    if run.size == 1:
        return Section(anchor, title, note=texts.SINGLE)
    bars = texts.PAIRED_BARS if math.isfinite(plots.paired_error(run.per_example, "miselbo")) else ""
    text = paragraphs(texts.AGAINST_SIZE, num_samples=run.num_samples, bars=bars)
    figure = plots.bounds_against_size(run.bounds, run.per_example, run.num_samples, footer)
    alt = "Line plot: the four bounds against the number of members S, and their difference to member 1 alone"
    return Section(anchor, title, text, [Picture("bounds_vs_S", alt, figure)])


def _sandwich(run: RunFolder, footer: str) -> Section:
    assert run.sandwich is not None
    alt = "Left: bounds from below and above against L; right: their distance for each number of members"
    shown = [Picture("sandwich", alt, sandwich_parts.figure(run.sandwich, footer))]
    text = [str((run.summary.get("sandwich") or {}).get("sentence", "")), *paragraphs(texts.SANDWICH)]
    table = sandwich_parts.table(run.sandwich)
    return Section("sandwich", "Between two bounds, on simulated data", text, shown, [table])


def _delta_and_jsd(run: RunFolder, footer: str) -> Section:
    anchor, title = "delta-jsd", "Gain (Delta) against diversity (JSD)"
    if run.size == 1:
        return Section(anchor, title, note=texts.SINGLE)
    delta = plots.finite(run.per_example, "delta")
    text = paragraphs(
        texts.DELTA_AND_JSD,
        size=run.size,
        num_samples=run.num_samples,
        negative=f"{100 * float(np.mean(delta < 0)):.1f} %" if len(delta) else "none",
        slack=plus_minus(run.headline["slack"], run.headline.get("slack_se")),
    )
    figure = plots.delta_against_jsd(run.per_example, run.bounds, run.size, footer)
    alt = (
        "Delta against JSD with the diagonal: every example on the left, means for every S and L on the right"
    )
    return Section(anchor, title, text, [Picture("delta_vs_jsd", alt, figure)])


def _pairwise(run: RunFolder, footer: str) -> Section:
    anchor, title = "pairs", "How different are the members?"
    if run.size == 1:
        return Section(anchor, title, note=texts.SINGLE)
    if run.pairwise is None:
        return Section(anchor, title, note=_left_out(run, "results/pairwise_jsd.csv"))
    picture = Picture(
        "pairwise_jsd",
        "Heatmap of the JSD of every pair of members, with the number in each cell",
        plots.pairwise_jsd(run.pairwise, footer),
    )
    return Section(anchor, title, paragraphs(texts.PAIRWISE), [picture])


def _which_members(run: RunFolder, footer: str) -> Section:
    anchor, title = "which", "Which members"
    if run.size == 1:
        return Section(anchor, title, note=texts.SINGLE)
    missing = [name for name in ("subsets", "marginal") if getattr(run, name) is None]
    if run.subsets is None and run.marginal is None and not subset_parts.weights_of(run):
        return Section(anchor, title, note=_left_out(run, "results/subsets.csv"))
    shown = []
    if run.subsets is not None:
        figure = subset_parts.subsets_figure(run.subsets, footer)
        shown.append(
            Picture("subsets", "Dots: MISELBO and joint bound of every subset against its size", figure)
        )
    if run.marginal is not None:
        figure = subset_parts.marginal_figure(run.marginal, footer)
        shown.append(
            Picture("marginal", "Points with intervals: what each added member brings in nats", figure)
        )
    note = " ".join(_left_out(run, f"results/{name}.csv") for name in missing)
    return Section(anchor, title, subset_parts.text(run), shown, subset_parts.tables_of(run), note)


def _delta_histogram(run: RunFolder, footer: str) -> Section:
    anchor, title = "delta", "The gain, example by example"
    if run.size == 1:
        return Section(anchor, title, note=texts.SINGLE)
    lost = len(run.per_example) - len(plots.finite(run.per_example, "delta"))
    text = paragraphs(texts.DELTA_HISTOGRAM + (texts.NOT_SHOWN.format(count=lost) if lost else ""))
    figure = plots.delta_histogram(run.per_example, footer)
    return Section(
        anchor, title, text, [Picture("delta_histogram", "Histogram of Delta over the examples", figure)]
    )


def _gallery(run: RunFolder, footer: str) -> Section:
    found = gallery.table(run)
    made = gallery.figure(run, gallery.load(run.path / "results"), footer)
    alt = "Test images in rows: most and least Delta, highest k-hat, lowest joint bound, unequal shares"
    shown = [Picture("gallery", alt, made)] if made is not None else []
    if not found.rows:
        return Section("gallery", "Best and worst examples", note="Left out: all examples are alike.")
    return Section("gallery", "Best and worst examples", paragraphs(texts.GALLERY), shown, [found])


def _weights(run: RunFolder, footer: str) -> Section:
    anchor, title = "weights", "Can the importance weights be trusted?"
    if not {"ess", "max_weight", "pareto_k"} & set(run.per_example.columns):
        note = "Left out: results/per_example.parquet has none of the columns ess, max_weight, pareto_k."
        return Section(anchor, title, note=note)
    figure = plots.weight_diagnostics(run.per_example, footer)
    alt = "Histograms of effective sample size, largest normalised weight and Pareto k over the examples"
    return Section(anchor, title, paragraphs(texts.WEIGHTS), [Picture("weights", alt, figure)])


def _members(run: RunFolder) -> Section:
    table, text = tables.per_member(run), texts.MEMBERS
    if "Behind the best" in table.columns:
        text += texts.BEHIND.lstrip("\n")
    if "Responsibility" in table.columns:
        text += texts.RESPONSIBILITY.format(share=fixed(1 / run.size, 3)).lstrip("\n")
    return Section("per-member", "Members one by one", paragraphs(text), tables=[table])


def _images(run: RunFolder, footer: str) -> Section:
    anchor, title = "images", "Images"
    if run.images is None:
        return Section(anchor, title, note=_left_out(run, "results/images.npz"))
    text = paragraphs(texts.IMAGES)
    if len(run.images.get("reconstructions", [])) > pictures.MOST_MEMBERS:
        text += paragraphs(texts.ONLY_FIRST, count=pictures.MOST_MEMBERS)
    alt = "Grid of original images, their reconstructions through every member, and samples from the prior"
    return Section(anchor, title, text, [Picture("images", alt, pictures.image_grid(run.images, footer))])


def _training(run: RunFolder, footer: str) -> Section:
    anchor, title = "training", "Training curves"
    if run.metrics is None:
        return Section(anchor, title, note=_left_out(run, "metrics.csv"))
    figure = pictures.training_curves(run.metrics, footer)
    alt = "Training and validation curves of every member"
    return Section(anchor, title, paragraphs(texts.TRAINING), [Picture("training", alt, figure)])


def _cost(run: RunFolder) -> Section:
    table = tables.cost(run)
    if table is None:
        return Section("cost", "Cost", note="Left out: results/summary.json has no cost.")
    return Section("cost", "Cost", paragraphs(texts.COST), tables=[table])


def _levels(run: RunFolder) -> list[Section]:
    about = run.summary.get("multilevel")
    if not about:
        return []
    return [Section("levels", "Multilevel", levels.text(about), tables=[levels.table(about)])]


def _annealed(run: RunFolder) -> list[Section]:
    found = []
    if about := run.summary.get("annealed"):
        shown = [levels.annealed_table(about)]
        found.append(Section("annealed", "Annealed from the mixture", [str(about["sentence"])], tables=shown))
    if precise := run.summary.get("precision"):
        found.append(Section("precision", "Every example to a given error", [str(precise["sentence"])]))
    return found


def _grid(run: RunFolder) -> Section:
    return Section("grid", "All numbers", paragraphs(texts.GRID), tables=[tables.grid(run.bounds)])


def _density(run: RunFolder, footer: str) -> Section:
    grid = density.load(run.path / "results" / "density.npz")
    text = paragraphs(texts.DENSITY, rule=run.protocol.get("normaliser_rule", ""))
    if grid is None:
        note = "Without a figure: dataset.box is not given, or the target has more than two dimensions."
        return Section("density", "Target and members", text, tables=[density.kl_table(run)], note=note)
    alt = "The target density with the members of the ensemble drawn over it"
    shown = [Picture("density", alt, density.density_figure(grid, footer))]
    return Section("density", "Target and members", text, shown, [density.kl_table(run)])


def _trees(run: RunFolder, footer: str) -> Section:

    found = trees.load(run.path / "results")
    if found is None:
        return Section("trees", "Trees", note=_left_out(run, "results/trees.json"))
    alt = "Majority-rule consensus tree of the ensemble with the probabilities of its splits"
    shown = [Picture("consensus", alt, trees.consensus_figure(found, footer))]
    distances = [trees.distance_table(found["distances"])] if "distances" in found else []
    return Section("trees", "Trees", trees.text(found), shown, [*distances, trees.split_table(found)])


# sections that the data ask for by name (miselbo.data.interface.Data.sections)
SPECIAL: dict[str, Callable[[RunFolder, str], Section]] = {
    "images": _images,
    "density": _density,
    "trees": _trees,
}
