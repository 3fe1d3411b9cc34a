"""ModelScope: the commit behind a branch, every file's SHA-256, and its way of saying no with a 200."""

from __future__ import annotations

import hashlib

import pytest

from rules.hubs import HubError
from rules.hubs.modelscope import ModelScope
from tests.hub import TOKEN, Hub


def _refusal(hub: Hub, where: str = "o/n", revision: str = "master") -> str:
    with pytest.raises(HubError) as told:
        ModelScope(hub.url, retries=0).list(where, revision)
    assert TOKEN not in str(told.value)
    return str(told.value)


def test_a_listing_has_the_whole_commit_and_every_sha256(hub: Hub) -> None:
    listing = ModelScope(hub.url).list("o/n", "master")
    files = hub.repositories["o/n"].files
    assert listing.commit == hub.repositories["o/n"].commit, "LatestCommitter has only its first eight digits"
    told = {it.path: (it.size, it.sha256) for it in listing.files}
    assert told == {path: (len(it), hashlib.sha256(it).hexdigest()) for path, it in files.items()}


def test_a_small_file_is_read_at_its_commit(hub: Hub) -> None:
    repository = hub.repositories["o/n"]
    assert ModelScope(hub.url).read("o/n", repository.commit, "config.json") == repository.files["config.json"]


def test_an_unknown_revision_is_answered_with_200_and_still_an_error(hub: Hub) -> None:
    assert "has no revision 'main'" in _refusal(hub, revision="main")


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.down += [503, 502]
    assert ModelScope(hub.url).list("o/n", "master").files


def test_refusals_say_which_and_what_to_do(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "does not know us" in _refusal(hub, "o/other")
    hub.repositories["o/n"].gated = True
    hub.repositories["o/n"].readers = ()
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    told = _refusal(hub)
    assert "is not for us" in told
    assert "sent MODELSCOPE_API_TOKEN" in told
    assert "is not there" in _refusal(hub, "o/other")


def test_a_token_is_sent_as_its_own_client_sends_it(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", TOKEN)
    ModelScope(hub.url).list("o/n", "master")
    assert hub.requests[-1].headers["cookie"] == f"m_session_id={TOKEN}"


def test_an_answer_that_is_no_listing_is_an_error(hub: Hub) -> None:
    with pytest.raises(HubError):
        ModelScope(hub.cdn, retries=0).list("o/n", "master")
