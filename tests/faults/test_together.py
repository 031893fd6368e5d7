"""Two commands on one folder, and folders that are not as they were left: a sentence, and nothing cut or lost."""

import os
import shutil
import socket

import numpy as np
import pandas as pd
import pytest
import runs
import torch

from miselbo import evaluate
from miselbo.errors import InputError
from miselbo.evaluation.finished import load_run
from miselbo.runtime import locks

QUICK = ("report=false", "evaluation.num_pictures=0", "ensemble.size=2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    runs.fit(folder, *QUICK)
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("first", ["run", "evaluate", "report"])
def test_one_command_at_a_time(folder, first):
    before = {name: content for name, content in runs.snapshot(folder).items() if ".locks" not in name}
    said = f"{folder} is in use (task={first}) by another process (number {os.getpid()} on {socket.gethostname()})"
    with locks.hold(folder, locks.WHOLE, f"in use (task={first})"):
        for second in ("evaluate", "report", "sample"):
            with pytest.raises(InputError) as caught:
                runs.from_folder(second, folder)
            assert str(caught.value) == f"{said}: wait for it, or stop it"
        with pytest.raises(InputError, match="wait for it, or stop it"):
            runs.fit(folder, *QUICK)
        with pytest.raises(InputError, match="wait for it, or stop it"):
            load_run(folder).report()
        with pytest.raises(InputError, match="wait for it, or stop it"):
            evaluate(
                lambda z: -(z[..., 0] ** 2), [torch.distributions.Normal(torch.zeros(1), 1)], folder=folder
            )
    after = {name: content for name, content in runs.snapshot(folder).items() if ".locks" not in name}
    assert {name: content for name, (content, _) in after.items() if name != ".hydra/config.yaml"} == {
        name: content for name, (content, _) in before.items() if name != ".hydra/config.yaml"
    }


def test_a_job_that_trains_a_member_is_seen_before_the_others_are_trained(tmp_path):
    (tmp_path / "run").mkdir()
    with (
        locks.hold(tmp_path / "run", "q2"),
        pytest.raises(InputError, match="q2 of .* is being trained by another"),
    ):
        runs.fit(tmp_path / "run", *QUICK)
    assert not (tmp_path / "run" / "members" / "q1.ckpt").exists()


@pytest.mark.parametrize(
    "place", ["results/shards", "results", "members", ".locks", "metrics.csv", "results/shards/key"]
)
def test_links_out_of_the_folder_are_not_followed(folder, tmp_path, place):
    outside = tmp_path / "outside"
    if place == "metrics.csv":
        outside.write_text("precious")
    else:
        (outside / "0123456789abcdef").mkdir(parents=True)
        (outside / "0123456789abcdef" / "00000000.npz").write_text("precious")
        (outside / "precious").write_text("precious")
    path = folder / place
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.symlink_to(outside)
    before = runs.snapshot(tmp_path / "outside") if outside.is_dir() else outside.read_text()
    for command in (lambda: runs.from_folder("evaluate", folder), lambda: runs.fit(folder, *QUICK)):
        with pytest.raises(
            InputError, match=f"{place} is a link to {outside}|{place}.* does not exist|missing"
        ):
            command()
    assert (runs.snapshot(outside) if outside.is_dir() else outside.read_text()) == before


def test_stray_files_beside_the_shards_are_named_and_left_alone(folder, capsys):
    shards = folder / "results" / "shards"
    (key,) = shards.iterdir()
    for place in (
        shards / "notes.txt",
        shards / "backup" / "00000000.npz",
        key / "copy.npz",
        key / "00000999.npz",
    ):
        place.parent.mkdir(exist_ok=True)
        place.write_text("mine")
    examples = pd.read_parquet(folder / "results" / "per_example.parquet")
    runs.from_folder("evaluate", folder)  # 00000999.npz is no shard of this evaluation and is not read
    pd.testing.assert_frame_equal(pd.read_parquet(folder / "results" / "per_example.parquet"), examples)
    out = capsys.readouterr().out
    assert "left alone 2 that no evaluation of miselbo has written: backup, notes.txt" in out
    assert "left alone 2 files that are not of this evaluation: 00000999.npz, copy.npz" in out
    runs.from_folder("evaluate", folder, "evaluation.num_samples=2")
    for stray in (key / "copy.npz", key / "00000999.npz", shards / "backup" / "00000000.npz"):
        assert stray.read_text() == "mine"
    assert not (key / "00000000.npz").exists()


def test_a_changed_shard_is_refused(folder):
    path = sorted((folder / "results" / "shards").glob("*/*.npz"))[1]
    with np.load(path) as file:
        values = {name: file[name] for name in file.files}
    values["miselbo"] = values["miselbo"] + 1
    np.savez(path, **values)
    with pytest.raises(
        InputError, match=f"{path.name} was changed after it was written: its checksum differs"
    ):
        runs.from_folder("evaluate", folder)


def change(path, **changes):
    content = torch.load(path, weights_only=True)
    torch.save({**content, **changes}, path)


def test_members_are_known_by_name(folder):
    members = folder / "members"
    whole = (members / "q1.ckpt").read_bytes()
    shutil.copyfile(members / "q2.ckpt", members / "q1.ckpt")
    with pytest.raises(InputError, match=r"q1.ckpt holds q2, not q1: a copy under another name"):
        runs.from_folder("evaluate", folder)
    (members / "q1.ckpt").write_bytes(whole)
    state = torch.load(members / "q1.ckpt", weights_only=True)["state"]
    name = next(name for name, value in state.items() if value.is_floating_point())
    change(members / "q1.ckpt", state={**state, name: state[name] + 1e-3})
    with pytest.raises(InputError, match=r"q1.ckpt was changed after it was written: fingerprint"):
        runs.from_folder("evaluate", folder)
    change(members / "q1.ckpt", state={**state, name: state[name].to(torch.int64)})
    with pytest.raises(
        InputError, match=rf"holds another model: 1 tensors do not fit \({name}: file .* torch.int64"
    ):
        runs.from_folder("evaluate", folder)


def test_curves_are_rebuilt_from_the_checkpoints(folder):
    whole = (folder / "metrics.csv").read_text()
    lines = whole.splitlines(keepends=True)
    (folder / "metrics.csv").write_text("".join(lines[:-7]))
    runs.fit(folder, *QUICK)
    assert (folder / "metrics.csv").read_text() == whole
