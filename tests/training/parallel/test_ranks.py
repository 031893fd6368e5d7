"""One training in two real processes: it equals one process, leaves one folder, and survives kills."""

import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import runs
import torch
from omegaconf import OmegaConf

from miselbo import pipeline
from miselbo.bounds.quantities import names
from miselbo.errors import InputError
from miselbo.training.parallel import ranks
from miselbo.training.parallel import slurm as srun

# uneven everywhere: 61 training images in batches of 16 = 2 x 8, 17 validation images in 3 and 2 batches
SETTINGS = [
    "ensemble.size=2", "trainer.max_epochs=2", "model.member_epoch_share=1.0", "trainer.check_val_every_n_epoch=1",
    "trainer.precision=64-true", "dataset.num_train=61", "dataset.num_validation=17", "dataset.evaluation_batch_size=4",
    "dataset.num_test=63", "evaluation.num_pictures=0", "ensemble.resume_interval=0", "report=false",
]  # fmt: skip
TWO = ["trainer=ddp_fork", "dataset.batch_size=8", "ensemble.objective=mixture"]
ONE = ["dataset.batch_size=16", "ensemble.objective=mixture"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """A run in one process and the same in two, float64, batch norms synchronised, joint training at the end."""
    folder = tmp_path_factory.mktemp("ranks")
    for name, more in (("one", ONE), ("two", TWO)):
        runs.fit(folder / name, *SETTINGS, *more, model=runs.NVAE)
    return folder / "one", folder / "two"


def assert_same_members(one: Path, two: Path, names: list[str]) -> None:
    for name in names:
        want, got = runs.state(one, name), runs.state(two, name)
        assert want.keys() == got.keys()
        for key, value in want.items():
            torch.testing.assert_close(got[key], value, rtol=0, atol=1e-5, msg=f"{name} {key}")


def test_two_processes_train_what_one_does_with_twice_the_batch(pair):
    one, two = pair
    assert_same_members(one, two, ["target", "q1", "q2", "independent/q1", "independent/q2"])
    for name in ("q1", "q2"):
        kept = [torch.load(folder / "members" / f"{name}.ckpt", weights_only=True) for folder in pair]
        assert kept[0]["steps"] == kept[1]["steps"] == 2 * 4
        assert kept[0]["decoder_passes"] == kept[1]["decoder_passes"] >= 2 * 61


def test_curves_and_validation_scores_are_those_of_all_examples(pair):
    key = ["member", "step", "metric"]
    one, two = (pd.read_csv(folder / "metrics.csv").set_index(key)["value"] for folder in pair)
    assert one.index.is_unique and {"val/miselbo", "val/average_elbo", "train/elbo"} <= set(
        one.index.get_level_values("metric")
    )
    pd.testing.assert_series_equal(one, two, rtol=0, atol=1e-5)


def test_evaluation_counts_every_example_once(pair):
    one, two = (pd.read_parquet(folder / "results" / "per_example.parquet") for folder in pair)
    assert two["index"].tolist() == list(range(63))
    assert np.abs(one[list(names())] - two[list(names())]).max().max() < 1e-5
    left = {path.name for path in (pair[1] / "members").iterdir()}
    assert left == {"target.ckpt", "q1.ckpt", "q2.ckpt", "independent"}


@pytest.mark.slow
def test_a_killed_run_of_two_processes_goes_on(pair, tmp_path):
    folder = tmp_path / "run"
    command = runs.overrides(folder, *SETTINGS, *TWO, model=runs.NVAE)
    process = runs.start(tmp_path, *command)
    try:
        for name in ("q1", "q2"):
            beside = others_of(folder)
            end = time.monotonic() + 120
            while not (folder / "members" / f"{name}.resume.ckpt").exists():
                assert time.monotonic() < end and process.poll() is None, process.communicate()
                time.sleep(0.01)
        while not curves_of(folder, 2):  # an epoch's values are written just after its resume point
            assert time.monotonic() < end and process.poll() is None, process.communicate()
            time.sleep(0.01)
    finally:
        process.kill()
        process.communicate()
    assert len(beside) == 1 and not (folder / "members" / "q2.ckpt").exists()
    end = time.monotonic() + 30
    while others_of(folder):
        assert time.monotonic() < end, "a process outlives rank 0"
        time.sleep(0.1)
    runs.fit(folder, *SETTINGS, *TWO, model=runs.NVAE)
    assert_same_members(pair[1], folder, ["target", "q1", "q2"])
    one, two = (
        pd.read_csv(path / "metrics.csv").set_index(["member", "step", "metric"])
        for path in (pair[1], folder)
    )
    pd.testing.assert_frame_equal(one.sort_index(), two.sort_index(), rtol=0, atol=1e-9)


def curves_of(folder: Path, member: int) -> list[str]:
    """Whole lines of a member's training values in ``metrics.csv``."""
    lines = (folder / "metrics.csv").read_text().split("\n")[:-1]
    return [line for line in lines if line.startswith(f"{member},") and ",train/" in line]


def others_of(folder: Path) -> list[Path]:
    """Processes of /proc that train beside rank 0 of a run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"miselbo.training.parallel.ranks" in words and any(
            word.startswith(bytes(folder)) for word in words
        ):
            found.append(path)
    return found


QUICK = [
    *runs.VAE,
    *runs.TINY,
    "ensemble.size=1",
    "trainer.max_epochs=1",
    "report=false",
    "evaluation.num_pictures=0",
]


@pytest.mark.slow
def test_a_sweep_of_jobs_in_two_processes_leaves_one_folder_and_one_dashboard_run_each(tmp_path):
    more = [
        "trainer=ddp",
        "trainer.accelerator=cpu",
        "trainer.devices=2",
        "logger=wandb",
        "logger.mode=offline",
    ]
    status, out, err = runs.command(tmp_path, "-m", "seed=0,1", *QUICK, *more)
    assert status == 0, err
    check_sweep(tmp_path, ["seed=0", "seed=1"])
    for job in (tmp_path / "outputs" / "sweeps").glob("*/vae-*"):
        assert len(list((job / "wandb").glob("offline-run-*"))) == 1
        assert OmegaConf.load(job / ".hydra" / "config.yaml").trainer.devices == 2


def check_sweep(place: Path, finished: list[str]) -> Path:
    """One sweep folder in a place, one folder per job in it; the finished jobs are these."""
    assert [path.name for path in place.iterdir()] == ["outputs"]
    assert [path.name for path in (place / "outputs").iterdir()] == ["sweeps"]
    (sweep,) = (place / "outputs" / "sweeps").iterdir()
    jobs = pd.read_csv(sweep / "sweep.csv")
    done = jobs[jobs["status"] == "finished"]
    assert [line.split()[0] for line in done["overrides"]] == finished
    assert sorted(path.name for path in sweep.glob("vae-*")) == sorted(jobs["run_dir"])
    assert (done["num_data"] == 12).all()
    return sweep


def test_processes_of_srun(tmp_path):
    """Two processes with SLURM's variables and one command: a job of the sweep is refused, the other one trains."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    common = {"SLURM_NTASKS": "2", "SLURM_NNODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NODEID": "0"}
    common |= {"SLURM_JOB_ID": "4711", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    arguments = [
        "-m",
        "ensemble.size=0,2",
        "trainer=slurm",
        *[word for word in QUICK if "ensemble" not in word],
    ]
    processes = [
        runs.start(tmp_path, *arguments, **common, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank))
        for rank in (0, 1)
    ]
    (out, err), (quiet, other) = (process.communicate(timeout=200) for process in processes)
    assert [process.returncode for process in processes] == [1, 0], err + other
    assert "must be a whole number of at least 1" in err and "1 of 2 jobs finished" in out
    assert quiet == ""
    sweep = check_sweep(tmp_path, ["ensemble.size=2"])
    (job,) = sweep.glob("vae-*S2*")
    stored = OmegaConf.load(job / ".hydra" / "config.yaml").trainer
    assert (stored.num_nodes, stored.devices) == (1, 2)
    assert (
        torch.load(job / "members" / "q1.ckpt", weights_only=True)["steps"] == 1
    )  # 64 images, 2 x 32 at a time


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.strategy=ddp_spawn", "known are auto, ddp, ddp_fork"),
        (
            "trainer.devices=0",
            "trainer.devices must be a whole number of at least 1, -1, .auto. or a list of GPUs",
        ),
        ("trainer.devices=many", "trainer.devices must be a whole number"),
        ("trainer=slurm", "srun python run.py trainer=slurm"),
        ("model=gaussian", "model=gaussian trains all its members in one process"),
        ("experiment=table2", "an experiment of several runs trains each of them in one process"),
    ],
)
def test_what_several_processes_cannot_do(tmp_path, monkeypatch, override, message):
    monkeypatch.delenv("SLURM_PROCID", raising=False)
    data = ["dataset=u2"] if "gaussian" in override else []
    cfg = runs.config.compose_config(["trainer=ddp_fork", *data, override, f"run_dir={tmp_path / 'run'}"])
    with pytest.raises(InputError, match=message):
        pipeline.run(cfg)
    assert not (tmp_path / "run").exists()


def test_srun_must_have_started_as_many_as_configured(monkeypatch):
    for name, value in {"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}.items():
        monkeypatch.setenv(name, value)
    srun.check(3)
    with pytest.raises(InputError, match="started 3 processes, but trainer.num_nodes x trainer.devices = 2"):
        srun.check(2)


def test_a_process_that_fails_is_named_and_none_is_left(tmp_path, monkeypatch):
    code = "import sys, time; time.sleep(float(sys.argv[1])); sys.exit(3)"
    made = []

    def start(path, rank, meeting):
        (Path(meeting) / str(rank)).touch()
        made.append(subprocess.Popen([sys.executable, "-c", code, "0.1" if rank == 2 else "60"]))
        return made[-1]

    monkeypatch.setattr(ranks, "start", start)
    failed = pytest.raises(RuntimeError, match=r"process 2 of 3 failed \(exit status 3\)")
    with failed, ranks.started(tmp_path, 3, str(tmp_path)) as others, ranks.blaming(others):
        raise RuntimeError("connection closed by peer")
    with pytest.raises(KeyboardInterrupt), ranks.started(tmp_path, 2, str(tmp_path)):
        raise KeyboardInterrupt
    assert all(process.poll() is not None for process in made)


def test_a_finished_run_starts_no_process(pair, monkeypatch):
    monkeypatch.setattr(ranks, "start", lambda *_: pytest.fail("started"))
    folder = pair[1]
    before = runs.snapshot(folder / "members")
    runs.fit(folder, *SETTINGS, *TWO, model=runs.NVAE)
    assert runs.snapshot(folder / "members") == before
