"""The first lines of the report: title, protocol, the result in a sentence, and how far to trust it."""

import math

from miselbo.report import texts
from miselbo.report.folder import RunFolder, number
from miselbo.report.tables import plus_minus, significant

_PROTOCOL_WORDS = {
    "binarisation": "binarisation:",
    "replicates": "replicates:",
    "image": "image:",
    "split_rule": "split rule:",
    "dtype": "dtype",
}


def title(run: RunFolder) -> str:
    """Model and data set, as far as the protocol names them."""
    parts = [str(run.protocol[key]) for key in ("model", "dataset") if run.protocol.get(key)]
    return "MISELBO report" + (": " + " on ".join(parts) if parts else "")


def short_protocol(run: RunFolder) -> str:
    """The protocol in a few words, printed on every figure."""
    has = run.protocol
    words = [f"{has.get('dataset', '')} {has.get('split', '')}".strip()]
    words += [f"{has['num_data']} examples"] if "num_data" in has else []
    words += [f"S = {run.size}, L = {run.num_samples}"]
    words += [f"seed {has['seed']}"] if "seed" in has else []
    words += [str(has["remark"])] if has.get("remark") else []
    return ", ".join(word for word in words if word)


def protocol_line(run: RunFolder) -> str:
    """The protocol in one line: what was scored, how, and under which fingerprint."""
    has = run.protocol
    words = [short_protocol(run)]
    named = {name: has.get(key) for key, name in _PROTOCOL_WORDS.items()}
    words += [f"{name} {value}" for name, value in named.items() if value not in (None, "")]
    return "; ".join(words)


def glance(run: RunFolder) -> str:
    """The result in a few sentences: is the ensemble worth it, its bounds, what is certified."""
    has = run.summary
    parts = (has.get("worth"), has.get("log_of_mean"), has.get("certificate"))
    first, *others = (str((part or {}).get("sentence") or "") for part in parts)
    return " ".join(filter(None, [first, _bounds(run), *others]))


def _bounds(run: RunFolder) -> str:
    """The bounds in one or two sentences; says *below* when Delta is negative."""
    row, size = run.headline, run.size
    value = plus_minus(row["miselbo"], row.get("miselbo_se"))
    if size == 1:
        return texts.paragraphs(texts.ONE_MEMBER, value=value)[0]
    delta = number(row["delta"])
    return texts.paragraphs(
        texts.GLANCE,
        size=size,
        value=value,
        gain=plus_minus(abs(delta), row.get("delta_se")),
        side="below" if delta < 0 else "above",
        jsd=plus_minus(row["jsd"], row.get("jsd_se")),
        most=f"{math.log(size):.3f}",
    )[0]


def trust(run: RunFolder) -> list[str]:
    """The run's own sentences about its weights, or its numbers when it has none."""
    has = run.summary.get("trust")
    if has is None:
        return []
    sentences = [str(sentence) for sentence in has.get("sentences") or []]
    if not sentences:
        ess, share = number(has.get("median_ess")), number(has.get("share_pareto_k_above_0.7"))
        if math.isfinite(ess):
            sentences.append(f"The median effective sample size is {significant(ess)}.")
        if math.isfinite(share):
            sentences.append(f"Pareto k is above 0.7 for {100 * share:.1f} % of the examples.")
    if number(has.get("non_finite")) > 0:
        sentences.append(f"Values that are not finite: {number(has['non_finite']):.0f}.")
    return sentences
