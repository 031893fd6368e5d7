"""Every key of ``conf/`` with the values it may have: nothing is trained, written or built on a value out of range.

A new key in ``conf/`` needs its line here (``tests/runs/test_schema.py`` says which one lacks). Keys of your own yaml
files that stand below a ``_target_`` of your own package are your class's to check.
"""

import re
from collections.abc import Mapping

from miselbo.errors import InputError
from miselbo.importers.nvlabs import DECODERS
from miselbo.runs.rules import AUTO, FLAG, FREE, Rule, either, many, maybe, name, number, text, whole, word
from miselbo.runtime import stopping

IMPORTERS = ("arrays", "nvlabs")
TASKS = ("run", "fit_member", "evaluate", "report", "cost", "export", "sample", "sandwich", "sweep_report", "log",
         "compare", "check", "index", "new")  # fmt: skip
COUNT, ZERO, SEED = whole(1), whole(0), whole(0, 2**63 - 1)
POSITIVE, NOT_NEGATIVE, SHARE, PORTION = number(above=0), number(0), number(above=0, high=1), number(0, 1)
TARGET, NUMBERS = text(), many(number())
SPLIT = word("test", "validation")
WORKERS = either(AUTO, whole(1, 4096))
DEVICES = Rule(
    "be a whole number of at least 1, -1, 'auto' or a list of GPUs such as [0,2]",
    lambda value: (
        value == "auto"
        or whole(1, 4096).fits(value)
        or (type(value) is int and value == -1)
        or (isinstance(value, str) and bool(re.fullmatch(r"-1|\d+(,\d+)*,?", value)))
        or many(whole(0, 4096)).fits(value)
    ),
)
FILES = Rule(
    "list files, as in 'checkpoints=[a.pt,b.pt]'",
    lambda value: value == [] or either(text(), many(text())).fits(value),
)
BATCHES = Rule(
    "be a share from 0 to 1, or a whole number of batches",
    lambda value: whole(0).fits(value) or (isinstance(value, float) and PORTION.fits(value)),
)
TREES = {  # dataset.support
    "method": word("file", "iqtree", "nj", "all", "auto"), "file": maybe(either(text(), many(text()))),
    "replicates": COUNT, "trees": COUNT,
    "burn_in": either(ZERO, number(0, 0.9999)), "unresolved": word("skip", "random", "refuse"),
    "nj_trees": COUNT, "keep": SHARE,
}  # fmt: skip
WANDB = {
    "project": text(), "entity": maybe(text()), "group": maybe(text()), "checkpoints": FLAG, "notes": maybe(text()),
    "mode": word("auto", "online", "offline", "disabled"), "job_type": maybe(text()),
    "tags": Rule("list words", lambda value: isinstance(value, list) and all(map(text().fits, value))),
}  # fmt: skip
SCHEMA: dict[str, Rule] = {
    "task": word(*TASKS), "member": maybe(COUNT), "importer": maybe(word(*IMPORTERS)),
    "checkpoints": maybe(FILES), "target": word(*DECODERS), "scores": maybe(text()),
    "seed": SEED, "run_dir": text(), "sweep_dir": maybe(text()), "report": FLAG, "json": FLAG, "sandwich": FLAG,
    "optimized_metric": text(),  # see checks.check_optimized
    "from_run": Rule("be auto, a run folder or null", maybe(text()).fits),
    "runs": maybe(many(text())), "members": maybe(many(text())), "allow": maybe(many(text())),
    "num_threads": maybe(whole(1, 4096)),
    # evaluation
    "evaluation.split": Rule(SPLIT.words, SPLIT.fits), "evaluation.num_samples": COUNT,
    "evaluation.confidence": number(above=0, high=0.999999),
    "evaluation.grid": maybe(many(COUNT)), "evaluation.samples_per_pass": maybe(COUNT), "evaluation.batch_size": COUNT,
    "evaluation.num_examples": maybe(COUNT), "evaluation.seed": maybe(SEED),
    "evaluation.dtype": word("float32", "bfloat16", "float64"), "evaluation.compile": FLAG,
    "evaluation.workers": WORKERS, "evaluation.save_scores": FLAG,
    "evaluation.stop_at_se": maybe(either(AUTO, POSITIVE)), "evaluation.num_pictures": ZERO,
    "evaluation.method": word("full", "multilevel", "annealed"), "evaluation.precision": maybe(POSITIVE),
    "evaluation.refine_steps": ZERO,
    "evaluation.annealed.temperatures": COUNT, "evaluation.annealed.chains": COUNT,
    "evaluation.annealed.leapfrog": COUNT, "evaluation.annealed.num_examples": maybe(COUNT),
    "sampling.num": COUNT, "sampling.temperature": POSITIVE, "sampling.readjust_batches": ZERO,
    "sampling.batch_size": whole(2), "sampling.columns": maybe(COUNT), "sampling.seed": maybe(SEED),
    "sampling.weighted": FLAG, "dataset.outgroup": maybe(either(text(), many(text()))),
    "model.target.inferred.model": maybe(word("jc69", "k80", "hky", "gtr")), "model.target.inferred.gamma": FLAG,
    "model.target.inferred.invariable": FLAG,
    "model.target.inferred.frequencies": maybe(either(word("empirical"), many(POSITIVE, 4))),
    "model.target.inferred.num_categories": whole(1, 64),
    # training
    "ensemble.size": whole(1, 10_000), "ensemble.monitor_samples": COUNT, "ensemble.resume_interval": NOT_NEGATIVE,
    "ensemble.workers": WORKERS, "ensemble.objective": word("independent", "mixture"),
    "ensemble.estimator": word("all_to_all", "some_to_all", "some_to_some"), "ensemble.sampled": maybe(COUNT),
    "ensemble.joint_epoch_share": SHARE, "ensemble.joint_learning_rate": POSITIVE,
    "trainer._target_": TARGET, "trainer.accelerator": word("auto", "cpu", "gpu", "cuda", "mps"),
    "trainer.devices": DEVICES, "trainer.num_nodes": whole(1, 4096),
    "trainer.strategy": word("auto", "ddp", "ddp_fork"),
    "trainer.precision": word("32-true", "64-true", "16-mixed", "bf16-mixed"), "trainer.max_epochs": COUNT,
    "trainer.max_steps": either(COUNT, Rule("be -1", lambda value: type(value) is int and value == -1)),
    "trainer.max_time": FREE,  # see check
    "trainer.limit_train_batches": BATCHES, "trainer.limit_val_batches": BATCHES,
    "trainer.check_val_every_n_epoch": maybe(COUNT), "trainer.accumulate_grad_batches": COUNT,
    "trainer.gradient_clip_val": maybe(NOT_NEGATIVE), "trainer.sync_batchnorm": FLAG,
    "trainer.num_sanity_val_steps": whole(-1), "trainer.log_every_n_steps": ZERO, "trainer.enable_progress_bar": FLAG,
    "trainer.plugins._target_": TARGET, "trainer.plugins.auto_requeue": FLAG,
    **{f"logger.{prefix}{key}": rule for prefix in ("", "wandb.") for key, rule in WANDB.items()},
    **dict.fromkeys((f"logger.tensorboard.{key}" for key in ("_target_", "save_dir", "name", "version")), text()),
    **dict.fromkeys((f"logger.mlflow.{key}" for key in ("_target_", "experiment_name", "run_name",
        "tracking_uri")), text()), "logger.wandb._target_": TARGET,
    # models
    "model.name": name(), "model.max_epochs": COUNT, "model.member_epoch_share": SHARE,
    "model.target._target_": TARGET, "model.approximation._target_": TARGET, "model.fit._target_": TARGET,
    "model.fit._partial_": FLAG, "model.cost._target_": TARGET, "model.cost._partial_": FLAG,
    **dict.fromkeys((f"model.target.{key}" for key in ("num_latent_scales", "num_groups_per_scale",
        "num_latent_per_group", "min_groups_per_scale", "num_channels", "num_mixtures", "num_latents")), COUNT),
    "model.target.ada_groups": FLAG, "model.target.num_preprocess_blocks": either(AUTO, ZERO),
    "model.target.num_postprocess_cells": ZERO, "model.target.num_cells_per_group": ZERO, "model.target.arch": text(),
    "model.target.use_se": FLAG, "model.approximation.num_channels": COUNT,
    "model.approximation.num_preprocess_cells": ZERO, "model.approximation.num_cells_per_group": ZERO,
    "model.approximation.arch": text(), "model.approximation.use_se": FLAG, "model.approximation.res_dist": FLAG,
    "model.approximation.num_flows": ZERO, "model.members": maybe(Rule("list a node for each member",
        lambda value: isinstance(value, list) and all(node is None or isinstance(node, dict) for node in value))),
    "model.objective.learning_rate": POSITIVE, "model.objective.learning_rate_min": NOT_NEGATIVE,
    "model.objective.warmup_epochs": ZERO, "model.objective.weight_decay": NOT_NEGATIVE,
    "model.objective.kl_anneal_portion": PORTION, "model.objective.kl_constant_portion": PORTION,
    "model.objective.kl_weight_min": PORTION, "model.objective.regulariser": NOT_NEGATIVE,
    "model.objective.loss._target_": TARGET, "model.objective.loss._partial_": FLAG,
    "model.objective.regulariser_initial": maybe(NOT_NEGATIVE), "model.objective.max_skipped_steps": COUNT,
    # classical
    "model.approximation.family": text(), "model.approximation.fixed": FREE, "model.approximation.initial": FREE,
    "model.approximation.spread": NOT_NEGATIVE, "model.approximation.seed": maybe(SEED),
    "model.objective.learning_rate_end": NOT_NEGATIVE, "model.objective.steps_per_epoch": COUNT,
    "model.objective.num_samples": COUNT,
    # phylogenetics
    "model.target.branch_rate": POSITIVE, "model.target.substitution.model": word("jc69", "hky", "gtr"),
    "model.target.substitution.kappa": maybe(POSITIVE), "model.target.substitution.rates": maybe(many(POSITIVE, 6)),
    "model.target.substitution.frequencies": maybe(many(POSITIVE, 4)),
    "model.target.substitution.gamma_shape": maybe(POSITIVE), "model.target.substitution.num_categories": COUNT,
    "model.approximation.largest_scale": maybe(POSITIVE), "model.objective.dreg": FLAG,
    "model.objective.second_stage_tree": maybe(many(POSITIVE, 2)),
    "model.objective.second_stage_branch": maybe(many(POSITIVE, 2)), "model.objective.rounds": COUNT,
    "model.objective.enough_ess": SHARE, "model.objective.least_gain": NOT_NEGATIVE,
    "model.objective.refit": ZERO,
    "model.approximation.start": POSITIVE, "model.approximation.flow._target_": TARGET,
    "model.approximation.flow._partial_": FLAG, "model.approximation.flow.layers": COUNT,
    "model.approximation.flow.hidden": COUNT, "model.objective.num_particles": COUNT,
    "model.objective.learning_rate_tree": POSITIVE, "model.objective.learning_rate_branch": POSITIVE,
    "model.objective.decay": SHARE, "model.objective.num_decays": ZERO, "model.objective.anneal_start": SHARE,
    "model.objective.anneal_portion": PORTION,
    # data
    "dataset._target_": TARGET, "dataset.name": name(), "dataset.root": maybe(text()), "dataset.path": maybe(text()),
    "dataset.cache": maybe(text()), "dataset.posterior": maybe(text()), "dataset.download": maybe(FLAG),
    "dataset.size": maybe(either(COUNT, many(COUNT, 2))), "dataset.crop": maybe(either(COUNT, many(ZERO, 4))),
    "dataset.channels": maybe(Rule("be 1 or 3", lambda value: type(value) is int and value in (1, 3))),
    "dataset.validation_share": PORTION, "dataset.test_share": PORTION,
    "dataset.likelihood": word("bernoulli", "logistic_mixture", "normal"), "dataset.num_bits": whole(1, 8),
    "dataset.flip": FLAG, "dataset.batch_size": COUNT, "dataset.evaluation_batch_size": COUNT,
    "dataset.num_train": maybe(ZERO), "dataset.num_validation": maybe(ZERO), "dataset.num_test": maybe(ZERO),
    "dataset.binarisation_seed": SEED, "dataset.num_workers": whole(0, 4096), "dataset.replicates": COUNT,
    **{f"dataset.support.{key}": rule for key, rule in TREES.items()},
    "dataset.evidence.chains": maybe(either(text(), many(text()))), "dataset.evidence.claimed": maybe(number(high=0)),
    "dataset.evidence.burn_in": TREES["burn_in"], "dataset.evidence.runs": whole(2, 1000),
    "dataset.evidence.generations": whole(1000),
    "dataset.max_epochs": COUNT, "dataset.fixed.scale": POSITIVE, "dataset.dim": COUNT,
    "dataset.box": maybe(many(many(number(), 2))), "dataset.normaliser": word("space", "box"),
    "dataset.density._target_": TARGET, "dataset.density._partial_": FLAG, "dataset.density.means": NUMBERS,
    "dataset.density.sds": many(POSITIVE), "dataset.density.weights": maybe(many(NOT_NEGATIVE)),
    "dataset.density.median": NUMBERS, "dataset.density.variance": POSITIVE, "dataset.density.covariance": number(),
    "dataset.density.mean": number(), "dataset.density.sd": POSITIVE, "dataset.density.conditional_sd": POSITIVE,
    "dataset.density.dim": COUNT, "dataset.density.num_observed": COUNT, "dataset.density.seed": SEED,
    # experiments of several runs
    "study._target_": TARGET, "study._partial_": FLAG, "study.results": text(), "study.name": name(),
    **dict.fromkeys((f"study.{key}" for key in ("size", "epochs", "steps_per_epoch", "num_samples",
        "evaluation_samples")), COUNT),
    "study.replicates": either(COUNT, many(COUNT)), "study.workers": whole(1, 4096), "study.means": NUMBERS,
    "study.deviations": many(POSITIVE), "study.levels": many(COUNT), "study.anchor_factor": COUNT,
    "study.sets": many(text()),
}  # fmt: skip
NODES = {key.rsplit(".", n)[0] for key in SCHEMA for n in range(1, key.count(".") + 1)}
MAY_BE_NULL = {
    "study",
    "dataset.fixed",
    "model.cost",
    "model.approximation.flow",
    "model.objective.loss",
    "trainer.plugins",
}
OWN = ("miselbo.", "pytorch_lightning.")  # whose arguments SCHEMA knows


def check(config: Mapping[str, object]) -> None:
    """Refuse a configuration with a value that no run can have.

    Raises:
        InputError: naming the key, what it must be, and what it is.
    """
    check_node(config, "")
    trainer = config["trainer"]
    stopping.seconds(trainer.get("max_time") if isinstance(trainer, Mapping) else None)


def check_node(node: Mapping[str, object], prefix: str) -> None:
    """:func:`check` for the keys of a node and those below; ``prefix`` is its own key with a dot."""
    for last, value in node.items():
        key = f"{prefix}{last}"
        if key in SCHEMA:
            SCHEMA[key].check(key, value)
        elif key in NODES and not (value is None and key in MAY_BE_NULL):
            if not isinstance(value, dict):
                raise InputError(f"{key} must hold several keys, see conf/, got {value!r}")
            foreign = key == "model.objective" and not is_own(node.get("fit"))
            if is_own(value) and not foreign:
                check_node(value, f"{key}.")


def is_own(node: object) -> bool:
    """Whether a node is not for a class or function of another package.

    Example:
        >>> is_own({"_target_": "miselbo.models.vae.Decoder"}), is_own({"_target_": "my_model.Decoder"}), is_own({})
        (True, False, True)
    """
    name = node.get("_target_") if isinstance(node, dict) else None
    return not isinstance(name, str) or name.startswith(OWN)
