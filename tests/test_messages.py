"""A message that names a key of the configuration names one that exists."""

import ast
import re

import runs
import yaml

from miselbo.runs import config

GROUPS = "dataset|ensemble|evaluation|logger|model|sampling|trainer"
KEY = re.compile(rf"(?<![\w./])(?:{GROUPS})(?:\.[a-z]\w*)+(?!\w*[\w(/])")


def keys(node, prefix):
    """Every key below a node of a yaml."""
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}.{name}"
            yield from keys(value, f"{prefix}.{name}")


def known():
    found = set(keys(yaml.safe_load((config.CONF / "config.yaml").read_text()), ""))
    for path in config.CONF.rglob("*.yaml"):
        group = path.relative_to(config.CONF).parts[0]
        found |= set(keys(yaml.safe_load(path.read_text()), "" if group == "experiment" else f".{group}"))
    return {name.removeprefix(".") for name in found}


def messages():
    """Every string of the package that is no docstring, with its file."""
    for path in (runs.PROJECT / "miselbo").rglob("*.py"):
        tree = ast.parse(path.read_text())
        texts = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in texts:
                yield path.relative_to(runs.PROJECT), node.value


def test_every_key_in_a_message_exists():
    exist = known()
    named = [(path, key) for path, text in messages() for key in KEY.findall(text)]
    assert len(named) > 80
    other = {path.with_suffix("").as_posix().replace("/", ".") for path, _ in messages()}  # modules
    absent = {f"{path}: {key}" for path, key in named if key not in exist and f"miselbo.{key}" not in other}
    absent -= {"miselbo/training/trainer.py: trainer.connectors.signal_connector"}  # a module of Lightning
    assert not absent
