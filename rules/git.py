"""What git knows of the project: the revision, and the files of another one."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from pathlib import Path

from rules.errors import Misconfigured, Problem

__all__ = ["changed", "commit", "commits", "export", "file", "planned", "revision"]

_MANY = 50


def revision(root: Path) -> str:
    """The commit of the working tree, with `+` when tracked files differ from it; "" outside a repository."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return ""


def commits(root: Path, since: str, until: str) -> list[tuple[str, str, str]]:
    """(short hash, date, subject) of up to 50 commits after `since` up to `until`, newest first; [] of unknown ones."""
    span = f"{since.rstrip('+')}..{until.rstrip('+')}"
    try:
        told = _git(root, "log", f"-n{_MANY}", "--format=%h%x1f%cs%x1f%s", "--end-of-options", span)
    except (OSError, subprocess.SubprocessError):
        return []
    rows = (line.split("\x1f", 2) for line in told.split("\n"))
    return [(row[0], row[1], row[2]) for row in rows if len(row) == 3]


def export(root: Path, rev: str, target: Path) -> None:
    """Writes the files of revision `rev`, as of the folder `root`, below `target`. Raises Misconfigured."""
    try:
        commit = _commit(root, rev)
        prefix = _git(root, "rev-parse", "--show-prefix")
        top = _git(root, "rev-parse", "--show-toplevel")  # below it, git would look for the folder in the folder
        command = ["git", "-C", top, "archive", "--format=tar", f"{commit}:{prefix}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                archive.extractall(target)  # noqa: S202 - our own repository's files
    except (OSError, subprocess.SubprocessError, tarfile.TarError) as error:
        raise _no_revision(rev, error) from error


def planned(folder: Path, root: Path) -> dict[str, str] | None:
    """The variants' identities as the rules and models.toml of the exported revision in `folder` give them.

    `root` is where relative paths start. None when that revision cannot tell: it was wrong, or older than the question.
    """
    code = (
        "import json, sys; from pathlib import Path; from rules import plan; "
        "held = Path('models.lock'); lock = [held.read_text(encoding='utf-8')] if held.exists() else []; "
        "made = plan.load(Path('models.toml').read_text(encoding='utf-8'), Path(sys.argv[1]), *lock); "
        "print(json.dumps(plan.variant_identities(made)))"
    )
    command = [sys.executable, "-c", code, str(root)]
    try:
        ran = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True, timeout=300)
        return {str(name): str(identity) for name, identity in json.loads(ran.stdout).items()}
    except (subprocess.SubprocessError, ValueError):
        return None


def commit(root: Path, rev: str) -> str:
    """The commit that `rev` names. Raises Misconfigured."""
    try:
        return _commit(root, rev)
    except (OSError, subprocess.SubprocessError) as error:
        raise _no_revision(rev, error) from error


def file(root: Path, rev: str, path: str) -> str | None:
    """The text of a file, below the folder `root`, as it is in a revision; None where it is not there."""
    try:
        return _git(root, "show", f"{rev}:./{path}")
    except (OSError, subprocess.SubprocessError):
        return None


def changed(root: Path, rev: str) -> list[str]:
    """The tracked files below the folder `root` that differ between a revision and the working tree, sorted."""
    try:
        told = _git(root, "diff", "--name-only", "--relative", "--no-renames", "-z", "--end-of-options", rev, "--", ".")
    except (OSError, subprocess.SubprocessError) as error:
        raise _no_revision(rev, error) from error
    return sorted(filter(None, told.split("\0")))


def _commit(root: Path, rev: str) -> str:
    return _git(root, "rev-parse", "--verify", "--end-of-options", f"{rev}^{{commit}}")


def _no_revision(rev: str, error: Exception) -> Misconfigured:
    reason = error.stderr.strip() if isinstance(error, subprocess.CalledProcessError) else str(error)
    hint = "name a commit, branch or tag; in CI fetch enough history"
    return Misconfigured(Problem(what=f"{rev!r} is not a revision here", facts=(("git", reason),), hint=hint))


def _git(root: Path, *arguments: str) -> str:
    """What git says; bytes that are not UTF-8 come as U+FFFD."""
    command = ["git", "-C", str(root), *arguments]
    ran = subprocess.run(command, capture_output=True, encoding="utf-8", errors="replace", check=True, timeout=60)
    return ran.stdout.strip()
