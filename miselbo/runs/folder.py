"""The run folder's own copy of its configuration: claiming, recognising and loading a folder."""

import os
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from miselbo.errors import InputError
from miselbo.runs.checks import checkpoint_paths
from miselbo.runs.config import (
    check_kind,
    check_overrides,
    compose_config,
    flatten,
    name_tail,
    parse,
    plain_value,
    split_trust,
    unknown_key,
)
from miselbo.runs.plain import plain
from miselbo.runs.stored import read_stored
from miselbo.runtime import faults
from miselbo.runtime.files import forget_temporaries, is_temporary, write_text

# what may differ between two commands on one run folder: it changes neither the members nor the data they see
FREE = (
    "task", "member", "run_dir", "sweep_dir", "num_threads", "evaluation", "sampling", "sandwich", "logger", "report",
    "optimized_metric", "from_run", "model.cost", "runs", "allow", "json",
    "ensemble.size", "ensemble.resume_interval", "ensemble.workers",
    "dataset.root", "dataset.evaluation_batch_size", "dataset.num_workers", "dataset.download", "dataset.cache",
    "dataset.replicates", "dataset.posterior", "dataset.evidence",
    "trainer.accelerator", "trainer.enable_progress_bar", "trainer.max_time", "trainer.log_every_n_steps",
)  # fmt: skip
# keys that run folders of older versions lack, and what they stood for there
ADDED = {
    "members": None,
    "dataset.likelihood": "bernoulli", "dataset.num_bits": 8, "model.target.num_mixtures": 10,
    "model.approximation.num_flows": 0, "model.objective.regulariser_initial": None,
    "trainer.sync_batchnorm": False, "ensemble.objective": "independent", "ensemble.estimator": "all_to_all",
    "model.objective.loss": None, "model.objective.num_samples": 1, "ensemble.sampled": None,
    "ensemble.joint_epoch_share": 0.25, "ensemble.joint_learning_rate": 1e-3,
    "model.target.substitution.model": "jc69", "model.target.substitution.num_categories": 4,
    "model.objective.refit": 0,
}  # fmt: skip


WRITTEN = (".hydra", ".locks", "members", "results", "results/shards", "results/scores", "curves", "figures")
OWN = (
    *(part.split("/")[0] for part in WRITTEN),
    "metrics.csv",
    "nvlabs",
    "samples",
    "report.html",
    "report.md",
    "report.tex",
)


def is_free(key: str) -> bool:
    """Whether a key may differ between two commands on one run folder.

    Example:
        >>> is_free("evaluation.num_samples"), is_free("seed")
        (True, False)
    """
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


def import_folder(
    importer: str, dataset: str, scores: str | None = None, checkpoints: object = None, decoder: str = "tied"
) -> Path:
    """Run folder of an import when none is named; for checkpoints, other files or settings give another one.

    Example:
        >>> import_folder("nvlabs", "mnist", checkpoints=["a/checkpoint.pt"]).as_posix()
        'outputs/nvlabs-a-mnist-...'
    """
    if importer == "arrays":
        return Path("outputs", f"arrays-{Path(str(scores)).stem}")
    paths = [path.expanduser().absolute() for path in checkpoint_paths(checkpoints)] or [Path("none")]
    first = paths[0]
    name = first.parent.name if first.stem == "checkpoint" else first.stem
    tail = name_tail(f"{' '.join(map(str, paths))} {decoder}")
    return Path("outputs", f"nvlabs-{name}-{dataset}{tail}")


def config_path(folder: Path) -> Path:
    """Where a run keeps its resolved configuration."""
    return folder / ".hydra" / "config.yaml"


def stored(folder: Path, trust: Iterable[str] | None = None) -> DictConfig:
    """The configuration in a run folder: values alone, see :func:`miselbo.runs.stored.read_stored`.

    Args:
        folder: run folder.
        trust: packages it may name in ``_target_``; None where nothing is built from it.

    Raises:
        InputError: the file is damaged, not of this project, or would run code of its author's.
    """
    return read_stored(config_path(folder), trust)


def check_folder(cfg: DictConfig, folder: Path) -> None:
    """Check that ``folder`` is this configuration's run folder or can become it.

    Raises:
        InputError: the folder holds something else, or a run of another configuration.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file: use another run_dir")
    if config_path(folder).exists():
        before, now = ADDED | identity(stored(folder)), ADDED | identity(cfg)
        differing = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
        trained = any((folder / "members").glob("*.ckpt"))  # before that, settings may still be corrected
        if differing and trained:
            listed = "; ".join(
                f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing[:5]
            )
            raise InputError(
                f"{folder} is the run folder of another configuration: {listed}. "
                "Use another run_dir, or the same settings to go on with this run."
            )
    elif folder.exists() and any(map(_is_content, folder.rglob("*"))):
        raise InputError(
            f"{folder} is not empty and is no run folder of miselbo (no .hydra/config.yaml): use another run_dir"
        )


def refuse_links(folder: Path) -> None:
    """Refuse a run folder with links where its commands write and delete: they would do so outside of it.

    A checkpoint may be a link, as it is replaced and not followed; so may the run folder itself.

    Raises:
        InputError: names the link.
    """
    for place in (folder, *(folder / part for part in WRITTEN)):
        if not place.is_dir() or place.is_symlink():
            continue
        for path in sorted(place.iterdir()):
            ours = path.name in OWN if place == folder else place.name != "members" or path.is_dir()
            if ours and path.is_symlink():
                raise InputError(
                    f"{path} is a link to {os.readlink(path)}: what this command writes or deletes there would be "
                    "outside the run folder. Put a folder or file in its place; the run folder itself may be a link."
                )


def _is_content(path: Path) -> bool:
    """Whether something in a folder is more than what a command leaves that failed before its first file."""
    return path.is_symlink() or (path.is_file() and path.parent.name != ".locks" and not is_temporary(path))


def claim_folder(cfg: DictConfig, folder: Path) -> None:
    """Make ``folder`` this configuration's run folder.

    Raises:
        InputError: as :func:`check_folder`, nothing is written then; or the folder cannot be written to.
    """
    check_folder(cfg, folder)
    refuse_links(folder)
    try:
        write_text(config_path(folder), OmegaConf.to_yaml(cfg, resolve=True))
    except OSError as error:
        raise InputError(
            f"cannot write to run_dir={folder}: {faults.explain(error) or error.strerror}"
        ) from None
    forget_temporaries(folder)


def quoted(path: Path) -> str:
    """A path as Hydra's command line takes it, whatever is in it.

    Example:
        >>> print(quoted(Path("a b=c")))
        'a b=c'
    """
    return "'" + str(path).replace("\\", "\\\\").replace("'", "\\'") + "'"


def identity(cfg: DictConfig) -> dict[str, object]:
    """What decides the members: all leaves but those in ``FREE``."""
    resolved = flatten(plain(cfg))
    return {key: value for key, value in resolved.items() if not isinstance(value, dict) and not is_free(key)}


def loggers_of(stored: DictConfig, folder: Path) -> dict[str, object]:
    """The stored loggers that write into the folder or to W&B alone; others might send to any server, so name them.

    Example:
        >>> node = {"_target_": "pytorch_lightning.loggers.MLFlowLogger", "tracking_uri": "http://elsewhere"}
        >>> loggers_of(OmegaConf.create({"mode": "auto", "mlflow": node}), Path("run"))
        {'mode': 'auto'}
    """
    content = plain(stored)
    if isinstance(content.get("tensorboard"), dict):
        content["tensorboard"]["save_dir"] = str(folder)
    return {k: v for k, v in content.items() if not isinstance(v, dict) or k in ("wandb", "tensorboard")}


def load_folder(folder: Path, arguments: list[str], trust: Iterable[str] = ()) -> DictConfig:
    """The configuration of an existing run with overrides for its evaluation.

    Args:
        folder: run folder.
        arguments: command-line overrides; ``task`` and ``run_dir`` among them are taken as they are, and
            ``trust=[package]`` adds to ``trust``.
        trust: packages whose classes and functions the stored configuration may name.

    Raises:
        InputError: no run folder, an unknown key, or one that decides what the members are.
    """
    if not config_path(folder).is_file():
        raise InputError(f"{folder} is no run folder: {config_path(folder)} does not exist")
    named, arguments = split_trust(arguments)
    own = stored(folder, (*trust, *named))
    fresh = compose_config([])  # a folder written by an older version lacks newer keys
    defaults = {key: fresh[key] for key in fresh if key not in ("model", "dataset", "run_dir")}
    cfg = OmegaConf.merge(defaults, own)
    assert isinstance(cfg, DictConfig)
    cfg.logger = loggers_of(cfg.logger, folder)
    overrides = parse(arguments)
    if any(override.key_or_group == "logger" for override in overrides):
        mine = [o for o in overrides if o.key_or_group.split(".")[0] == "logger"]
        overrides = [o for o in overrides if o not in mine]
        words = [str(o.input_line) for o in mine]
        check_overrides(words)
        cfg.logger = compose_config([*words, f"run_dir={quoted(folder)}"]).logger
    names = flatten(cfg)
    for override in overrides:
        key = override.key_or_group
        if override.is_sweep_override():
            raise InputError(
                f"{key} has several values: a command on an existing run folder takes one run at a time"
            )
        if key not in names:
            raise unknown_key(key, names)
        if not is_free(key):
            raise InputError(
                f"{key} decides what the members of {folder} are and cannot be changed for a trained run"
            )
        check_kind(override, names[key])
        OmegaConf.update(cfg, key, plain_value(override.value()))
    cfg.run_dir = str(folder)
    return cfg
