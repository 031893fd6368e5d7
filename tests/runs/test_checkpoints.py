"""What lies in members/: plain, checked, and refused when it does not belong to the run."""

import json
import shutil

import pytest
import runs
import small
import torch

from miselbo import pipeline
from miselbo.errors import InputError
from miselbo.protocols import fingerprint
from miselbo.runs import checkpoints


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with three members."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    runs.fit(folder, "ensemble.size=3")
    return folder


@pytest.fixture
def folder(trained, tmp_path):
    """A copy to spoil."""
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def no_training(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("training has started")

    monkeypatch.setattr("miselbo.training.fit._train", fail)


def refused(folder, match: str, size: int = 3) -> None:
    """The command ends in one error and changes no file."""
    before = runs.snapshot(folder)
    with pytest.raises(InputError, match=match):
        runs.fit(folder, f"ensemble.size={size}")
    assert runs.snapshot(folder) == before


def test_files_hold_tensors_and_plain_types(trained):
    names = sorted(path.name for path in (trained / "members").iterdir())
    assert names == ["q1.ckpt", "q2.ckpt", "q3.ckpt", "target.ckpt"]
    contents = {path.stem: torch.load(path, weights_only=True) for path in (trained / "members").iterdir()}
    stamps = {content["target_fingerprint"] for content in contents.values()}
    assert len(stamps) == 1
    assert (
        json.loads((trained / "results" / "summary.json").read_text())["protocol"]["target_fingerprint"]
        in stamps
    )
    for content in contents.values():
        state = content.pop("state")
        assert state and all(type(tensor) is torch.Tensor for tensor in state.values())
        assert json.loads(json.dumps(content)) == content
    assert [contents[f"q{s}"]["member"] for s in (1, 2, 3)] == [1, 2, 3]
    assert len({contents[f"q{s}"]["seed"] for s in (1, 2, 3)}) == 3
    assert contents["q2"]["decoder_passes"] >= 64
    assert contents["target"]["model"]["name"] == "vae" and contents["target"]["dataset"]["name"] == "digits"


def test_saved_and_loaded_is_the_same(tmp_path):
    one, other = small.nvae_ensemble(2, torch.float32), small.nvae_ensemble(2, torch.float32)
    checkpoints.save(checkpoints.target_path(tmp_path), "target", one.target, one.target)
    for s, member in enumerate(one.members, start=1):
        checkpoints.save(
            checkpoints.member_path(tmp_path, s), "member", member, one.target, note=["plain", s]
        )
    for module in other.modules():
        for parameter in module.parameters(recurse=False):
            torch.nn.init.constant_(parameter, 3)
    ensemble = checkpoints.load_ensemble(tmp_path, other.target, list(other.members))
    assert fingerprint(ensemble) == fingerprint(one)
    assert not ensemble.training
    stamp = fingerprint(one.target)
    assert checkpoints.load_member(tmp_path, 2, other.members[1], stamp)["note"] == ["plain", 2]
    assert checkpoints.finished_members(tmp_path, 5) == [1, 2]


def test_a_text_file(folder, no_training):
    (folder / "members" / "q2.ckpt").write_text("hello\nworld")
    refused(folder, r"q2\.ckpt cannot be read as a checkpoint \([^.]*\): damaged, or not of this project")


def test_an_empty_file(folder, no_training):
    (folder / "members" / "target.ckpt").write_bytes(b"")
    refused(folder, r"target\.ckpt cannot be read as a checkpoint")


def test_a_truncated_checkpoint(folder, no_training):
    path = folder / "members" / "q3.ckpt"
    path.write_bytes(path.read_bytes()[:-500])
    refused(folder, r"q3\.ckpt cannot be read as a checkpoint")


@pytest.mark.parametrize("content", [{"weights": torch.zeros(3)}, torch.zeros(3), [1, 2]])
def test_a_checkpoint_of_another_project(folder, no_training, content):
    torch.save(content, folder / "members" / "q1.ckpt")
    refused(
        folder, r"q1\.ckpt is not a member checkpoint of this project: expected format 'miselbo checkpoint 1'"
    )


def test_a_pickle_is_not_run(folder, no_training):
    torch.save({"f": pytest.raises}, folder / "members" / "q1.ckpt")
    refused(folder, r"q1\.ckpt cannot be read as a checkpoint")


def test_a_target_in_the_place_of_a_member(folder, no_training):
    shutil.copy(folder / "members" / "target.ckpt", folder / "members" / "q2.ckpt")
    refused(folder, r"q2\.ckpt is not a member checkpoint.*and kind 'member', got .* and 'target'")


def test_a_member_of_another_target(folder, no_training, tmp_path):
    path = folder / "members" / "q3.ckpt"
    content = torch.load(path, weights_only=True)
    torch.save({**content, "target_fingerprint": "0" * 64}, path)
    refused(folder, r"q3\.ckpt was trained against another target \(fingerprint 000000000000, this run's")


def test_a_member_of_another_model(folder, no_training):
    path = folder / "members" / "q2.ckpt"
    content = torch.load(path, weights_only=True)
    content["state"]["head.weight"] = torch.zeros(2, 2)
    content["state"]["extra"] = torch.zeros(1)
    torch.save(content, path)
    refused(
        folder,
        r"q2\.ckpt holds another model: 2 tensors do not fit \(extra: file \(1,\), model None, head.weight",
    )


def test_a_target_that_was_edited(folder, no_training):
    path = folder / "members" / "target.ckpt"
    content = torch.load(path, weights_only=True)
    content["state"]["lift.bias"] += 1e-6
    torch.save(content, path)
    refused(folder, r"target\.ckpt was changed after it was written")


def test_a_foreign_member_shows_before_the_missing_ones_are_trained(folder, no_training):
    (folder / "members" / "q2.ckpt").unlink()
    (folder / "members" / "q3.ckpt").write_text("hello")
    refused(folder, r"q3\.ckpt cannot be read")


@pytest.mark.parametrize("size", [1, 3])
def test_the_target_is_not_trained_again_under_other_members(folder, no_training, size):
    (folder / "members" / "q1.ckpt").unlink()
    refused(folder, r"q1\.ckpt is missing but q2\.ckpt exists", size)


def test_a_missing_target(folder, no_training):
    (folder / "members" / "target.ckpt").unlink()
    refused(folder, r"target\.ckpt does not exist")


@pytest.mark.parametrize("content", [b"hello", None])
def test_a_foreign_resume_point(folder, no_training, content):
    path = checkpoints.resume_path(folder, 4)
    if content is None:
        torch.save({"a": 1}, path)
    else:
        path.write_bytes(content)
    refused(folder, r"q4\.resume\.ckpt (cannot be read|is no resume point)", size=4)


def test_evaluation_refuses_the_same_files(folder):
    (folder / "members" / "q3.ckpt").write_text("hello")
    before = runs.snapshot(folder)
    with pytest.raises(InputError, match=r"q3\.ckpt cannot be read"):
        runs.from_folder("evaluate", folder, "evaluation.num_samples=2")
    assert runs.snapshot(folder) == before


def test_a_run_killed_between_target_and_first_member_goes_on(trained, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "report", lambda folder: {})
    shutil.copytree(trained / ".hydra", tmp_path / "run" / ".hydra")
    (tmp_path / "run" / "members").mkdir()
    shutil.copy(trained / "members" / "target.ckpt", tmp_path / "run" / "members")
    runs.fit(tmp_path / "run", "ensemble.size=1")
    for name in ("target", "q1"):
        assert runs.same_tensors(runs.state(tmp_path / "run", name), runs.state(trained, name))


def test_a_lost_member_is_trained_again_and_only_that_one(trained, folder, monkeypatch):
    monkeypatch.setattr(pipeline, "report", lambda folder: {})
    (folder / "members" / "q2.ckpt").unlink()
    before = runs.snapshot(folder / "members")
    runs.fit(folder, "ensemble.size=3")
    after = runs.snapshot(folder / "members")
    after.pop("q2.ckpt")
    assert after == before
    assert runs.same_tensors(runs.state(folder, "q2"), runs.state(trained, "q2"))
