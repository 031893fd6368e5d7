"""Deep ensembles of variational approximations: train them, and measure them as one mixture.

The public names are loaded when they are asked for: ``from miselbo import Ensemble`` imports torch and nothing slower.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from miselbo import bounds as bounds
    from miselbo.ensemble import Ensemble as Ensemble
    from miselbo.errors import InputError as InputError
    from miselbo.evaluation.finished import Run as Run
    from miselbo.evaluation.finished import load_run as load_run
    from miselbo.evaluation.library import evaluate as evaluate
    from miselbo.evaluation.library import evaluate_scores as evaluate_scores
    from miselbo.evaluation.result import Result as Result
    from miselbo.importers.nvlabs import load_checkpoints as load_checkpoints
    from miselbo.pipeline import fit as fit
    from miselbo.pipeline import run as run
    from miselbo.protocols import Approximation as Approximation
    from miselbo.protocols import Target as Target
    from miselbo.runs.config import compose_config as compose_config
    from miselbo.runs.plan import TrainingPlan as TrainingPlan

__version__ = "0.1.0"
_PLACES = {
    "Approximation": "protocols",
    "Ensemble": "ensemble",
    "InputError": "errors",
    "Result": "evaluation.result",
    "Run": "evaluation.finished",
    "Target": "protocols",
    "TrainingPlan": "runs.plan",
    "compose_config": "runs.config",
    "evaluate": "evaluation.library",
    "evaluate_scores": "evaluation.library",
    "fit": "pipeline",
    "load_checkpoints": "importers.nvlabs",
    "load_run": "evaluation.finished",
    "run": "pipeline",
}
__all__ = ["__version__", "bounds", *_PLACES]  # noqa: PLE0604


def __getattr__(name: str) -> object:
    """A public name from the module that defines it (PEP 562)."""
    if name == "bounds":
        return import_module("miselbo.bounds")
    if name in _PLACES:
        return getattr(import_module(f"miselbo.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'miselbo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
