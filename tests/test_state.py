"""doit's own database: whole or forgotten, never in the way."""

from __future__ import annotations

import pytest

from tests.space import Space


@pytest.mark.parametrize("text", ["", "{", '{"build:m": {"a":', "[]garbage"])
def test_a_torn_database_is_forgotten_and_nothing_is_made_again(workspace: Space, text: str) -> None:
    workspace.build()
    workspace.ran()
    workspace.write("artifacts/.doit.db", text)
    assert "everything is up to date" in workspace.build()
    assert workspace.ran() == []


def test_many_doits_at_once_leave_a_database_that_can_be_read(workspace: Space) -> None:
    workspace.build()
    doits = [workspace.start("build") for _ in range(6)]
    assert [(doit.communicate(timeout=120), doit.returncode)[1] for doit in doits] == [0] * 6
    assert "everything is up to date" in workspace.build()


def test_a_build_with_nothing_to_do_does_not_write_it(workspace: Space) -> None:
    workspace.build()
    before = written(workspace)
    workspace.build()
    assert written(workspace) == before
    workspace.build("forget", "build:m")
    assert written(workspace) != before


def written(workspace: Space) -> tuple[int, int]:
    """The file and when it was last written (ns). Not its whole stat: reading it moves its access time."""
    stat = (workspace.root / "artifacts/.doit.db").stat()
    return stat.st_ino, stat.st_mtime_ns
