"""The rooms stand in one order: a module uses those of its own room and above, and nothing uses itself by a detour.

And what keeps it so: few modules that receive the whole configuration, few types that are none.
"""

import ast
import re
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "miselbo"
ROOMS = (
    "errors", "noise", "protocols", "bounds", "runtime", "report", "data", "models", "ensemble", "importers", "runs",
    "evaluation", "training", "phylo", "pipeline", "commands",
)  # fmt: skip
MODULES = {
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}


def imports(path: Path, inside: bool) -> set[str]:
    """Modules of the package that a file imports, anywhere or at its top alone."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if inside else tree.body
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in MODULES else node.module)
    return {name for name in found if name in MODULES and name != "miselbo"}


def room(module: str) -> str:
    return module.split(".")[1]


def test_at_most_sixteen_entries():
    rooms = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    entries = rooms | {path.stem for path in PACKAGE.glob("[!_]*.py")}
    assert entries == set(ROOMS) and len(ROOMS) <= 16


def test_nothing_is_imported_upwards():
    upwards = [
        f"{module} imports {used}"
        for module, path in MODULES.items()
        if module not in ("miselbo", "miselbo.__main__")
        for used in imports(path, inside=True)
        if ROOMS.index(room(used)) > ROOMS.index(room(module))
    ]
    assert not upwards


def test_no_circle():
    graph = {module: imports(path, inside=False) for module, path in MODULES.items()}
    finished: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module not in finished:
            for used in graph[module]:
                visit(used, (*above, module))
            finished.add(module)

    for module in graph:
        visit(module, ())


def test_few_modules_receive_the_whole_configuration():
    """Hydra's configuration is read at the edge; the rest takes values."""
    receive = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.arg) and node.annotation and "DictConfig" in ast.unparse(node.annotation)
    }
    assert len(receive) <= 6, sorted(receive)


def test_few_types_are_any():
    """Lines with the word, imports and comments too; a protocol, a TypedDict or ``object`` says more."""
    lines = [
        line
        for path in MODULES.values()
        for line in path.read_text().splitlines()
        if re.search(r"\bAny\b", line)
    ]
    assert len(lines) < 120, len(lines)
