"""Where a login comes from, and that a file which cannot be read does not end up in a message."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rules.errors import Misconfigured
from rules.remotes import connect
from rules.remotes.credentials import AUTHORIZATION, authorization, aws_profile

SECRET = "hush-hush-hush"


def test_there_may_be_no_login_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert authorization("host") == {}
    assert aws_profile() == {}
    monkeypatch.setenv("NETRC", str(tmp_path / "nothing"))
    assert authorization("host") == {}


def test_a_login_is_for_its_host_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text("machine there login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert authorization("there") == {"Authorization": "Basic YTpi"}
    assert authorization("elsewhere") == {}


@pytest.mark.parametrize("value", [f"Bearer {SECRET}\nX: y", f"Bearer {SECRET}-ü"])
def test_a_header_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(AUTHORIZATION, value)
    with pytest.raises(Misconfigured, match=f"{AUTHORIZATION} is not a header") as error:
        authorization("host")
    assert "hush" not in str(error.value)


def test_a_broken_netrc_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "netrc").write_text(f"machine host login me {SECRET}\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(Misconfigured, match="the netrc file cannot be read: line") as error:
        authorization("host")
    assert "hush" not in str(error.value)


def test_a_broken_aws_file_is_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "credentials").write_text(f"{SECRET}\n[default]\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(Misconfigured, match="the AWS credentials file cannot be read") as error:
        aws_profile()
    assert "hush" not in str(error.value)


def test_the_environment_wins_over_a_profile(profiles: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    profiles(endpoint="http://127.0.0.1:9", key="k")
    assert aws_profile() == {}
    monkeypatch.setenv("AWS_PROFILE", "team")
    whole = {"access_key_id": "k", "secret_access_key": "k", "region": "eu-west-1", "endpoint": "http://127.0.0.1:9"}
    assert aws_profile() == whole
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "other")
    monkeypatch.setenv("AWS_REGION", "us-west-2")
    assert aws_profile() == {"endpoint": "http://127.0.0.1:9"}


@pytest.mark.parametrize(("profile", "words"), [("taem", "did you mean 'team'"), ("sso", "export-credentials")])
def test_a_profile_that_is_no_use_is_an_error(
    profiles: Callable[..., None], monkeypatch: pytest.MonkeyPatch, profile: str, words: str
) -> None:
    profiles(endpoint="", key=SECRET)
    monkeypatch.setenv("AWS_PROFILE", profile)
    with pytest.raises(Misconfigured, match=words) as error:
        connect("s3://engines")
    assert "hush" not in str(error.value)
