"""Which URLs are remotes, and what is said of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules.errors import Misconfigured
from rules.remotes import RemoteError, connect


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("htps://host/cache", "did you mean 'https'"),
        ("bucket/prefix", "unknown scheme"),
        ("", "unknown scheme"),
        ("s3://", "names no bucket"),
        ("http:///cache", "names no bucket or host"),
        ("http://host:port/", "is not a URL"),
        ("file://relative/path", "three slashes"),
        ("file:///", "is not the path of a folder"),
        ("https://host/cache?sig=hush", "more than a path"),
        ("https://me:hush@host/cache", "holds credentials"),
        ("s3://key:hush@bucket/prefix", "holds credentials"),
        ("az://hush@container", "holds credentials"),
    ],
)
def test_a_url_that_is_no_remote_is_refused_without_its_secrets(url: str, words: str) -> None:
    with pytest.raises(Misconfigured, match=words) as error:
        connect(url)
    assert "hush" not in str(error.value)


def test_a_folder_may_have_any_name(tmp_path: Path) -> None:
    connect(f"file://{tmp_path}/a%20b%23c").write("x", b"1")
    assert (tmp_path / "a b#c" / "x").read_bytes() == b"1"


def test_what_cannot_be_opened_is_an_error_of_its_first_use(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for url, words in ((f"file://{tmp_path}/file/cache", "Not a directory"), ("az://container", "Account must be")):
        remote = connect(url)
        with pytest.raises(RemoteError, match=f"cannot be used\n    why  .*{words}"):
            remote.size("a")


def test_a_url_is_shown_without_a_slash_at_its_end(s3_login: None) -> None:
    assert connect("s3://bucket/prefix/").url == "s3://bucket/prefix"
    assert connect("http://host/").url == "http://host"
