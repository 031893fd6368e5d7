"""Which ``_target_`` a configuration that somebody else may have written can name: nothing that runs code of theirs.

Hydra calls whatever a node names in ``_target_``: an attacker's ``os.system``, ``pandas.read_pickle`` or a function of
this package that writes files. A stored configuration is therefore held to what ``conf/`` puts at the same key, and to
the classes of ``torch.distributions`` and ``torch.optim``; other packages need the user's word (``trust=[package]``).
"""

import re
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from miselbo.errors import InputError

# key of a node -> names it may have; ``a.b.*``: any public class or function that is defined in module a.b
PLACES: dict[str, tuple[str, ...]] = {
    "dataset": ("miselbo.data.*", "miselbo.data.density.DensityData", "miselbo.phylo.data.*"),
    "dataset.density": ("miselbo.data.densities.*",),
    "model.target": (
        "miselbo.models.nvae.*", "miselbo.models.vae.*", "miselbo.models.classical.*", "miselbo.phylo.vbpi.*",
    ),
    "model.approximation": (
        "miselbo.models.nvae.*", "miselbo.models.vae.*", "miselbo.models.gaussian.*", "miselbo.phylo.vbpi.*",
    ),
    "model.approximation.flow": ("miselbo.phylo.flows.*",),
    "model.fit": (
        "miselbo.training.fit.fit_members", "miselbo.training.vectorised.fit_together",
        "miselbo.phylo.training.fit_members",
    ),
    "model.objective.loss": ("miselbo.training.objectives.*",),
    "model.cost": ("miselbo.training.cost.forecast", "miselbo.phylo.cost.forecast"),
    "trainer": ("pytorch_lightning.Trainer",),
    "trainer.plugins": ("pytorch_lightning.plugins.environments.SLURMEnvironment",),
    "logger.wandb": ("miselbo.runs.wandb_run.WandbRun",),
    "logger.tensorboard": ("pytorch_lightning.loggers.TensorBoardLogger",),
    "logger.mlflow": ("pytorch_lightning.loggers.MLFlowLogger",),
    "study": tuple(f"miselbo.commands.experiments.{name}.run" for name in ("table2", "figure3", "failure", "table4")),
}  # fmt: skip
# names in run folders of earlier versions
RENAMED = {
    "miselbo.costs.forecast": "miselbo.training.cost.forecast",
    "miselbo.phylo.costs.forecast": "miselbo.phylo.cost.forecast",
    **{f"miselbo.experiments.{name}.run": f"miselbo.commands.experiments.{name}.run"
       for name in ("table2", "figure3", "failure", "table4")},
}  # fmt: skip
ANYWHERE = ("torch.distributions", "torch.distributions.transforms", "torch.distributions.constraints",
            "torch.optim", "torch.optim.lr_scheduler")  # fmt: skip


def check_target(key: str, name: object, trust: Iterable[str] = ()) -> None:
    """Refuse a ``_target_`` that may not be named where it is.

    The name is compared before anything is imported, for an import runs code too; what a pattern or a trusted package
    lets through is looked up, and refused when it comes from elsewhere (``miselbo.data.os.system``).

    Args:
        key: of the node that holds it, such as ``dataset.density`` or ``model.members[0]``.
        name: value of ``_target_``.
        trust: packages or modules the user vouches for.

    Raises:
        InputError: naming the key.

    Example:
        >>> check_target("dataset", "miselbo.data.digits")
        >>> check_target("dataset", "os.system")
        Traceback (most recent call last):
        ...
        miselbo.errors.InputError: dataset._target_ names os.system, ... trust=[os]...
    """
    if not isinstance(name, str) or not re.fullmatch(r"[^\W\d]\w*(\.[^\W\d]\w*)+", name):
        raise InputError(f"{key}._target_ must be the dotted name of a class or function, got {short(name)}")
    trusted = tuple(trust)
    if any(within(name, package) for package in trusted):
        found = look_up(key, name)
        if foreign := strangers(found, (*trusted, "miselbo", "functools", *ANYWHERE)):
            raise InputError(
                f"{key}._target_ names {short(name)}, which belongs to {foreign}, not to what trust= names "
                f"({', '.join(trusted)}): add it, trust=[{foreign}], only if you know what it does"
            )
        return
    places = PLACES.get(re.sub(r"^model\.members\[\d+\]", "model.approximation", key), ())
    if name in places:
        return
    module, _, last = name.rpartition(".")
    pattern = f"{module}.*" in places
    if not last.startswith("_") and (
        pattern or (module in ANYWHERE and key.split(".")[0] in ("dataset", "model"))
    ):
        found = look_up(key, name)
        if not strangers(found, (module,)) and (
            isinstance(found[-1], type) or pattern and callable(found[-1])
        ):
            return
    root = name.split(".")[0]
    raise InputError(
        f"{key}._target_ names {short(name)}, and a stored configuration may name only what conf/ names there, so "
        f"that opening a folder runs no code of its author's; nothing was run. If you know what it does: trust=[{root}]"
    )


def look_up(key: str, name: str) -> list[object]:
    """Everything on the way from the module, the longest that can be imported, to the object a name stands for.

    Raises:
        InputError: there is no such thing.
    """
    parts = name.split(".")
    found: list[object] = [import_module_or_refuse(key, name, parts[0])]
    for number, part in enumerate(parts[1:], start=2):
        if not hasattr(found[-1], part) and isinstance(found[-1], ModuleType):
            found.append(import_module_or_refuse(key, name, ".".join(parts[:number])))
        elif not hasattr(found[-1], part):
            raise InputError(f"{key}._target_ names {short(name)}, which does not exist")
        else:
            found.append(getattr(found[-1], part))
    return found


def import_module_or_refuse(key: str, name: str, module: str) -> ModuleType:
    """A module; InputError when it cannot be imported."""
    try:
        return import_module(module)
    except Exception as error:  # whatever a user's module raises
        raise InputError(f"{key}._target_ names {short(name)}, which cannot be imported: {error}") from None


def strangers(found: list[object], homes: tuple[str, ...]) -> str:
    """Name of the first module outside ``homes`` that a name leads through or ends in; empty without one."""
    for step in found:
        root = isinstance(step, ModuleType) and any(within(home, step.__name__) for home in homes)
        home = step.__name__ if isinstance(step, ModuleType) else getattr(step, "__module__", None)
        if home is None:  # a bound method of a builtin, such as list.append
            home = type(getattr(step, "__self__", step)).__module__
        if not root and not any(within(str(home), place) for place in homes):
            return str(home)
    return ""


def within(name: str, package: str) -> bool:
    """Whether a dotted name is the package or in it.

    Example:
        >>> within("my_model.Decoder", "my_model"), within("my_models.Decoder", "my_model")
        (True, False)
    """
    return name == package or name.startswith(f"{package}.")


def short(value: object) -> str:
    """A value from a file, at a length that can be printed."""
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
