"""Bad configurations are refused before any work, in words that help; good ones compose."""

import pytest
import runs
from omegaconf import OmegaConf

from miselbo.errors import InputError
from miselbo.runs import checks, config
from miselbo.runs.folder import ADDED, check_folder, claim_folder, config_path, load_folder, stored


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("ensemble.sise=3", "unknown key 'ensemble.sise'; did you mean 'ensemble.size'"),
        ("sead=1", "did you mean 'seed'"),
        ("evaluation.num_sample=3", "did you mean 'evaluation.num_samples'"),
        ("model.objective.learningrate=1", "did you mean 'model.objective.learning_rate'"),
        ("num_samples=3", "did you mean 'evaluation.num_samples'"),
        ("+model.target.num_chanels=3", "did you mean 'model.target.num_channels'"),
        ("~ensemble.sise", "did you mean 'ensemble.size'"),
        ("modell=vae", "did you mean 'model'"),
        ("qqqqqq=1", "unknown key 'qqqqqq'; see conf/"),
    ],
)
def test_an_unknown_key_names_the_nearest(argument, hint):
    with pytest.raises(InputError) as caught:
        config.check_overrides([argument])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "hint"),
    [
        ("model=nvea", "unknown model=nvea; did you mean 'nvae'? known are "),
        ("dataset=minst", "did you mean 'mnist'"),
        ("logger=tensorbord", "did you mean 'tensorboard'"),
        ("trainer=dpp", "unknown trainer=dpp"),
        ("model=vae,nvea", "unknown model=nvea"),
        ("model=null", "unknown model=null"),
    ],
)
def test_an_unknown_choice_of_a_group_names_the_nearest(argument, hint):
    with pytest.raises(InputError) as caught:
        config.check_overrides([argument])
    assert hint in str(caught.value)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("model.objective.learning_rate=high", "learning_rate must be a number, got 'high'"),
        ("model.objective.learning_rate='0.1'", "learning_rate must be a number, got '0.1'"),
        ("ensemble.resume_interval=true", "resume_interval must be a number, got True"),
        ("model.target.ada_groups=2", "ada_groups must be true or false, got 2"),
        ("evaluation=5", "evaluation holds the keys split, num_samples"),
        ("model.target=vae", "model.target holds the keys"),
    ],
)
def test_a_value_of_another_kind_is_refused(argument, message):
    with pytest.raises(InputError) as caught:
        config.check_overrides([argument])
    assert message in str(caught.value)


@pytest.mark.parametrize("argument", ["ensemble.size", "ensemble.size=[1,"])
def test_what_is_no_override_is_refused(argument):
    with pytest.raises(InputError, match="cannot read the command line"):
        config.check_overrides([argument])


@pytest.mark.parametrize(
    "arguments",
    [
        ["model=vae", "model.target.num_latents=3"],
        ["dataset=mnist", "dataset.root=/no/where"],
        ["seed=0,1", "ensemble.size=2"],
        ["logger=wandb", "logger.project=mine"],
        ["trainer=ddp", "trainer.devices=auto"],
        ["num_threads=null", "evaluation.grid=[1,2]", "hydra.sweep.dir=elsewhere"],
        [
            "model.objective.learning_rate=1",
            "model.target.num_preprocess_blocks=2",
            "model.max_epochs=${seed}",
        ],
    ],
)
def test_known_keys_and_groups_pass(arguments):
    config.check_overrides(arguments)


GROUPS = [
    (folder.name, path.stem)
    for folder in sorted(config.CONF.iterdir())
    if folder.is_dir()
    for path in sorted(folder.glob("*.yaml"))
]


@pytest.mark.parametrize(("group", "choice"), GROUPS)
def test_every_file_composes_resolves_and_passes(group, choice):
    cfg = config.compose_config([f"{group}={choice}", "run_dir=anywhere"])
    checks.check_values(cfg)
    assert OmegaConf.to_container(cfg, resolve=True)["run_dir"] == "anywhere"
    if group in cfg and "name" in cfg[group]:
        assert cfg[group].name == choice


@pytest.mark.parametrize(
    "key", ["ensemble.size", "ensemble.monitor_samples", "trainer.max_epochs", "num_threads"]
)
@pytest.mark.parametrize("value", [0, -1, 2.5, "a", True])
def test_sizes_are_whole_numbers_of_at_least_one(key, value):
    cfg = config.compose_config(["run_dir=x"])
    OmegaConf.update(cfg, key, value)
    with pytest.raises(InputError, match=f"^{key} must be a whole number of at least 1.*, got {value!r}$"):
        checks.check_values(cfg)


def test_seed_and_task():
    with pytest.raises(InputError, match="seed must be a whole number of at least 0, got -1"):
        checks.check_values(config.compose_config(["run_dir=x", "seed=-1"]))
    with pytest.raises(InputError, match="unknown task=evalute; did you mean 'evaluate'"):
        checks.check_values(config.compose_config(["run_dir=x", "task=evalute"]))


def test_claiming_an_empty_or_new_folder_and_again(tmp_path):
    for folder in (tmp_path, tmp_path / "new" / "folder"):
        cfg = runs.configure(folder)
        claim_folder(cfg, folder)
        claim_folder(cfg, folder)
        assert OmegaConf.load(folder / ".hydra" / "config.yaml") == OmegaConf.create(
            OmegaConf.to_container(cfg, resolve=True)
        )


@pytest.mark.parametrize(
    ("override", "listed"),
    [
        ("seed=1", "seed was 0, now 1"),
        ("model.objective.learning_rate=0.5", "model.objective.learning_rate was 0.005, now 0.5"),
        ("dataset.num_train=32", "dataset.num_train was 64, now 32"),
        ("trainer.max_epochs=3", "trainer.max_epochs was 2, now 3"),
        ("dataset.binarisation_seed=1", "dataset.binarisation_seed was 0, now 1"),
    ],
)
def test_a_folder_of_another_configuration_is_left_alone(tmp_path, override, listed):
    claim_folder(runs.configure(tmp_path), tmp_path)
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "q1.ckpt").write_text("precious")
    before = runs.snapshot(tmp_path)
    with pytest.raises(InputError) as caught:
        claim_folder(runs.configure(tmp_path, override), tmp_path)
    assert listed in str(caught.value)
    assert "another configuration" in str(caught.value)
    assert runs.snapshot(tmp_path) == before


def test_an_untrained_folder_takes_corrected_settings(tmp_path):
    claim_folder(runs.configure(tmp_path), tmp_path)
    claim_folder(runs.configure(tmp_path, "model.objective.learning_rate=0.5"), tmp_path)
    assert stored(tmp_path).model.objective.learning_rate == 0.5


def test_a_folder_of_an_older_version_lacks_newer_keys(tmp_path):
    cfg = runs.configure(tmp_path, model=runs.NVAE)
    OmegaConf.set_struct(cfg, False)
    claim_folder(cfg, tmp_path)
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "q1.ckpt").touch()
    of_trees = ("model.target.substitution.", "model.objective.refit")  # tests/phylo
    for key, value in ADDED.items():
        if key.startswith(of_trees):
            continue
        group, _, name = key.rpartition(".")
        assert OmegaConf.select(cfg, key) == value  # the default has stayed what it was
        del OmegaConf.select(cfg, group)[name]
    OmegaConf.save(cfg, config_path(tmp_path))
    check_folder(runs.configure(tmp_path, model=runs.NVAE), tmp_path)
    with pytest.raises(InputError, match="model.approximation.num_flows was 0, now 1"):
        flows = "model.approximation.num_flows=1"
        check_folder(runs.configure(tmp_path, flows, model=runs.NVAE), tmp_path)


def test_another_model_lists_what_differs(tmp_path):
    claim_folder(runs.configure(tmp_path), tmp_path)
    (tmp_path / "members").mkdir()
    (tmp_path / "members" / "q1.ckpt").touch()
    with pytest.raises(
        InputError, match="model.approximation._target_ was 'miselbo.models.vae.Encoder', now"
    ):
        claim_folder(runs.configure(tmp_path, model=runs.NVAE), tmp_path)


@pytest.mark.parametrize(
    "override",
    [
        "ensemble.size=9",
        "evaluation.num_samples=9",
        "logger=tensorboard",
        "num_threads=2",
        "dataset.num_workers=1",
    ],
)
def test_what_changes_no_member_may_differ(tmp_path, override):
    claim_folder(runs.configure(tmp_path), tmp_path)
    claim_folder(runs.configure(tmp_path, override), tmp_path)


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = runs.snapshot(tmp_path)
    with pytest.raises(InputError, match="not empty and is no run folder"):
        claim_folder(runs.configure(tmp_path), tmp_path)
    assert runs.snapshot(tmp_path) == before


@pytest.mark.parametrize("content", ["a: [", "- 1\n", "name: of another project\n", ""])
def test_a_config_file_of_another_project_is_left_alone(tmp_path, content):
    claim_folder(runs.configure(tmp_path), tmp_path)
    config_path(tmp_path).write_text(content)
    before = runs.snapshot(tmp_path)
    for attempt in (
        lambda: claim_folder(runs.configure(tmp_path), tmp_path),
        lambda: load_folder(tmp_path, ["task=evaluate"]),
    ):
        with pytest.raises(InputError, match=r"config.yaml (cannot be read|is no configuration of miselbo)"):
            attempt()
    assert runs.snapshot(tmp_path) == before


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file is a file: use another run_dir"):
        claim_folder(runs.configure(tmp_path / "file"), tmp_path / "file")
    with pytest.raises(InputError, match="cannot write to run_dir="):
        claim_folder(runs.configure(tmp_path / "file" / "below"), tmp_path / "file" / "below")


def test_a_run_folder_gives_its_configuration_with_overrides(tmp_path):
    claim_folder(runs.configure(tmp_path), tmp_path)
    moved = tmp_path.parent / f"{tmp_path.name}-moved"
    tmp_path.rename(moved)
    cfg = load_folder(moved, ["task=evaluate", "evaluation.num_samples=7", "evaluation.grid=[2,7]"])
    assert (cfg.task, cfg.run_dir, cfg.evaluation.num_samples, list(cfg.evaluation.grid)) == (
        "evaluate",
        str(moved),
        7,
        [2, 7],
    )
    assert cfg.model.target.num_latents == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.target.num_latents=3", "model.target.num_latents decides what the members of .* are"),
        ("model=nvae", "model decides what the members"),
        ("dataset.num_test=5", "dataset.num_test decides"),
        ("seed=3", "seed decides"),
        ("evaluation.num_sample=7", "did you mean 'evaluation.num_samples'"),
        ("evaluation.num_samples=many", "evaluation.num_samples must be a number"),
        ("evaluation.num_samples=3,4", "one run at a time"),
        ("evaluation=3", "evaluation holds the keys"),
    ],
)
def test_overrides_a_trained_run_cannot_take(tmp_path, override, message):
    claim_folder(runs.configure(tmp_path), tmp_path)
    with pytest.raises(InputError, match=message):
        load_folder(tmp_path, ["task=evaluate", override])


def test_no_run_folder(tmp_path):
    with pytest.raises(InputError, match="is no run folder"):
        load_folder(tmp_path / "nowhere", ["task=report"])
