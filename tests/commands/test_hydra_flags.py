"""Every flag of Hydra is run once: it does what Hydra says, or one line says what to write instead."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from hydra._internal.utils import get_args_parser
from omegaconf import OmegaConf

from miselbo.commands import cli


@pytest.fixture(autouse=True)
def logging_as_before(monkeypatch):
    """``--info`` leaves a handler that writes to this test's standard error."""
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", list(root.handlers))
    level = root.level
    yield
    root.setLevel(level)


def last_line(err: str) -> str:
    return err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hydra-help"], ["--shell-completion"]),
        (["--version"], ["Hydra 1."]),
        (["--cfg", "job", "model=vae", "++seed=3"], ["seed: 3", "_target_: miselbo.models.vae.Decoder"]),
        (["--cfg", "hydra"], ["sweep:"]),
        (["--cfg", "job", "--resolve", "ensemble.size=7"], ["run_dir: outputs/nvae-digits-S7-seed0"]),
        (["-c", "job", "--package", "ensemble"], ["# @package ensemble\nsize: 5"]),
        (["--info"], ["Config search path", "Defaults Tree"]),
        (["--info", "defaults", "model=vae"], ["model/vae"]),
        (["-sc", "install=bash"], ["hydra_bash_completion()"]),
        (["--shell-completion", "uninstall=bash"], ["unset hydra_bash_completion"]),
        (["-sc", "install=zsh"], ["hydra_bash_completion"]),
        (["-sc", "install=fish"], ["hydra_fish_completion"]),
        (["--config-name", "config", "--cfg", "job"], ["seed: 0"]),
    ],
)
def test_flags_that_tell(call, tmp_path, arguments, words):
    status, out, err = call(*arguments)
    assert (status, err) == (0, "")
    assert [word for word in words if word not in out] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config-path", "mine"],
            "--config-path mine: miselbo keeps its own conf/; --config-dir mine adds",
        ),
        (["-cn", "mine"], "experiment/mine.yaml"),
        (["--experimental-rerun", "a.pickle"], "--experimental-rerun a.pickle: no such file"),
        (["--multirun", "--cfg", "job"], "--multirun and --cfg exclude each other"),
        (["-m", "seed=0,1", "--help"], "Ambiguous value for argument 'seed=0,1'"),
        (["+seed=3"], "+seed: seed is there already; write seed=<value>"),
        (["+model=vae"], "+model: model is there already; write model=<name>"),
        (["~seed"], "~seed: seed cannot be left out"),
        (["hydra.nonsense=3"], "Could not override 'hydra.nonsense'"),
        (["task=evaluate", "run_dir=a,b", "-m"], "task=evaluate takes one run folder at a time"),
        (["task=report", "run_dir=a", "hydra.verbose=true"], "task=report starts no Hydra job"),
        (["--nonsense"], "unrecognized arguments: --nonsense"),
        (["--package"], "expected one argument"),
        (["--info", "nonsense"], "invalid choice: 'nonsense'"),
    ],
)
def test_flags_that_are_refused(call, tmp_path, arguments, message):
    status, out, err = call(*arguments)
    assert (status, out) == (2, "")
    assert message in last_line(err)
    assert err.startswith(("error: ", "usage: "))
    assert list(tmp_path.iterdir()) == []


def completions(call, monkeypatch, line):
    monkeypatch.setenv("COMP_LINE", line)
    status, out, err = call("-sc", "query=bash")
    assert (status, err) == (0, "")
    return out.split()


def test_tab_completion(call, tmp_path, monkeypatch):
    assert completions(call, monkeypatch, "miselbo model=nv") == [
        "model=nvae", "model=nvae_celeba64", "model=nvae_cifar10", "model=nvae_mnist",
    ]  # fmt: skip
    assert completions(call, monkeypatch, "python run.py model=vae model.target.num_") == [
        "model.target.num_channels=", "model.target.num_latents=",
    ]  # fmt: skip
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "nvidious.yaml").write_text("name: nvidious")
    assert "model=nvidious" in completions(call, monkeypatch, "miselbo model=nv")
    shutil.move(tmp_path / "conf", tmp_path / "elsewhere")
    assert "model=nvidious" not in completions(call, monkeypatch, "miselbo model=nv")
    assert "model=nvidious" in completions(call, monkeypatch, "miselbo --config-dir elsewhere model=nv")


def test_tab_completion_in_bash(tmp_path):
    """What the shell itself offers after ``eval "$(python run.py -sc install=bash)"``."""
    if shutil.which("bash") is None:
        pytest.skip("no bash here")
    (tmp_path / "python").symlink_to(sys.executable)
    script = (
        f'eval "$(python {runs.PROJECT}/run.py -sc install=bash)"; COMP_LINE="python run.py seed=1 dataset=cif"; '
        "COMP_POINT=${#COMP_LINE}; COMP_CWORD=3; hydra_bash_completion; printf '%s ' \"${COMPREPLY[@]}\""
    )
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        ["bash", "-c", script], cwd=runs.PROJECT, env=environment, capture_output=True, text=True
    )
    assert done.stdout.split() == ["dataset=cifar10"], done.stderr


def test_flags_on_a_run_folder(call, tmp_path):
    folder = tmp_path / "run"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(
        OmegaConf.to_yaml(runs.configure(folder, "seed=3"), resolve=True)
    )
    status, out, err = call("task=evaluate", f"run_dir={folder}", "--cfg", "job", "evaluation.num_samples=9")
    assert (status, err) == (0, "") and "seed: 3" in out and "num_samples: 9" in out
    assert "== Configuration groups ==" in call("task=report", f"run_dir={folder}", "--help")[1]


def test_run_and_experimental_rerun(call, tmp_path, monkeypatch):
    """A job pickled by Hydra's own callback runs again."""
    jobs: list[tuple[str, int]] = []
    monkeypatch.setattr(cli, "execute", lambda cfg: jobs.append((cfg.run_dir, cfg.seed)))
    callback = "+hydra.callbacks.pickle._target_=hydra.experimental.callbacks.PickleJobInfoCallback"
    assert call("--run", "seed=7", "run_dir=r", callback, f"hydra.output_subdir={tmp_path}/jobs")[0] == 0
    with pytest.warns(UserWarning, match="Experimental rerun"):
        assert call("--experimental-rerun", f"{tmp_path}/jobs/config.pickle")[0] == 0
    assert jobs == [(f"{tmp_path}/r", 7)] * 2


def test_no_flag_of_hydra_is_forgotten():
    tried = "".join(path.read_text() for path in Path(__file__).parent.glob("*.py"))
    flags = [
        max(action.option_strings, key=len) for action in get_args_parser()._actions if action.option_strings
    ]
    assert [flag for flag in flags if f'"{flag}"' not in tried] == []
