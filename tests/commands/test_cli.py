"""The command line: one line and a status for bad input, sweeps, help."""

import gzip
import os
import subprocess
import sys

import pandas as pd
import pytest
import runs
import torch

from miselbo.runs import config


@pytest.fixture
def refused(call, tmp_path):
    """Runs the command, checks that it ends with one line and touches nothing; gives the line."""

    def inner(*arguments: str) -> str:
        before = runs.snapshot(tmp_path), sorted(tmp_path.rglob("*"))
        status, _, err = call(*arguments)
        assert status == 2, err
        assert err.startswith("error: "), err
        assert err.count("\n") == 1 and err.endswith("\n")
        assert (runs.snapshot(tmp_path), sorted(tmp_path.rglob("*"))) == before
        return err

    return inner


def idx(count: int, height: int = 4, width: int = 4) -> bytes:
    header = bytes([0, 0, 8, 3]) + b"".join(size.to_bytes(4, "big") for size in (count, height, width))
    return header + bytes(count * height * width)


TRAIN, TEST = "train-images-idx3-ubyte", "t10k-images-idx3-ubyte"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["ensemble.sise=3"], "did you mean 'ensemble.size'?"),
        (["model=nvea"], "did you mean 'nvae'?"),
        (["ensemble.size=0"], "ensemble.size must be a whole number of at least 1, got 0"),
        (["ensemble.size=-1"], "got -1"),
        (["ensemble.size=2.5"], "got 2.5"),
        (["ensemble.size=a"], "ensemble.size must be a number, got 'a'"),
        (["ensemble.size="], "ensemble.size must be a number, got ''"),
        (["ensemble.size"], "cannot read the command line"),
        (["seed=-1"], "seed must be"),
        (["task=evalute"], "unknown task=evalute; did you mean 'evaluate'?"),
        (["evaluation.num_samples=0"], "evaluation.num_samples must be a whole number of at least 1, got 0"),
        (["evaluation.num_samples=null"], "evaluation.num_samples must be"),
        (["evaluation.samples_per_pass=0"], "evaluation.samples_per_pass must be"),
        (["evaluation.batch_size=-3"], "evaluation.batch_size must be"),
        (["evaluation.num_examples=0"], "evaluation.num_examples must be"),
        (["evaluation.num_pictures=-1"], "evaluation.num_pictures must be"),
        (["evaluation.seed=x"], "evaluation.seed must be"),
        (["evaluation.split=train"], "evaluation.split must be 'test' or 'validation', got 'train'"),
        (
            ["evaluation.num_samples=5", "evaluation.grid=[1,6]"],
            "from 1 to evaluation.num_samples=5, got [1, 6]",
        ),
        (["evaluation.grid=[0]"], "got [0]"),
        (["evaluation.grid=[]"], "evaluation.grid must list"),
        (["evaluation.grid=5"], "evaluation.grid must list"),
        (["evaluation.grid=[1,a]"], "evaluation.grid must list"),
        (["num_threads=0"], "num_threads must be"),
        (["ensemble.workers=none"], "ensemble.workers must be"),
        (["-m", "task=fit_member", "member=1,2"], "task=fit_member takes one member"),
        (["dataset.num_validation=0"], "dataset.num_validation=0: expected a whole number, at least 1"),
        (["dataset.num_train=0"], "dataset.num_train=0"),
        (["dataset.num_test=0"], "dataset.num_test=0"),
        (["dataset.num_validation=1497"], "leaves no training image"),
        (["dataset.num_train=100000"], "there are only"),
        (["model.target.num_preprocess_blocks=5"], "num_preprocess_blocks"),
        (["model.target.num_latent_scales=9"], "num_latent_scales"),
        (["run_dir=${nowhere}"], "cannot read the configuration: Interpolation key 'nowhere' not found"),
        (["task=evaluate"], "task=evaluate needs run_dir="),
        (["task=report", "run_dir=nowhere"], "nowhere is no run folder"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_created(refused, arguments, message):
    assert message in refused(*arguments)


def test_data_that_cannot_be(refused, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    line = refused("dataset=mnist", f"dataset.root={empty}")
    assert "image files not found" in line and str(empty) in line and TRAIN in line
    assert "no such folder" in refused("dataset=mnist", f"dataset.root={tmp_path / 'nowhere'}")
    cut = tmp_path / "cut"
    cut.mkdir()
    (cut / TRAIN).write_bytes(idx(50)[:-7])
    (cut / TEST).write_bytes(idx(9))
    assert f"{cut / TRAIN}: truncated" in refused("dataset=mnist", f"dataset.root={cut}")
    (cut / TRAIN).write_bytes(gzip.compress(idx(50))[:-9])
    assert "damaged or truncated gzip" in refused("dataset=mnist", f"dataset.root={cut}")


def test_other_data_that_cannot_be(refused, tmp_path):
    for name, words in (
        ("cifar10", "data_batch_1.bin"),
        ("omniglot", "chardata.mat"),
        ("celeba64", "list_eval_partition.txt"),
        ("image_folder", "no such folder of images"),
    ):
        line = refused(f"dataset={name}", f"dataset.root={tmp_path / 'nowhere'}")
        assert words in line and str(tmp_path / "nowhere") in line
    assert "needs dataset.root" in refused("dataset=image_folder")
    (tmp_path / "cifar").mkdir()
    for number in range(1, 6):
        (tmp_path / "cifar" / f"data_batch_{number}.bin").write_bytes(bytes(3073))
    (tmp_path / "cifar" / "test_batch.bin").write_bytes(bytes(3000))
    assert "test_batch.bin: truncated" in refused("dataset=cifar10", f"dataset.root={tmp_path / 'cifar'}")
    (tmp_path / "images").mkdir()
    for name in "abc":
        (tmp_path / "images" / f"{name}.png").write_text(f"no image {name}")
    line = refused("dataset=image_folder", f"dataset.root={tmp_path / 'images'}")
    assert ".png: cannot be read as an image" in line


def test_a_gpu_that_is_not_there(refused, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert "no GPU here: use trainer=default" in refused("trainer=ddp", "trainer.devices=2")


def test_a_folder_that_is_taken(refused, call, tmp_path):
    taken = tmp_path / "taken"
    taken.mkdir()
    (taken / "notes.txt").write_text("mine")
    assert "is no run folder of miselbo" in refused(*runs.overrides(taken))
    assert "taken is no run folder" in refused("task=evaluate", f"run_dir={taken}")
    (tmp_path / "file").write_text("mine")
    assert "is a file" in refused(*runs.overrides(tmp_path / "file"))


def test_a_trained_run_is_kept_from_another_configuration(refused, call, tmp_path):
    arguments = runs.overrides(tmp_path / "run", "ensemble.size=1", "report=true")
    status, out, err = call(*arguments)
    assert status == 0, err
    assert "miselbo" in out and "report.html" in out
    line = refused(*arguments, "seed=1", "model.target.num_latents=3")
    assert "model.target.num_latents was 2, now 3; seed was 0, now 1" in line
    at = ["task=evaluate", f"run_dir={tmp_path / 'run'}"]
    assert "cannot be changed for a trained run" in refused(*at, "model.target.num_latents=3")
    assert "did you mean 'evaluation.num_samples'?" in refused(*at, "evaluation.num_sample=3")
    assert "evaluation.num_samples must be a whole number" in refused(*at, "evaluation.num_samples=0")
    assert "q2.ckpt does not exist" in refused(*at, "ensemble.size=2")
    foreign = tmp_path / "run" / "members" / "q2.ckpt"
    foreign.write_text("not a checkpoint")
    assert "q2.ckpt cannot be read as a checkpoint" in refused(*arguments, "ensemble.size=3")


def test_divergence_is_one_line(call, tmp_path):
    status, _, err = call(
        *runs.overrides(tmp_path / "run", "trainer.max_epochs=5", "model.objective.warmup_epochs=0"),
        "model.objective.learning_rate=1e30",
        "model.objective.max_skipped_steps=3",
    )
    assert status == 1
    assert err.startswith("error: training q1 stopped: 3 steps in a row had a non-finite loss or gradient")
    assert "layer group 'target." in err or "layer group 'encoder." in err
    assert "model.objective.learning_rate=3e+29 (now 1e+30)" in err
    assert err.count("\n") == 1


def test_a_sweep_makes_one_run_per_value(call, tmp_path):
    arguments = [argument for argument in runs.overrides(tmp_path) if not argument.startswith("run_dir=")]
    status, out, err = call("-m", "seed=0,1", "ensemble.size=2", "hydra.sweep.dir=sweep", *arguments)
    assert status == 0, err
    folders = sorted(path.parent.parent for path in (tmp_path / "sweep").glob("*/results/bounds.csv"))
    assert [("seed0" in folder.name, "seed1" in folder.name) for folder in folders] == [
        (True, False),
        (False, True),
    ]
    one, other = (pd.read_csv(folder / "results" / "bounds.csv") for folder in folders)
    assert not one["miselbo"].equals(other["miselbo"])
    for folder in folders:
        assert (folder / "members" / "q2.ckpt").exists()
        assert f"run_dir: {folder}" in (folder / ".hydra" / "config.yaml").read_text()
    assert "error: " in call("-m", "seed=0,1", "ensemble.sise=2")[2]


def test_hydra_flags_and_their_values_are_no_overrides(call):
    status, out, _ = call("--cfg", "job", "ensemble.size=7")
    assert status == 0 and "size: 7" in out
    assert "did you mean 'ensemble.size'" in call("--cfg", "job", "ensemble.sise=7")[2]


def test_the_real_command(tmp_path):
    status, out, err = runs.command(tmp_path, "ensemble.size=0")
    assert (status, out) == (2, "")
    assert err == "error: ensemble.size must be a whole number of at least 1, got 0\n"
    assert list(tmp_path.iterdir()) == []
    status, out, err = runs.command(tmp_path, "--help")
    assert status == 0 and err == ""
    models = sorted(path.stem for path in (config.CONF / "model").glob("*.yaml"))
    assert f"model: {', '.join(models)}" in out and "num_samples: 100" in out
    assert list(tmp_path.iterdir()) == []


def own_folder(folder):
    """A folder of the user's own with one data set."""
    (folder / "dataset").mkdir(parents=True)
    text = (config.CONF / "dataset" / "digits.yaml").read_text().replace("name: digits", "name: mine")
    (folder / "dataset" / "mine.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("way", ["--config-dir", "hydra.searchpath", "./conf"])
def test_group_choices_of_an_own_folder(call, tmp_path, way):
    folder = own_folder(tmp_path / ("conf" if way == "./conf" else "it's mine"))
    path = str(folder).replace("'", "\\'")
    words = {
        "--config-dir": ["--config-dir", str(folder)],
        "hydra.searchpath": [f"hydra.searchpath=['file://{path}']"],
        "./conf": [],
    }[way]
    status, out, err = call(*words, "dataset=mine", "model=vae", "--cfg", "job", "--resolve")
    assert status == 0, err
    assert "run_dir: outputs/vae-mine-" in out
    err = call(*words, "dataset=mien", "model=vae")[2]
    assert "unknown dataset=mien; did you mean 'mine'?" in err and "digits" in err
    assert "did you mean 'dataset.num_train'?" in call(*words, "dataset=mine", "dataset.num_trian=3")[2]
    if way != "./conf":
        (tmp_path / "elsewhere").mkdir()
        assert "unknown dataset=mine" in call("--config-dir", str(tmp_path / "elsewhere"), "dataset=mine")[2]


def test_own_folders_that_are_not_there(refused):
    assert "--config-dir nowhere: no such folder" in refused("--config-dir", "nowhere", "dataset=mine")
    assert "no such folder nowhere" in refused("hydra.searchpath=[file://nowhere]", "dataset=mine")
    assert "must list places" in refused("hydra.searchpath=nowhere")


def test_a_group_cannot_be_left_out(refused):
    line = refused("model=vae", "~logger", "task=cost")
    assert "~logger: logger cannot be left out" in line and "logger=csv writes local files only" in line
    assert "known are gaussian" in refused("~model")


def test_hyphens_of_the_wandb_agent(call):
    status, out, err = call("--cfg=job", "model=vae", "--seed=1", "--ensemble.size=2")
    assert status == 0, err
    assert "seed: 1" in out and "size: 2" in out
    assert "did you mean 'ensemble.size'?" in call("--ensemble.sise=2", "task=cost")[2]


def test_hydra_run_dir_is_refused(refused):
    line = refused("model=vae", "hydra.run.dir=mine")
    assert "hydra.run.dir is not used here, set run_dir=" in line and "write run_dir=mine" in line


def test_python_m_is_the_same_command(tmp_path):
    command = [sys.executable, "-m", "miselbo", "ensemble.size=0"]
    path = os.pathsep.join([str(runs.PROJECT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: ensemble.size must be a whole number of at least 1, got 0\n"


def test_what_nothing_has_foreseen_is_one_line_and_a_trace_file(call, tmp_path, monkeypatch):
    def broken(*_):
        raise KeyError("a fault")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("miselbo.pipeline.run", broken)
    status, _, err = call(*runs.overrides(tmp_path / "run"))
    assert status == 1 and err.count("\n") == 1 and err.startswith("error: KeyError: 'a fault' (not foreseen")
    (trace,) = tmp_path.glob("miselbo-*-trace.txt")
    assert str(trace) in err and "Traceback" in trace.read_text()
