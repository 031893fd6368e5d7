"""What ``results/summary.json`` holds: plain JSON types; null stands for not a number."""

from typing import TYPE_CHECKING, TypedDict

if TYPE_CHECKING:  # it imports torch
    from miselbo.bounds.weights import Fitted

Row = dict[str, float]  # quantities by name, with ``_se``, ``_se_mc`` and the like


class RunProtocol(TypedDict, total=False):
    """What the numbers depend on; families and importers add keys of their own."""

    model: str
    dataset: str
    split: str
    seed: int
    fingerprint: str
    binarisation: str
    replicates: str
    log_normaliser: float | None
    normaliser_rule: str
    remark: str
    notes: list[str]
    num_data: int
    S: int
    L: int
    grid: list[int]
    evaluation_seed: int
    dtype: str
    versions: dict[str, str]


class Certificate(TypedDict):
    """Lower limits of the mean of log p(x), see :mod:`miselbo.bounds.certificate`; None where one is not finite."""

    confidence: float
    joint_bound: float | None
    best_member: float | None
    member: int
    num_data: int
    looks: int
    sentence: str


class Multilevel(TypedDict, total=False):
    """Levels of draws, each a row of numbers (``variance_<name>`` too), and what they cost against the full run."""

    levels: list[Row]
    pilot_passes: int
    passes: int
    full_passes: int
    goals: Row
    errors: Row
    sentence: str


class Annealed(TypedDict, total=False):
    """Annealing from the mixture against the joint bound of the same examples."""

    num_data: int
    annealed: float
    annealed_se: float
    annealed_se_mc: float
    joint_bound: float
    gain: float
    gain_se: float
    gain_low: float
    gain_high: float
    acceptance: float
    passes: int
    full_passes: int
    plan: dict[str, int]
    sentence: str


class Summary(TypedDict, total=False):
    """The whole."""

    headline: Row
    headline_finite: Row | None
    certificate: Certificate
    log_of_mean: dict[str, object]
    members: list[Row]
    protocol: RunProtocol
    trust: "Trust"
    cost: list[dict[str, object]]
    num_dims: int | None
    words: dict[str, str]
    sections: list[str]
    mixture_weights: "Fitted | None"
    worth: dict[str, object]
    weighted: dict[str, object]
    sandwich: dict[str, object]
    multilevel: Multilevel
    annealed: Annealed
    precision: dict[str, object]


# functional form: one key is no name
Trust = TypedDict(
    "Trust",
    {
        "share_pareto_k_above_0.7": float | None,
        "k_unknown": int,
        "median_ess": float | None,
        "largest_responsibility": float | None,
        "non_finite": int,
        "non_finite_index": list[int],
        "bound_non_finite": int,
        "bound_non_finite_index": list[int],
        "sentences": list[str],
    },
)
