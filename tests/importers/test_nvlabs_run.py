"""Official checkpoints through the pipeline and the command line; runs of ours written as official files."""

import json
import runpy
import sys
from pathlib import Path

import official
import pandas as pd
import pytest
import runs
import small
import torch
from official import edit, make, write

from miselbo import bounds
from miselbo.commands import cli
from miselbo.data import digits
from miselbo.errors import InputError
from miselbo.importers.nvlabs import load_checkpoints
from miselbo.pipeline import run
from miselbo.protocols import fingerprint
from miselbo.runs import config
from miselbo.runs.folder import import_folder, load_folder
from miselbo.runs.plan import source_of
from miselbo.runs.restore import restore

QUICK = [
    "dataset=digits",
    "dataset.num_test=12",
    "trainer.accelerator=cpu",
    "trainer.enable_progress_bar=false",
    "evaluation.num_samples=4",
    "evaluation.batch_size=5",
    "evaluation.num_pictures=2",
]
REMARK = "not a bound on one log p(x)"


def arguments(files: list[Path], *more: str) -> list[str]:
    listed = ",".join(map(str, files))
    return ["task=evaluate", "importer=nvlabs", f"checkpoints=[{listed}]", *QUICK, *more]


def evaluate(files: list[Path], *more: str):
    return run(config.compose_config(arguments(files, *more)))


@pytest.fixture
def pair(tmp_path):
    return write(tmp_path / "files", make(2, small.DIGIT))


@pytest.fixture
def untied(tmp_path):
    files = write(tmp_path / "files", make(2, small.DIGIT))
    edit(files[1], lambda held: held["state_dict"]["image_conditional.1.bias"].add_(0.5))
    return files


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_bounds_are_those_of_the_ensemble(dtype, pair, tmp_path, capsys):
    summary = evaluate(pair, f"run_dir={tmp_path / 'run'}", f"evaluation.dtype={dtype}", "report=false")
    batch = next(iter(digits(num_test=12).evaluation_batches("test", 12)))
    ensemble = load_checkpoints(pair, dtype=torch.float64)
    log_p, log_q = ensemble.score(batch["image"].double(), 4, seed=0, index=batch["index"])
    tolerance = 1e-10 if dtype == "float64" else 1e-5
    expected = {
        "miselbo": bounds.miselbo(log_p, log_q),
        "average_iwelbo": bounds.average_iwelbo(log_p, log_q),
        "jsd": bounds.jsd(log_q),
        "delta": bounds.delta(log_p, log_q),
    }
    for name, values in expected.items():
        assert summary["headline"][name] == pytest.approx(float(values.mean()), rel=tolerance, abs=tolerance)
    members = bounds.iwelbo(log_p, log_q).mean(0)
    assert [row["iwelbo"] for row in summary["members"]] == pytest.approx(members.tolist(), rel=tolerance)
    out = capsys.readouterr().out
    printed = {line.rsplit(None, 4)[0].strip(): line.split()[-4:] for line in out.splitlines() if "." in line}
    assert float(printed["iwelbo q2"][0]) == pytest.approx(float(members[1]), abs=1e-3)
    bits = -summary["headline"]["miselbo"] / (64 * torch.log(torch.tensor(2.0)).item())
    assert float(printed["miselbo"][3]) == pytest.approx(bits, abs=1e-4)
    assert {"average_iwelbo", "iwelbo q1", "jsd", "delta"} <= printed.keys()
    assert REMARK not in out


def test_protocol_and_files_of_a_run(pair, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = [path.relative_to(tmp_path) for path in pair]
    evaluate(relative, f"run_dir={tmp_path / 'run'}")
    summary = json.loads((tmp_path / "run/results/summary.json").read_text())
    protocol = summary["protocol"]
    assert protocol["checkpoints"] == [str(path) for path in pair]
    assert protocol["model"] == "NVAE (official checkpoints)" and protocol["S"] == 2
    assert protocol["decoder"] == "one decoder, equal in all files" and "remark" not in protocol
    assert protocol["target_fingerprint"] == fingerprint(load_checkpoints(pair).target)
    assert summary["num_dims"] == 64
    for name in (
        "report.html",
        "report.md",
        "results/bounds.csv",
        "results/subsets.csv",
        "results/images.npz",
    ):
        assert (tmp_path / "run" / name).is_file()
    monkeypatch.chdir("/")  # the folder alone is enough afterwards
    again = runs.from_folder("evaluate", tmp_path / "run", "evaluation.num_samples=6", "report=false")
    assert again["headline"]["L"] == 6
    assert runs.from_folder("report", tmp_path / "run")["headline"]["L"] == 6
    with pytest.raises(InputError, match="target decides what the members of"):
        runs.from_folder("evaluate", tmp_path / "run", "target=first")


def test_separate_decoders_are_stamped_everywhere(untied, tmp_path, capsys):
    with pytest.raises(InputError, match="image_conditional parameters: 1 of 3 tensors differ, by up to 0.5"):
        evaluate(untied, f"run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()
    summary = evaluate(untied, f"run_dir={tmp_path / 'run'}", "target=each")
    tables = sorted((tmp_path / "run/results").glob("*.csv")) + sorted(
        (tmp_path / "run/results").glob("*.parquet")
    )
    assert len(tables) == 7
    for path in tables:
        table = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
        assert (table["remark"] == REMARK).all() and len(table), path
    assert summary["protocol"]["remark"] == REMARK
    assert len(set(summary["protocol"]["target_fingerprint"])) == 2
    assert f"\n{REMARK}\n" in capsys.readouterr().out
    markdown = (tmp_path / "run/report.md").read_text()
    assert REMARK in markdown.splitlines()[0] and REMARK in markdown.splitlines()[4]
    lines = markdown.splitlines()
    heads = [line for line, rule in zip(lines, lines[1:], strict=False) if rule.startswith("| :-")]
    assert len(heads) >= 4 and all(REMARK in line for line in heads if "Key" not in line)
    assert REMARK in (tmp_path / "run/report.html").read_text()
    before = (tmp_path / "run/results/bounds.csv").read_text()
    runs.from_folder("evaluate", tmp_path / "run", "report=false")
    assert (tmp_path / "run/results/bounds.csv").read_text() == before


def test_the_first_decoder_for_all(untied, tmp_path):
    summary = evaluate(untied, f"run_dir={tmp_path / 'run'}", "target=first")
    assert summary["protocol"]["decoder"] == "the first file's decoder for all members"
    assert REMARK not in (tmp_path / "run/report.md").read_text()
    assert "remark" not in pd.read_csv(tmp_path / "run/results/bounds.csv")


def test_separate_decoders_agree_with_one_where_they_are_equal(pair, tmp_path):
    """The plain path under separate decoders against the inference form under the common one."""
    one, other = (
        evaluate(
            pair,
            f"run_dir={tmp_path / target}",
            f"target={target}",
            "evaluation.dtype=float64",
            "report=false",
        )
        for target in ("tied", "each")
    )
    for name in ("miselbo", "joint_bound", "average_iwelbo", "jsd"):
        assert one["headline"][name] == pytest.approx(other["headline"][name], rel=1e-10)


@pytest.mark.slow
def test_several_processes_share_it(pair, tmp_path):
    alone = evaluate(pair, f"run_dir={tmp_path / 'alone'}")
    shared = evaluate(pair, f"run_dir={tmp_path / 'shared'}", "evaluation.workers=2")
    assert shared["headline"]["miselbo"] == alone["headline"]["miselbo"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["dataset=mnist"], "1 x 8 x 8 images with likelihood bernoulli, but dataset=mnist has 1 x 28 x 28"),
        (["dataset.likelihood=normal"], "or dataset.likelihood=bernoulli"),
        (["evaluation.split=train"], "evaluation.split must be"),
        (["target=none"], "unknown target=none; known are tied, first, each"),
        (["target=eech"], "did you mean 'each'?"),
        (["checkpoints=[]"], "needs task=evaluate and 'checkpoints="),
        (["checkpoints=[1]"], "checkpoints must list files"),
        (["task=run"], "importer=nvlabs needs task=evaluate"),
        (["importer=null", "task=run"], "checkpoints= needs importer=nvlabs"),
        (["checkpoints=[none.pt]"], "checkpoint none.pt does not exist"),
        (["importer=nvlab"], "unknown importer=nvlab; did you mean 'nvlabs'? known are arrays, nvlabs"),
    ],
)
def test_what_does_not_go_together(more, message, pair, tmp_path, monkeypatch):
    monkeypatch.setattr("miselbo.data.sources.load_idx", idx_images)
    with pytest.raises(InputError) as error:
        evaluate(pair, f"run_dir={tmp_path / 'run'}", *more)
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def idx_images(*_):
    """MNIST's sizes without its files."""
    from miselbo.data import Images

    grey = torch.zeros(6000, 1, 28, 28, dtype=torch.uint8)
    return Images(grey, grey[:20], 255, "zeros", "in order")


def test_missing_files_show_before_data_are_loaded(tmp_path):
    with pytest.raises(InputError, match=r"none.pt does not exist"):
        run(
            config.compose_config(
                ["task=evaluate", "importer=nvlabs", "checkpoints=[none.pt]", f"run_dir={tmp_path / 'run'}"]
                + ["dataset=mnist", f"dataset.root={tmp_path / 'no data either'}", "dataset.download=false"]
            )
        )


def test_a_folder_for_each_set_of_files(pair):
    def folder(*more: str) -> Path:
        cfg = config.compose_config(arguments(pair, *more))
        return import_folder(cfg.importer, cfg.dataset.name, None, list(cfg.checkpoints), cfg.target)

    assert folder().parent == Path("outputs") and folder().name.startswith("nvlabs-q1-digits-")
    others = [folder("target=each"), folder("dataset=mnist"), folder(f"checkpoints=[{pair[1]}]")]
    assert len({folder(), *others}) == 4
    assert folder("checkpoints=[a/p_and_q1.pt]").name.startswith("nvlabs-p_and_q1-")


def test_the_command(pair, tmp_path):
    relative = [path.relative_to(tmp_path) for path in pair]
    status, out, err = runs.command(tmp_path, *arguments(relative), "report=false")
    assert status == 0, err
    assert "iwelbo q1" in out and "bits/dim" in out
    (folder,) = (tmp_path / "outputs").glob("nvlabs-q1-*")
    assert (folder / "results/bounds.csv").is_file()


def test_without_a_dataset_it_is_the_checkpoints_own(tmp_path):
    (file,) = write(tmp_path, make(1))
    values = {"importer": "nvlabs", "checkpoints": [str(file)]}
    assert cli.official_dataset(values) == ["dataset=mnist"]
    assert cli.official_dataset({**values, "checkpoints": str(file)}) == ["dataset=mnist"]
    assert cli.official_dataset({**values, "dataset": "digits"}) == []
    assert cli.official_dataset({"task": "run"}) == []
    for name, choice in (("celeba_64", ["dataset=celeba64"]), ("ffhq", [])):
        edit(file, lambda held, name=name: setattr(held["args"], "dataset", name))
        assert cli.official_dataset(values) == choice


def test_that_dataset_reaches_the_configuration(tmp_path, monkeypatch, capsys):
    (file,) = write(tmp_path, make(1))
    nowhere = [f"dataset.root={tmp_path / 'empty'}", "dataset.download=false", f"run_dir={tmp_path / 'run'}"]
    command = ["run.py", "task=evaluate", "importer=nvlabs", f"checkpoints=[{file}]", *nowhere]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        runpy.run_path(str(runs.PROJECT / "run.py"), run_name="__main__")
    assert "train-images-idx3-ubyte" in capsys.readouterr().err


def test_a_run_of_ours_as_official_files(tmp_path):
    runs.fit(tmp_path / "run", "ensemble.size=2", "report=false", model=runs.NVAE)
    result = runs.from_folder("export", tmp_path / "run")
    files = [tmp_path / "run/nvlabs" / f"q{s}" / "checkpoint.pt" for s in (1, 2)]
    assert result["checkpoints"] == [str(file) for file in files]
    args = official.content(files[0])["args"]
    assert (args.dataset, args.batch_size, args.seed) == ("digits", 32, 0)
    cfg = load_folder(tmp_path / "run", [])
    data = digits(num_test=12)
    assert fingerprint(load_checkpoints(files)) == fingerprint(restore(source_of(cfg), data))
    ours = json.loads((tmp_path / "run/results/summary.json").read_text())
    theirs = evaluate(files, f"run_dir={tmp_path / 'again'}", "report=false")
    assert theirs["protocol"]["fingerprint"] == ours["protocol"]["fingerprint"]
    assert theirs["headline"]["miselbo"] == ours["headline"]["miselbo"]


def test_an_imported_run_is_exported_again(pair, tmp_path, capsys):
    evaluate(pair, f"run_dir={tmp_path / 'run'}", "report=false")
    assert "iwelbo q2" in capsys.readouterr().out and not (tmp_path / "run/report.html").exists()
    result = runs.from_folder("export", tmp_path / "run")
    assert capsys.readouterr().out.split() == result["checkpoints"]
    assert fingerprint(load_checkpoints(result["checkpoints"])) == fingerprint(load_checkpoints(pair))


def test_a_vae_is_no_nvae(tmp_path):
    runs.fit(tmp_path / "run", "ensemble.size=1", "report=false")
    with pytest.raises(InputError, match="only NVAE ensembles can be written"):
        runs.from_folder("export", tmp_path / "run")
    assert not (tmp_path / "run/nvlabs").exists()
