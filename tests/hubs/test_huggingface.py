"""Hugging Face's hub through the real client: every file with its SHA-256, and refusals that say whose move it is."""

from __future__ import annotations

import hashlib

import pytest

from rules.hubs import HubError
from rules.hubs.huggingface import HuggingFace
from tests.hub import TOKEN, Fault, Hub


def _lock(found: HuggingFace, where: str, revision: str) -> bytes:
    return found.read(where, found.list(where, revision).commit, "config.json")


def _refusal(hub: Hub, where: str = "o/n", revision: str = "main") -> str:
    with pytest.raises(HubError) as told:
        _lock(HuggingFace(hub.url, patience_s=0.0), where, revision)
    assert TOKEN not in str(told.value)
    return str(told.value)


def test_a_listing_has_the_commit_and_every_file_with_the_sha256_of_what_is_large(hub: Hub) -> None:
    listing = HuggingFace(hub.url).list("o/n", "main")
    files = hub.repositories["o/n"].files
    assert listing.commit == hub.repositories["o/n"].commit
    assert [(it.path, it.size) for it in listing.files] == [(path, len(files[path])) for path in sorted(files)]
    told = {it.path: it.sha256 for it in listing.files}
    assert told["model.safetensors"] == hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert told["config.json"] == ""


def test_a_small_file_is_read_at_its_commit(hub: Hub) -> None:
    found, repository = HuggingFace(hub.url), hub.repositories["o/n"]
    assert found.read("o/n", repository.commit, "config.json") == repository.files["config.json"]
    (listed,) = (it for it in found.list("o/n", "main").files if it.path == "config.json")
    sha256 = found.sha256("o/n", repository.commit, listed, print)
    assert sha256 == hashlib.sha256(repository.files["config.json"]).hexdigest()


def test_a_page_in_the_place_of_a_small_file_is_not_locked(hub: Hub) -> None:
    found, repository = HuggingFace(hub.url), hub.repositories["o/n"]
    (listed,) = (it for it in found.list("o/n", "main").files if it.path == "config.json")
    hub.faults["config.json"] = Fault(instead=b"<html>log in</html>", kind="text/html")
    with pytest.raises(HubError, match="came as another file than is listed"):
        found.sha256("o/n", repository.commit, listed, print)


def test_a_busy_hub_is_asked_again(hub: Hub) -> None:
    hub.down += [503, 429]
    told: list[str] = []
    assert HuggingFace(hub.url, heard=told.append).list("o/n", "main").files
    assert told
    assert told[0].endswith("'503'; asked again for up to 60 s")
    assert hub.down == []


def test_a_hub_that_stays_busy_is_given_up(hub: Hub) -> None:
    hub.down += [503] * 50
    assert "could not be asked" in _refusal(hub)


def test_a_hub_that_is_not_there_is_one_error_without_a_traceback() -> None:
    with pytest.raises(HubError, match="could not be asked"):
        HuggingFace("http://127.0.0.1:9", patience_s=0.0).list("o/n", "main")


def test_a_gated_model_without_a_token_is_refused_before_any_file_is_asked_for(hub: Hub) -> None:
    hub.repositories["o/n"].gated = True
    told = _refusal(hub)
    assert "o/n is gated" in told
    assert "HF_TOKEN is not set" in told
    assert not [it for it in hub.requests if "resolve" in it.path]


def test_a_gated_model_and_a_token_without_access_say_so(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["o/n"].gated = True
    hub.repositories["o/n"].readers = ()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    told = _refusal(hub)
    assert "o/n is gated" in told
    assert "ask for access" in told
    assert "sent HF_TOKEN" in told


def test_a_token_that_is_not_valid_is_told_apart(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_old")
    told = _refusal(hub)
    assert "HF_TOKEN is not valid" in told
    assert "401" in told
    assert "hf_old" not in told


def test_what_is_not_there_and_what_is_private_say_what_to_check(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "hf:o/other is not there, or not for us" in _refusal(hub, "o/other")
    hub.repositories["o/n"].private = True
    told = _refusal(hub)
    assert "401" in told
    assert "have no HF_TOKEN" in told
    hub.repositories["o/n"].readers = ()
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert "404" in _refusal(hub)


def test_an_unknown_revision_is_named(hub: Hub) -> None:
    assert "has no revision 'nope'" in _refusal(hub, revision="nope")
