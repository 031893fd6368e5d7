"""One command at a time on the whole of a run folder, and a record of the one that failed last."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from miselbo.runs.folder import config_path, refuse_links
from miselbo.runs.status import FAILURE
from miselbo.runtime import locks
from miselbo.runtime.files import forget_temporaries, write_json


@contextlib.contextmanager
def using(folder: Path, task: str) -> Iterator[None]:
    """One command at a time on the whole of a run folder; jobs of ``task=fit_member`` hold their members alone.

    Raises:
        InputError: another command is at work there, or a link leads out of the folder.
    """
    if not folder.is_dir():  # the task says so
        yield
        return
    refuse_links(folder)
    with locks.hold(folder, locks.WHOLE, f"in use (task={task})"):
        forget_temporaries(folder)
        record = config_path(folder).with_name(FAILURE)
        try:
            yield
        except (OSError, RuntimeError) as error:  # what miselbo.runs.status shows; a refusal changes nothing
            if record.parent.is_dir():
                with contextlib.suppress(OSError):
                    write_json(record, {"task": task, "error": (str(error).splitlines() or [""])[0]})
            raise
        if task in ("run", "evaluate"):
            record.unlink(missing_ok=True)
