"""``task=new name=my_model``: the starting files of an own model and data set, in the folder where it is called."""

import importlib.util
import keyword
from pathlib import Path

from miselbo.errors import InputError
from miselbo.runtime.files import write_text

FILES = Path(__file__).parent / "files"
PLACES = {
    "my_model.py.txt": "{name}.py",
    "my_model_data.py.txt": "{name}_data.py",
    "my_model.yaml.txt": "conf/model/{name}.yaml",
    "my_model_data.yaml.txt": "conf/dataset/{name}_data.yaml",
    "test_my_model.py.txt": "test_{name}.py",
}


def create(name: object, folder: Path) -> list[Path]:
    """Write a model, a data set, their yamls and a test that run at once.

    Args:
        name: of the model, a word that Python can import.
        folder: of the user's own; files are added, none is changed.

    Returns:
        The files.

    Raises:
        InputError: no such name, or a file that is there already; nothing is written then.

    Example:
        >>> import tempfile
        >>> files = create("rings", Path(tempfile.mkdtemp()))
        >>> files[0].name, files[2].read_text().splitlines()[3]
        ('rings.py', 'name: rings')
    """
    word = str(name)
    if not word.isidentifier() or keyword.iskeyword(word) or word.startswith("_"):
        raise InputError(
            f"task=new needs name=<a word that Python can import, such as my_model>, got name={name}"
        )
    paths = {file: folder / place.format(name=word) for file, place in PLACES.items()}
    present = [str(path) for path in paths.values() if path.exists()]
    if present:
        raise InputError(f"task=new changes no file, and {', '.join(present)} is there: use another name")
    if importlib.util.find_spec(word) is not None:
        raise InputError(f"task=new name={word}: Python has a module of that name already, use another one")
    for file, path in paths.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, (FILES / file).read_text().replace("my_model", word))
    return list(paths.values())


def told(files: list[Path], folder: Path) -> str:
    """What was written, and the commands that use it."""
    name = files[0].stem
    listed = "\n".join(f"  {path.relative_to(folder)}" for path in files)
    return (
        f"written:\n{listed}\nthen, in this folder:\n"
        f"  miselbo model={name} dataset={name}_data ensemble.size=2   (train and evaluate)\n"
        f"  miselbo model={name} dataset={name}_data task=cost         (what that costs, beforehand)\n"
        f"  python -m pytest test_{name}.py   (where pytest is installed)"
    )
