"""kill -9 in miniature: of all processes and of the main one alone; the same command goes on to the same bytes."""

import killing
import pytest


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    killing.finish(folder, *killing.SMALL)
    return folder


@pytest.mark.parametrize("group", [pytest.param(True, marks=pytest.mark.slow), False])
def test_a_kill_while_members_train_side_by_side_loses_nothing(tmp_path, whole, group):
    folder = tmp_path / "run"
    both = [folder / "members" / f"q{s}.resume.ckpt" for s in (2, 3)]
    moment = lambda: any(path.exists() for path in both)  # noqa: E731
    assert killing.killed(folder, moment, group, *killing.SMALL, "ensemble.workers=2")
    killing.finish(
        folder, *killing.SMALL, "ensemble.workers=2"
    )  # at once: what the kill left alone is waited for
    assert killing.differences(folder, whole, 3) == []
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]
