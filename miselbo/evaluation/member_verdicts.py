"""Verdicts on the members: shares of the posterior, overlap, and densities that cannot be."""

import math

import numpy as np

from miselbo.evaluation.evidence import Evidence


def dominating(about: Evidence) -> str | None:
    """One member holds nearly all of the posterior of all examples."""
    shares = np.nanmean(about.values["responsibility"][:, -1], 0) if about.sound.any() else np.zeros(1)
    if about.size == 1 or not shares.max() > 0.9:
        return None
    return (
        f"One member dominates: q{shares.argmax() + 1} holds {shares.max():.0%} of the posterior, so the others add "
        "little but cost MISELBO through their equal weights (slack). Compare the joint bound and the mixture weights, "
        "and train the others longer or leave them out."
    )


def large_slack(about: Evidence) -> str | None:
    """Examples whose members share their posterior unequally, whichever member it is."""
    slack, use = about.at("slack"), about.sound & np.isfinite(about.at("slack"))
    variance = about.at("miselbo_var")
    use = use & np.isfinite(variance)
    if about.size == 1 or not use.any() or dominating(about):
        return None
    # shares from noisy means differ even where the members are equal: about half the variance of their logarithms
    noise = 0.5 * (about.size - 1) * variance[use]
    excess = slack[use] - noise
    error = about.number("slack_se_mc")
    if excess.mean() <= max(0.1, 0.0 if math.isnan(error) else 3 * error):
        return None
    largest = np.nanmax(about.values["responsibility"][use][:, -1], -1)
    return (
        f"Large slack: within an example the members share the posterior unequally (the largest share is "
        f"{largest.mean():.0%} on average, above 90% for {(largest > 0.9).mean():.0%} of the examples), so MISELBO "
        f"stays {slack[use].mean():.3g} nats below log p(x) however large L is. The joint bound has no slack."
    )


def impossible_jsd(about: Evidence) -> str | None:
    """JSD significantly below 0."""
    jsd, error = about.number("jsd"), about.number("jsd_se_mc")
    if math.isnan(error):
        error = about.number("jsd_se")
    if about.size == 1 or math.isnan(error) or not (jsd < -3 * error and jsd < -max(1e-9, about.scale)):
        return None
    return (
        f"Impossible JSD: {jsd:.3f} is more than 3 Monte Carlo errors ({error:.3f}) below 0, which no divergence is, "
        "so log_q cannot be that of the members that drew: look at its axes, or whether it was computed at another x."
    )


def impossible_densities(about: Evidence) -> str | None:
    """Identities that normalised densities obey at their own draws (:mod:`miselbo.bounds.checks`)."""
    if about.size == 1 or not (about.at("non_finite") == 0).any():
        return None
    off = _off_by_ratio(about) or _off_by_product(about)
    if not off:
        return None
    return (
        f"Impossible densities: {off}. So log_q cannot be that of the members that drew: not normalised, of another x, "
        "or with its axes in another order (log_q[n, s, l, j] is q_j at sample l of member s). A swap of members that "
        "are alike cannot be seen this way."
    )


def _off_by_ratio(about: Evidence) -> str:
    """Mean of q_j / q_mix over the mixture's draws away from 1, beyond an empirical Bernstein bound at 4 errors."""
    use = about.at("non_finite") == 0  # not by the bounds: that would choose by the draws
    ratio, variance = about.values["density_ratio"][use], about.values["density_ratio_var"][use]
    count, size = ratio.shape
    mean = ratio.mean(0) - 1
    spread = ratio.var(0, ddof=1) * count if count > 1 else np.full(size, math.nan)
    total = np.where(np.isnan(variance).any(0), spread, variance.sum(0))
    error = np.sqrt(total) / count
    beyond = np.abs(mean) - 4 * error - 19 * size / (count * size * about.samples)
    j = int(np.nanargmax(beyond)) if not np.isnan(beyond).all() else 0
    if not beyond[j] > about.scale:
        return ""
    return (
        f"over all members' draws the mean of q{j + 1} / q_mix is {1 + mean[j]:.4g} (standard error {error[j]:.2g}), "
        "and of normalised densities it is 1"
    )


def _off_by_product(about: Evidence) -> str:
    """Product over the examples of the mean of q_j / q_s, which exceeds 1e6 with probability at most 1e-6."""
    use = about.at("non_finite") == 0
    log_ratio = about.values["log_pair_ratio"][use].sum(0) - about.scale * use.sum()  # [s, j]
    s, j = np.unravel_index(np.nanargmax(log_ratio), log_ratio.shape)
    if not log_ratio[s, j] > math.log(1e6 * log_ratio.size):
        return ""
    return (
        f"at the draws of q{s + 1} the mean of q{j + 1} / q{s + 1} is too large in every example (the product over the "
        f"examples is e^{log_ratio[s, j]:.1f}), and of normalised densities it is at most 1"
    )


def collapsed(about: Evidence) -> str | None:
    """Members that are nearly one."""
    jsd = about.number("jsd")
    if about.size == 1 or not jsd < 0.01 or about.exact or impossible_jsd(about):
        return None
    return (
        "The members have collapsed to nearly one approximation (JSD near 0): scored as one mixture they are hardly "
        "better than one alone. Give them other seeds, other architectures or less shared training."
    )


def apart(about: Evidence) -> str | None:
    """Members that hardly overlap."""
    most = math.log(about.size)
    if about.size == 1 or not about.number("jsd") > 0.95 * most:
        return None
    return (
        f"The members hardly overlap (JSD near log S = {most:.3f}): at L = 1 the gain over the average is log S "
        "whatever the members are, so Delta says nothing about their quality. Judge by the joint bound and by the "
        "best single member."
    )
