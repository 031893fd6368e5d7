"""What can speak against the numbers of an evaluation: one function a verdict, a sentence or none.

Keys in the sentences are those of a run; data of another kind reword them (:func:`miselbo.runtime.words.reword`).
"""

import math

import numpy as np

from miselbo.bounds.quantities import names
from miselbo.evaluation.evidence import HEAVY_TAIL, Evidence, heavy, light, listed, pooled_k, threshold
from miselbo.evaluation.member_verdicts import (
    apart,
    collapsed,
    dominating,
    impossible_densities,
    impossible_jsd,
    large_slack,
)

BOUNDS = names("bound")


def zero_mass(about: Evidence) -> str | None:
    """Examples whose MISELBO or joint bound is not finite."""
    joint, bound = about.at("joint_bound"), about.at("miselbo")
    lost = ~np.isfinite(joint)
    partly = np.isfinite(joint) & ~np.isfinite(bound)
    if not (lost | partly).any():
        return None
    sentences = []
    if lost.any():
        sentences.append(
            f"Non-finite bound: example index {listed(about.index[lost])} ({lost.sum()} of {len(lost)}) has a bound "
            "of -inf or NaN, as where all its draws lie outside the support of the model, so the mean is not finite."
        )
    if partly.any():
        members = np.flatnonzero(~np.isfinite(about.at("member_iwelbo")[partly]).all(0)) + 1
        who = f" of {', '.join(f'q{s}' for s in members)}" if len(members) else " of a member"
        sentences.append(
            f"Non-finite MISELBO: at example index {listed(about.index[partly])} ({partly.sum()} of {len(partly)}) all "
            f"draws{who} lie outside the support of the model, so MISELBO and average IWELBO are -inf; the joint "
            "bound, which needs one member inside, is finite there."
        )
    rest = np.isfinite(joint) & np.isfinite(bound)
    if rest.any():
        sentences.append(
            f"Over the other {rest.sum()} examples the mean MISELBO is {bound[rest].mean():.4f} and the mean joint "
            f"bound {joint[rest].mean():.4f}."
        )
    else:
        sentences.append("No example has a finite bound.")
    return " ".join(sentences)


def zero_draws(about: Evidence) -> str | None:
    """Examples whose ELBO alone is not finite: some draws have no density."""
    lost = ~np.isfinite(about.at("average_elbo")) & about.sound
    if not lost.any():
        return None
    return (
        f"ELBO of -inf: example index {listed(about.index[lost])} ({lost.sum()} of {len(lost)}) has draws outside the "
        "support of the model, on which an ELBO, a mean of logarithms, is -inf. The other bounds average the weights "
        "first and are finite."
    )


def broken(about: Evidence) -> str | None:
    """NaN or infinite log-densities."""
    bad = about.at("non_finite") > 0
    if not bad.any():
        return None
    return (
        f"Non-finite weights: {bad.sum()} examples have a NaN or infinite log-density (index "
        f"{listed(about.index[bad])}). They are in every mean, so a mean may be NaN or infinite; look at these "
        "inputs, or score in float64."
    )


def heavy_tails(about: Evidence) -> str | None:
    """Heavy tails of the pooled weights p / q_mix."""
    draws = about.size * about.samples
    k = pooled_k(about)
    if not heavy(k, draws):
        return _marked(about)
    known = k[~np.isnan(k)]
    limit = threshold(draws)
    above = (known > limit).mean()
    return (
        f"Heavy tails: {above:.0%} of the examples have a Pareto k-hat above {limit:.2g}"
        f"{'' if limit == HEAVY_TAIL else f' (the limit for {draws} draws)'}, so a few rare draws decide their "
        "bounds, and the Monte Carlo errors are too small. The bounds still are lower bounds in expectation; raise "
        "evaluation.num_samples, or train the members longer."
    )


def _marked(about: Evidence) -> str | None:
    """The examples that decide the Monte Carlo error are heavy, though most are not."""
    marked = [
        name for name in BOUNDS[:2] if about.headline.get(f"{name}_se_mc_trusted", True) in (False, np.False_)
    ]
    if not any(
        about.number(f"{name}_se_mc") > about.scale for name in marked
    ):  # NaN: unknown, and said elsewhere
        return None
    return (
        "Heavy tails where it counts: examples that hold most of the Monte Carlo variance have a Pareto k-hat above "
        f"{threshold(about.size * about.samples):.2g}, so that error, which stands behind a '>', is too small; raise "
        "evaluation.num_samples."
    )


def heavy_members(about: Evidence) -> str | None:
    """Members with a heavy tail of their own, p / q_s, that the mixture covers."""
    if about.size == 1 or heavy(pooled_k(about), about.size * about.samples):
        return None
    k = np.where(light(about.at("member_max_weight"), about.samples), -np.inf, about.at("member_pareto_k"))
    k = k[about.sound]
    found = [s for s in range(about.size) if heavy(k[:, s], about.samples)]
    if not found:
        return None
    with np.errstate(invalid="ignore"):
        shares = [float(np.nanmean(k[:, s] > threshold(about.samples))) for s in found]
    who = ", ".join(f"q{s + 1} ({share:.0%} of the examples)" for s, share in zip(found, shares, strict=True))
    return (
        f"Heavy tail of a single member: {who} has a Pareto k-hat of its own above {threshold(about.samples):.2g}, "
        "though the mixture's is light. Its IWELBO, average IWELBO and Delta rest on a few rare draws and their "
        "Monte Carlo errors are too small; MISELBO and the joint bound, which score under the mixture, are not "
        "touched. Raise evaluation.num_samples, or train that member longer."
    )


def left_tail(about: Evidence) -> str | None:
    """A few draws hold most of the ELBO's Monte Carlo variance: log-weights with a long left tail."""
    n = about.samples
    usable = about.sound & np.isfinite(about.at("average_elbo"))
    if n < 5 or not usable.any():
        return None
    squares = (about.at("member_elbo_var") * n * (n - 1))[
        usable
    ].ravel()  # about the mean of each member's draws
    worst, mean = about.values["left_squares"][usable].ravel(), about.at("member_elbo")[usable].ravel()
    per_row = math.ceil(n / 100)
    rows = max(1, round(squares.size * n / 100 / per_row))  # so that about 1% of all draws count
    order = np.argsort(-worst, kind="stable")[:rows]
    share = worst[order].sum() / max(squares.sum(), np.finfo(float).tiny)
    # without the worst draws the mean would be higher by
    drop = (mean - about.values["left_worst"][usable].ravel())[order] * per_row / (n - per_row)
    loss = drop.sum() / squares.size
    gap = (about.at("joint_bound")[usable] - about.at("average_elbo")[usable]).mean()
    if share <= 0.5 or loss < max(0.05 * gap, 1e-3, about.scale):
        return None
    return (
        f"Long left tail of the ELBO: the worst 1% of the draws hold {share:.0%} of its Monte Carlo variance and lower "
        f"the average ELBO by {loss:.3g} nats, so its value and error depend on whether such draws came up; k-hat does "
        "not see them. Judge by the importance-weighted bounds, which such draws hardly change."
    )


def terrible_examples(about: Evidence) -> str | None:
    """A few examples hold most of the Monte Carlo variance of MISELBO or the joint bound."""
    for name, label in (("miselbo", "MISELBO"), ("joint_bound", "the joint bound")):
        variance = np.nan_to_num(np.where(about.sound, about.at(f"{name}_var"), 0.0), nan=0.0)
        count, total = len(variance), variance.sum()
        if about.samples < 5 or count < 20 or math.sqrt(total) / count < max(1e-4, about.scale):
            continue
        order = np.argsort(-variance, kind="stable")
        held = np.cumsum(variance[order]) / total
        half, most = int(np.argmax(held > 0.5)) + 1, int(np.argmax(held >= 0.8)) + 1
        if half > max(1, count // 100) and most > max(3, count // 20):
            continue
        few = half if half <= max(1, count // 100) and most > max(3, count // 20) else most
        without = math.sqrt(total * (1 - held[few - 1])) / (count - few)
        return (
            f"A few examples hold most of the Monte Carlo variance: index {listed(np.sort(about.index[order[:few]]))} "
            f"({few} of {count}) {held[few - 1]:.0%} of that of {label}, whose error is {math.sqrt(total) / count:.2g} "
            f"and would be {without:.2g} without. Look at these inputs; more samples help there alone."
        )
    return None


def too_few(about: Evidence) -> str | None:
    """Each bound rests on a few draws."""
    draws = about.size * about.samples
    ess = about.at("ess")
    if about.samples < 2 or np.isnan(ess).all():
        return None
    median = float(np.nanmedian(ess))
    if median >= min(10, 0.5 * draws):
        return None
    return (
        f"Too few samples: the median effective sample size is {median:.1f} of {draws} draws, so each bound rests on a "
        "few of them; raise evaluation.num_samples."
    )


def open_sign(about: Evidence) -> str | None:
    """Delta within two of its Monte Carlo errors of 0."""
    delta, error = about.number("delta"), about.number("delta_se_mc")
    if (
        about.size == 1
        or math.isnan(error)
        or max(abs(delta), error) < about.scale
        or error <= abs(delta) / 2
    ):
        return None
    return (
        f"Too few samples for Delta: its Monte Carlo error ({error:.2g}) is more than half of Delta ({delta:.2g}), so "
        "even its sign is open; raise evaluation.num_samples or evaluation.num_examples, or read Delta at a smaller L."
    )


def not_finite(about: Evidence) -> str | None:
    """A headline bound that is not finite, whatever the reason."""
    lost = [name for name in BOUNDS if name in about.headline and not math.isfinite(about.number(name))]
    return f"Not finite: {', '.join(lost)}." if lost else None


VERDICTS = (
    zero_mass, broken, zero_draws, impossible_jsd, impossible_densities, heavy_tails, heavy_members, left_tail,
    terrible_examples, too_few, open_sign, dominating, large_slack, collapsed, apart,
)  # fmt: skip


def sentences(about: Evidence) -> list[str]:
    """What the verdicts say; one sentence on what was looked at where none of them speaks."""
    said = [sentence for verdict in VERDICTS if (sentence := verdict(about))]
    return said or [not_finite(about) or nothing_found(about)]


def nothing_found(about: Evidence) -> str:
    """What can be said where no verdict speaks: only what was looked at."""
    good = ["weights are finite"]
    k = about.at("pareto_k")
    if about.exact:
        good.append(
            "every draw has the same weight (the members are exact"
            + (", so one alone says as much)" if about.size > 1 else ")")
        )
    elif np.isnan(k).all():
        good.append(
            f"how heavy their tails are is not known with {about.size * about.samples} draws (k-hat needs 25)"
        )
    else:
        good += ["tails light where known", "samples enough"]
    if about.size > 1 and not about.exact:
        good.append("members overlap and differ")
    return f"No warning: {', '.join(good)}."
