"""What git knows of a project."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rules import git
from rules.errors import Misconfigured


def _git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", *identity, "-C", str(folder), *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    _git(folder, "init", "-q")
    (folder / "models.toml").write_text("old")
    _git(folder, "add", ".")
    _git(folder, "commit", "-qm", "first")
    return folder


def test_a_changed_tree_is_not_its_commit(repository: Path) -> None:
    clean = git.revision(repository)
    assert len(clean) == 40
    (repository / "models.toml").write_text("new")
    assert git.revision(repository) == f"{clean}+"


def test_no_repository_has_no_revision(tmp_path: Path) -> None:
    assert git.revision(tmp_path) == ""


def test_a_revision_is_exported_as_it_was(repository: Path, tmp_path: Path) -> None:
    (repository / "models.toml").write_text("new")
    git.export(repository, "HEAD", tmp_path / "then")
    assert (tmp_path / "then" / "models.toml").read_text() == "old"


def test_a_project_below_the_top_exports_only_itself(repository: Path, tmp_path: Path) -> None:
    (repository / "sub").mkdir()
    (repository / "sub" / "models.toml").write_text("sub")
    _git(repository, "add", ".")
    _git(repository, "commit", "-qm", "second")
    git.export(repository / "sub", "HEAD", tmp_path / "then")
    assert [path.name for path in (tmp_path / "then").iterdir()] == ["models.toml"]


@pytest.mark.parametrize("rev", ["nowhere", "--upload-pack=x", ""])
def test_what_is_no_revision_is_said_so(repository: Path, tmp_path: Path, rev: str) -> None:
    with pytest.raises(Misconfigured, match="is not a revision here"):
        git.export(repository, rev, tmp_path / "then")


def test_a_revision_that_cannot_tell_is_none(repository: Path) -> None:
    assert git.planned(repository, repository) is None


def test_the_commits_between_two_revisions_are_named_newest_first(repository: Path) -> None:
    first = git.revision(repository)
    for text in ("second", "third"):
        (repository / "models.toml").write_text(text)
        _git(repository, "commit", "-qam", f"{text}: \x1f what changed")
    found = git.commits(repository, f"{first}+", git.revision(repository))
    assert [subject for _, _, subject in found] == ["third: \x1f what changed", "second: \x1f what changed"]
    assert git.revision(repository).startswith(found[0][0])


def test_a_file_that_is_not_utf_8_is_read_as_far_as_it_can_be(repository: Path) -> None:
    (repository / "models.toml").write_bytes(b"caf\xe9")
    _git(repository, "commit", "-qam", "second")
    assert git.file(repository, "HEAD", "models.toml") == "caf\ufffd"
    assert git.file(repository, "HEAD", "nothing") is None


def test_what_changed_since_a_revision_is_named_below_the_folder_that_asks(repository: Path) -> None:
    assert git.changed(repository, "HEAD") == []
    for name in ("sub/a 模", "sub/b"):
        (repository / name).parent.mkdir(exist_ok=True)
        (repository / name).write_text("old")
    _git(repository, "add", ".")
    _git(repository, "commit", "-qm", "second")
    (repository / "sub/a 模").write_text("new")
    (repository / "models.toml").write_text("new")
    (repository / "untracked").write_text("new")
    assert git.changed(repository, "HEAD") == ["models.toml", "sub/a 模"]
    assert git.changed(repository / "sub", "HEAD") == ["a 模"]
    with pytest.raises(Misconfigured, match="is not a revision here"):
        git.changed(repository, "nowhere")


def test_between_revisions_that_git_does_not_know_there_are_no_commits(repository: Path, tmp_path: Path) -> None:
    assert git.commits(repository, "0" * 40, git.revision(repository)) == []
    assert git.commits(repository, "", "") == []
    assert git.commits(tmp_path, "--output=x", "HEAD") == []
