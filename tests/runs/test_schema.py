"""Every key of conf/ has a range, every default is in it, and what is not is refused before any work."""

import functools
import math

import pytest
import runs
from omegaconf import OmegaConf

from miselbo.errors import InputError
from miselbo.pipeline import run
from miselbo.runs import checks, schema
from miselbo.runs.config import CONF, compose_config, flatten
from miselbo.runs.plain import plain

NAN, INF = math.nan, math.inf
MOSTLY_BAD = [
    {"a": 1},
    [],
    [[]],
    [None],
    NAN,
    INF,
    -INF,
    -0.0,
    -7,
    -0.5,
    2**70,
    True,
    "",
    " ",
    "a\nb",
    None,
    2.5,
    "7",
    "red",
]
WORDS_TOO = {  # of keys with a number in conf/: what else is right there
    "ensemble.workers": ("auto",), "evaluation.workers": ("auto",), "trainer.devices": ("auto", "7"),
    "model.target.num_preprocess_blocks": ("auto",),
}  # fmt: skip
FRACTIONS = {  # numbers with a fraction above 1 are right
    "ensemble.resume_interval", "ensemble.joint_learning_rate", "evaluation.stop_at_se", "sampling.temperature",
    "trainer.gradient_clip_val",
}  # fmt: skip


@functools.cache
def configurations():
    """One for every file of every group."""
    found = {}
    for path in sorted(CONF.glob("*/*.yaml")):
        more = ["dataset.density._target_=my_module.log_p"] if path.stem == "density" else []
        found[f"{path.parent.name}={path.stem}"] = compose_config(
            [f"{path.parent.name}={path.stem}", "run_dir=x", *more]
        )
    return found


@functools.cache
def leaves():
    """Every key with all the values it has in conf/."""
    values = {}
    for cfg in configurations().values():
        for key, value in flatten(OmegaConf.to_container(cfg, resolve=True)).items():
            if not isinstance(value, dict):
                values.setdefault(key, []).append(value)
    return values


def test_no_key_is_without_a_check():
    assert (
        sorted(leaves().keys() - schema.SCHEMA.keys() - {"study", "dataset.fixed"} - schema.MAY_BE_NULL) == []
    )
    assert sorted(schema.SCHEMA.keys() - leaves().keys()) == []


@pytest.mark.parametrize("choice", [f"{p.parent.name}={p.stem}" for p in sorted(CONF.glob("*/*.yaml"))])
def test_all_of_conf_passes(choice):
    checks.check_values(configurations()[choice])


def bad(key):
    """Values that cannot be right at a key, found from what conf/ has there, not from the schema."""
    values = leaves()[key]
    kinds = {type(value) for value in values}
    if key in ("trainer.max_time", "model.approximation.fixed", "model.approximation.initial"):
        return []
    if kinds & {int, float} and not kinds & {list, bool}:
        floats = float in kinds or key in FRACTIONS
        right = (
            [2.5]
            if floats
            and not key.endswith(
                ("portion", "share", ".decay", "keep", "_start", "weight_min", "ess", "confidence")
            )
            else []
        )
        right += [None] * (None in values or key == "num_threads") + [*WORDS_TOO.get(key, ())]
        right += [-7, -0.5, -0.0] if key in ("dataset.density.mean", "dataset.density.covariance") else []
        right += [2**70] if floats else []
        return [v for v in MOSTLY_BAD if not any(type(v) is type(r) and repr(v) == repr(r) for r in right)]
    if kinds == {bool}:
        return [v for v in MOSTLY_BAD if v is not True]
    if list in kinds:
        return [[[]], [None], NAN, -0.5, True, "", "red", [NAN], ["red", 1], {"a": 1}] + [[]] * (
            "tags" not in key
        )
    if kinds == {str}:
        free = key.endswith("_target_") or schema.SCHEMA[key].fits("red")
        return [
            v
            for v in MOSTLY_BAD
            if not (free and v in ("7", "red")) and not (key == "from_run" and v is None)
        ]
    found = [{"a": 1}, [[]], ["", 3], NAN, INF, -0.0, -0.5, ""]  # null in conf/: a number, a path or a word
    return [*found[:5], "", 2.5] if key == "dataset.evidence.claimed" else found  # a log-probability


@pytest.mark.parametrize("key", sorted(schema.SCHEMA))
def test_what_cannot_be_is_refused(key):
    for value in bad(key):
        with pytest.raises(InputError) as caught:
            schema.SCHEMA[key].check(key, value)
        assert key in str(caught.value) and len(str(caught.value)) < 400, value


@pytest.mark.parametrize(
    ("choice", "key", "value"),
    [
        ("model=vae", "trainer.limit_val_batches", -1), ("model=vae", "trainer.accumulate_grad_batches", 0),
        ("model=vae", "trainer.limit_train_batches", 1.5), ("model=vae", "trainer.limit_train_batches", True),
        ("model=vae", "evaluation.samples_per_pass", True), ("model=vae", "evaluation.num_samples", 2**31),
        ("model=vae", "run_dir", None), ("model=vae", "model.objective.learning_rate", -1),
        ("model=vae", "model.objective.learning_rate", NAN), ("model=vae", "model.objective.learning_rate", INF),
        ("model=vae", "model.objective.kl_constant_portion", 1.1), ("model=vae", "ensemble.resume_interval", -1),
        ("model=vae", "ensemble.joint_epoch_share", 0), ("model=vae", "ensemble.joint_learning_rate", NAN),
        ("model=vae", "model.member_epoch_share", 0.0), ("model=vae", "trainer.accelerator", "abacus"),
        ("model=vae", "dataset.likelihood", "poisson"), ("model=vae", "trainer.max_steps", 0),
        ("model=vae", "trainer.max_time", {"hours": NAN}), ("model=vae", "evaluation", None),
        ("model=vae", "trainer", {"max_time": "1:2"}), ("model=vae", "model.target", [1]), ("model=vae", "seed", -0.0),
        ("model=vbpi", "model.objective.decay", 0), ("model=vbpi", "dataset.support", None),
        ("model=vbpi", "model.target.substitution.frequencies", [0.5, 0.5]), ("experiment=table2", "study.epochs", 0),
    ],
)  # fmt: skip
def test_a_run_refuses_before_it_does_anything(tmp_path, monkeypatch, choice, key, value):
    monkeypatch.chdir(tmp_path)
    cfg = configurations()[choice].copy()
    OmegaConf.set_struct(cfg, False)
    OmegaConf.update(cfg, key, value, merge=False)
    with pytest.raises(InputError, match=key.split(".")[-1]):
        run(cfg)
    assert not [*tmp_path.iterdir()]


def test_what_is_right_stays_right():
    for key, values in {
        "model.objective.kl_constant_portion": (0.0, 0, 1), "trainer.limit_train_batches": (0.1, 3, 1.0),
        "trainer.devices": ("auto", -1, "0,2", [0, 1], 2), "evaluation.grid": (None, [1, 2]),
        "trainer.max_steps": (-1, 9),
        "dataset.size": (None, 64, [48, 64]), "checkpoints": (None, "a.pt", ["a.pt", "b c.pt"]),
        "dataset.root": ("/data/Bücher und mehr", "~/x", "a\udcffb"),
    }.items():  # fmt: skip
        for value in values:
            schema.SCHEMA[key].check(key, value)


def test_arguments_of_other_packages_are_theirs():
    cfg = configurations()["model=vae"].copy()
    OmegaConf.set_struct(cfg, False)
    cfg.dataset._target_, cfg.dataset.size = "my_data.sounds", "ten seconds"
    cfg.model.target = {"_target_": "my_model.Decoder", "num_channels": "many"}
    cfg.model.fit._target_, cfg.model.objective.learning_rate = "my_model.fit", "adaptive"
    schema.check(plain(cfg))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["trainer.limit_train_batches=0"], r"limit_train_batches=0 leaves none of the 2 training batches"),
        (
            ["trainer.limit_train_batches=0.1"],
            r"limit_train_batches=0.1 leaves none of the 2 training batches",
        ),
        (["trainer.limit_val_batches=0.2"], r"limit_val_batches=0.2 leaves none of the 1 validation batches"),
        (["evaluation.dtype=bfloat16"], "evaluation.dtype=bfloat16 is there for NVAE"),
        (["evaluation.compile=true"], "evaluation.compile=true is there for NVAE"),
        (["ensemble.sampled=9"], "ensemble.sampled is how many of the 5"),
    ],
)
def test_what_the_data_and_the_model_decide_is_refused_before_the_folder_is_claimed(
    tmp_path, overrides, words
):
    with pytest.raises(InputError, match=words):
        runs.fit(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_a_trainer_that_cannot_be_built_is_refused_before_the_folder_is_claimed(tmp_path):
    cfg = runs.configure(tmp_path / "run")
    OmegaConf.set_struct(cfg, False)
    cfg.trainer.no_such_argument = 1
    with pytest.raises(InputError, match="trainer: .*no_such_argument"):
        run(cfg)
    assert not (tmp_path / "run").exists()
