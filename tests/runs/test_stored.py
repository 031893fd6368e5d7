"""A run folder of somebody else: whatever its configuration names, nothing runs, and the refusal says which key."""

import ast
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from miselbo import load_run
from miselbo.errors import InputError
from miselbo.runs.config import CONF
from miselbo.runs.folder import check_folder, load_folder, stored
from miselbo.runs.stored import DEEPEST, LARGEST
from miselbo.runs.targets import check_target

OLD = Path(__file__).parent / "old" / "vae"
TEXT = (OLD / ".hydra" / "config.yaml").read_text()
MARK = "touch executed"


def folder_with(tmp_path: Path, text: str | bytes) -> Path:
    folder = tmp_path / "colleague"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def with_value(key: str, value: object) -> str:
    """The old folder's configuration with one more value, which may be a node."""
    content = yaml.safe_load(TEXT)
    *path, last = key.split(".")
    node = content
    for part in path:
        node = node.setdefault(part, {}) if isinstance(node, dict) else node[int(part)]
        if node is None:
            raise KeyError(part)
    node[last] = value
    return yaml.safe_dump(content)


def called(name: object, *arguments: object, **more: object) -> dict[str, object]:
    return {"_target_": name, **({"_args_": list(arguments)} if arguments else {}), **more}


NAMES = [
    "os.system", "posix.system", "subprocess.check_output", "subprocess.Popen", "builtins.eval", "builtins.exec",
    "pandas.read_pickle", "joblib.load", "numpy.load", "sympy.sympify", "pickle.loads", "torch.load", "runpy.run_path",
    "importlib.import_module", "code.interact", "shutil.rmtree", "pathlib.Path.unlink", "webbrowser.open",
    "antigravity.webbrowser.open", "evil.run", "hydra.utils.get_method", "hydra.utils.instantiate",
    "hydra.utils.call", "hydra._internal.utils._locate", "functools.partial",
    "miselbo.runtime.files.write_text", "miselbo.runtime.processes.end", "miselbo.pipeline.run",
    "miselbo.runs.building.build", "miselbo.data.os.system", "miselbo.data.densities.torch.load",
    "miselbo.data.densities.InputError", "miselbo.models.vae.torch.hub.load", "miselbo.commands.cli.sys.exit",
    "miselbo", "torch.distributions.torch.load", "torch.distributions.utils.torch.load", "torch.optim.torch.load",
    "torch.distributions.kl_divergence", "pytorch_lightning.callbacks.ModelCheckpoint",
    "pytorch_lightning.seed_everything",
    "os..system", "os.system\n", "", "../evil.run", "miselbo.data.__builtins__", "miselbo.data._private",
]  # fmt: skip
PLACED = [
    ("dataset", called("os.system", MARK)),
    ("dataset.density", called("os.system", MARK)),
    ("dataset.augment", [called("os.system", MARK)]),
    ("dataset.augment", [[{"a": {"b": called("os.system", MARK)}}]]),
    ("dataset.name", called("os.system", MARK)),
    ("dataset.root", called("os.system", MARK, _partial_=True)),
    ("model.target", called("os.system", MARK, _recursive_=False)),
    ("model.target.num_latents", called("os.system", MARK)),
    ("model.approximation", called("miselbo.models.vae.Encoder", num_channels=called("os.system", MARK))),
    ("model.approximation._args_", [called("os.system", MARK)]),
    ("model.members", [called("os.system", MARK)]),
    ("model.members", [{"num_channels": called("os.system", MARK)}, None]),
    ("model.fit", called("os.system", MARK)),
    ("model.cost", called("os.system", MARK)),
    ("model.objective", called("os.system", MARK)),
    ("model.objective.learning_rate", called("os.system", MARK)),
    ("ensemble.size", called("os.system", MARK)),
    ("trainer", called("os.system", MARK)),
    (
        "trainer.callbacks",
        [called("pytorch_lightning.callbacks.LambdaCallback", setup=called("os.system", MARK))],
    ),
    ("trainer.plugins", called("os.system", MARK)),
    ("trainer.logger", called("os.system", MARK)),
    ("logger", called("os.system", MARK)),
    ("study", called("os.system", MARK)),
    ("evaluation.grid", called("os.system", MARK)),
    ("sampling.seed", called("os.system", MARK)),
    ("seed", called("os.system", MARK)),
    ("new_key", {"deep": [{"er": called("os.system", MARK)}]}),
    ("dataset._target_", called("os.system", MARK)),
    ("dataset._target_", ["os.system"]),
    ("dataset._target_", None),
    ("dataset._target_", 3),
    ("dataset", called("miselbo.models.vae.Decoder")),  # of miselbo, but no data
    ("trainer", called("miselbo.data.digits")),
    ("hydra", {"searchpath": ["file:///tmp/evil"]}),
    ("hydra", {"callbacks": {"a": called("os.system", MARK)}}),
    ("trust", ["os"]),
]
RESOLVED = [
    ("dataset.name", "${oc.env:HOME}"), ("run_dir", "${oc.env:TOKEN,none}"), ("model.name", "a ${oc.env:HOME} b"),
    ("dataset._target_", "${dataset.name}"), ("dataset.root", "${oc.decode:${oc.env:HOME}}"),
    ("model.members", ["${oc.env:HOME}"]), ("dataset.path", "${hydra:runtime.cwd}"), ("seed", "${seed}"),
    ("trainer.max_epochs", "${model.max_epochs}"), ("dataset.name", "${oc.create:{_target_: os.system}}"),
    ("dataset.name", "???"), ("dataset.name", "\\${oc.env:HOME}"),
]  # fmt: skip
BOMB = "a: &a [x, x]\n" + "".join(
    f"{new}: &{new} [*{old}, *{old}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
WRITTEN = [
    ("a ", BOMB + TEXT),
    ("model.name", TEXT.replace("  name: vae", "  name: &n vae\n  other: *n")),
    ("dataset.<<", TEXT.replace("dataset:\n", "dataset:\n  <<: {a: 1}\n")),
    ("dataset.name", TEXT.replace("  name: digits", "  name: !!python/object/apply:os.system ['touch executed']")),
    ("dataset", TEXT.replace("dataset:\n", "dataset: !!python/object:os.system\n")),
    ("dataset.name", TEXT.replace("  name: digits", "  name: !!python/name:os.system ''")),
    ("dataset.name", TEXT.replace("  name: digits", "  name: !mine digits")),
    ("dataset.name", TEXT.replace("  name: digits", "  name: !!binary aGk=")),
    ("task", TEXT + "task: evaluate\n"),
    ("deep", TEXT + "deep: " + "[" * (DEEPEST + 1) + "]" * (DEEPEST + 1)),
    ("deep", TEXT + "deep: " + "{a: " * 5000 + "}" * 5000),
    ("deep", TEXT + "deep: " + "[" * 100_000),
    ("more than", TEXT + "# " + "x" * LARGEST),
    ("long", TEXT + "long: " + "x" * 5000),
    ("seed", TEXT.replace("seed: 0", "seed: " + "9" * 5000)),
    ("no plain word", TEXT + "? [a, b]\n: 1\n"),
    ("cannot be read", TEXT + "---\na: 1\n"),
    ("cannot be read", TEXT.encode("utf-16")),
    ("cannot be read", TEXT.encode() + b"\xff\xfe"),
    ("cannot be read at dataset", TEXT.replace("  name: digits", "  name: [digits")),
    ("no configuration", "[1, 2]"),
    ("no configuration", ""),
    ("model must hold", with_value("model", "vae")),
]  # fmt: skip


def refusal(folder: Path) -> str:
    """The one message with which all ways into a folder end."""
    with pytest.raises(InputError) as first:
        load_folder(folder, [])
    with pytest.raises(InputError) as second:
        load_run(folder)
    assert str(first.value) == str(second.value) and len(str(first.value)) < 700
    return str(first.value)


@pytest.fixture(autouse=True)
def nothing_runs(tmp_path, monkeypatch):
    """In an empty folder with a module that leaves a mark when it is imported."""
    (tmp_path / "evil.py").write_text("open('executed', 'w')\ndef run(*a, **k): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKEN", "secret")
    before = "antigravity" in sys.modules
    yield
    assert not (tmp_path / "executed").exists() and "evil" not in sys.modules
    assert before or "antigravity" not in sys.modules


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_refused(tmp_path, name):
    for key in ("dataset.density", "model.target"):
        with pytest.raises(InputError, match=rf"^{key}\._target_ "):
            check_target(key, name)
    message = refusal(folder_with(tmp_path, with_value("dataset.density", called(name, MARK))))
    assert "dataset.density._target_" in message


@pytest.mark.parametrize(("key", "value"), [*PLACED, *RESOLVED])
def test_where_it_stands_does_not_matter(tmp_path, key, value):
    message = refusal(folder_with(tmp_path, with_value(key, value)))
    assert key in message and "secret" not in message


@pytest.mark.parametrize(("words", "text"), WRITTEN)
def test_yaml_that_is_more_than_values(tmp_path, words, text):
    assert words in refusal(folder_with(tmp_path, text))


@pytest.mark.parametrize("task", ["evaluate", "report", "sample", "export"])
@pytest.mark.parametrize(("key", "value"), [PLACED[0], PLACED[12], RESOLVED[0]])
def test_every_command_on_a_folder_refuses(call, tmp_path, task, key, value):
    folder = folder_with(tmp_path, with_value(key, value))
    before = sorted(tmp_path.rglob("*"))
    status, out, err = call(f"task={task}", f"run_dir={folder}")
    assert (status, out, err.count("\n")) == (2, "", 1) and key in err and err.startswith("error: ")
    assert sorted(tmp_path.rglob("*")) == before


def test_other_files_beside_it_are_never_read(tmp_path, call):
    shutil.copytree(OLD, folder := tmp_path / "old")
    for name in ("overrides.yaml", "hydra.yaml"):
        (folder / ".hydra" / name).write_text(f"- dataset: {{_target_: os.system, _args_: ['{MARK}']}}\n")
    assert load_run(folder).config.dataset.name == "digits"
    sweep = tmp_path / "sweep"
    (sweep / ".hydra").mkdir(parents=True)
    (sweep / "multirun.yaml").write_text(with_value("dataset", called("os.system", MARK)))
    assert call("task=sweep_report", f"sweep_dir={sweep}")[0] == 2


def test_an_untrusted_folder_is_not_continued_either(tmp_path):
    """A run in the folder composes its own settings: of the stored ones it takes nothing but the comparison."""
    folder = folder_with(tmp_path, with_value("dataset.name", "${oc.env:TOKEN}"))
    with pytest.raises(InputError, match=r"dataset\.name is .*interpolation"):
        check_folder(OmegaConf.create(yaml.safe_load(TEXT)), folder)


def test_trust_is_for_one_command(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "__init__.py").write_text(
        "import os\nfrom os import getcwd\ndef log_p(z):\n    return z\nclass Log:\n    pass\n"
    )
    folder = folder_with(tmp_path, with_value("dataset.density", called("mine.log_p")))
    assert "trust=[mine]" in refusal(folder)
    assert load_folder(folder, ["trust=[mine]"]).dataset.density._target_ == "mine.log_p"
    assert "trust" not in load_folder(folder, ["trust=mine"])
    assert load_run(folder, trust=["mine"]).config.model.name == "vae"
    check_target("anywhere", "mine.Log", ["mine"])
    for name, home in (("mine.os.system", "os"), ("mine.getcwd", "posix")):
        with pytest.raises(InputError, match=f"belongs to {home}"):
            check_target("dataset", name, ["mine"])
    with pytest.raises(InputError, match="which does not exist|cannot be imported"):
        check_target("dataset", "mine.nothing", ["mine"])
    with pytest.raises(InputError, match="names minus.log_p"):
        check_target("dataset", "minus.log_p", ["mine"])
    for wrong in ("trust=[1]", "trust=[a b]", "trust=null", "trust=mine,os", "trust=[/tmp/x]"):
        with pytest.raises(InputError, match="trust must list packages"):
            load_folder(folder, [wrong])


def test_all_that_conf_names_is_allowed():
    """Who adds a node with a ``_target_`` to conf/ adds its key to miselbo.runs.targets.PLACES."""
    count = 0
    for path in sorted(CONF.glob("*/*.yaml")):
        groups = {
            "experiment": [],
            "objective": ["model", "objective"],
        }  # what is not packed under its own name
        group = groups.get(path.parent.name, [path.parent.name])
        nodes = [(group, OmegaConf.to_container(OmegaConf.load(path), resolve=False))]
        while nodes:
            key, node = nodes.pop()
            if node.get("_target_", "???") != "???":
                check_target(".".join(key), node["_target_"])
                count += 1
            nodes += [([*key, name], value) for name, value in node.items() if isinstance(value, dict)]
    assert count > 60


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("model.members[1]", "miselbo.models.gaussian.Gaussian"),
        ("model.approximation.base", "torch.distributions.Normal"),
        ("model.optimizer", "torch.optim.Adam"),
        ("dataset.density", "miselbo.data.densities.LinearGaussian"),
    ],
)
def test_classes_that_hold_no_other_code(key, name):
    check_target(key, name)


def test_folders_of_earlier_versions_name_what_has_moved():
    assert stored(OLD, ()).model.cost._target_ == "miselbo.training.cost.forecast"


def test_no_file_is_read_in_a_way_that_runs_code():
    """Every load of the package says that it takes no pickled objects; nothing evaluates text."""
    wrong = []
    for path in sorted((CONF.parent / "miselbo").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            text, given = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
            if text in ("np.load", "numpy.load") and given.get("allow_pickle") != "False":
                wrong.append(f"{path.name}:{node.lineno} {text}")
            if text == "torch.load" and given.get("weights_only") != "True":
                wrong.append(f"{path.name}:{node.lineno} {text}")
            unsafe = ("pickle.load", "pickle.loads", "joblib.load", "pd.read_pickle", "eval", "exec", "yaml.load",
                      "yaml.unsafe_load", "yaml.full_load", "marshal.loads", "os.system")  # fmt: skip
            if text in unsafe:
                wrong.append(f"{path.name}:{node.lineno} {text}")
    assert not wrong
