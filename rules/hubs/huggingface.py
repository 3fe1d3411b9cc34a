"""Hugging Face's hub, or one with its API at HF_ENDPOINT, through huggingface_hub."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import TypeVar

import httpx
from huggingface_hub import HfApi, constants, get_session, get_token, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status
from tenacity import RetryCallState, Retrying, retry_if_exception, stop_after_delay, wait_exponential_jitter

from rules.errors import Problem
from rules.hubs import Heard, Hub, HubError, Listed, Listing
from rules.remotes.wire import scrub

__all__ = ["HuggingFace", "open_hub"]

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_T = TypeVar("_T")


def open_hub(heard: Heard) -> Hub:
    """The hub at HF_ENDPOINT."""
    return HuggingFace(heard=heard)


class HuggingFace:
    """`patience_s` is how long a busy or absent hub is asked again, and `heard` is told so."""

    def __init__(
        self, endpoint: str = constants.ENDPOINT, patience_s: float = 60.0, heard: Heard = lambda _line: None
    ) -> None:
        self._endpoint = endpoint
        self._api = HfApi(endpoint=endpoint)
        self._patience_s, self._heard = patience_s, heard

    def list(self, where: str, revision: str) -> Listing:
        """The files of ORG/NAME at a branch, tag or commit. A gated one is refused here when there is no token."""
        info = self._ask(where, revision, lambda: self._api.model_info(where, revision=revision))
        if info.gated and get_token() is None:
            raise HubError(_gated(where, "HF_TOKEN is not set"))
        commit = info.sha or revision
        tree = self._ask(where, commit, lambda: list(self._api.list_repo_tree(where, recursive=True, revision=commit)))
        files = tuple(_listed(entry) for entry in tree if isinstance(entry, RepoFile))
        return Listing(commit=commit, gated=bool(info.gated), files=files)

    def read(self, where: str, commit: str, path: str) -> bytes:
        """A small file."""
        return self._ask(where, commit, lambda: self._get(where, commit, path))

    def sha256(self, where: str, commit: str, file: Listed, heard: Heard) -> str:  # noqa: ARG002
        """The hub tells it of what is large; the rest is small, and has git's name for its content."""
        content = self.read(where, commit, file.path)
        blob = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
        if blob != file.blob:
            hint = "does a proxy or a login page answer in the hub's place? see HF_ENDPOINT and HTTPS_PROXY"
            raise HubError(Problem(what=f"hf:{where}: {file.path} came as another file than is listed", hint=hint))
        return hashlib.sha256(content).hexdigest()

    def _get(self, where: str, commit: str, path: str) -> bytes:
        url = hf_hub_url(where, path, revision=commit, endpoint=self._endpoint)
        response = get_session().get(url, headers=build_hf_headers(), follow_redirects=True)
        hf_raise_for_status(response)
        return bytes(response.content)

    def _ask(self, where: str, revision: str, question: Callable[[], _T]) -> _T:
        retrying = Retrying(
            retry=retry_if_exception(_may_pass),
            wait=wait_exponential_jitter(multiplier=0.2, max=10, jitter=0.2),
            stop=stop_after_delay(self._patience_s),
            before_sleep=self._told,
            reraise=True,
        )
        try:
            return retrying(question)
        except (httpx.HTTPError, OSError, ValueError) as error:
            silent = isinstance(error, httpx.TransportError)
            raise HubError(_problem(where, revision, error), silent=silent) from None

    def _told(self, state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        said = str(error.response.status_code) if isinstance(error, HfHubHTTPError) else scrub(str(error))
        self._heard(f"{scrub(self._endpoint)} said {said!r}; asked again for up to {self._patience_s:.0f} s")


def _listed(entry: RepoFile) -> Listed:
    sha256 = entry.lfs.sha256 if entry.lfs else ""
    return Listed(path=entry.path, size=entry.size, sha256=sha256, blob="" if sha256 else entry.blob_id)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, HfHubHTTPError):
        return error.response.status_code in _BUSY
    return isinstance(error, httpx.TransportError)


def _problem(where: str, revision: str, error: Exception) -> Problem:
    """What went wrong, without the URL, the headers and the advice that the library puts into its text."""
    status = error.response.status_code if isinstance(error, HfHubHTTPError) else 0
    we = "sent HF_TOKEN" if get_token() else "have no HF_TOKEN"
    facts = (("hub", scrub(constants.ENDPOINT)), ("said", str(status or scrub(str(error)))), ("we", we))
    if isinstance(error, GatedRepoError):
        return _gated(where, we)
    if isinstance(error, RepositoryNotFoundError):
        hint = "check the name; of a private one, set HF_TOKEN to a token that may read it"
        return Problem(what=f"hf:{where} is not there, or not for us", facts=facts, hint=hint)
    if isinstance(error, RevisionNotFoundError):
        return Problem(
            what=f"hf:{where} has no revision {revision!r}", facts=facts, hint="name a branch, tag or commit"
        )
    if status == 401:
        hint = "make a new one at the hub's settings, tokens; then set HF_TOKEN"
        return Problem(what=f"hf:{where}: HF_TOKEN is not valid", facts=facts, hint=hint)
    if status == 403:
        hint = "ask for access on the model's page; a fine-grained token must be allowed to read gated repositories"
        return Problem(what=f"hf:{where}: HF_TOKEN may not read it", facts=facts, hint=hint)
    hint = "see HF_ENDPOINT and HTTPS_PROXY; with HF_HUB_OFFLINE nothing can be locked" if not status else ""
    return Problem(what=f"hf:{where} could not be asked", facts=facts, hint=hint)


def _gated(where: str, we: str) -> Problem:
    hint = "ask for access on the model's page, then set HF_TOKEN to a token of that account"
    return Problem(what=f"hf:{where} is gated, and we may not read it", facts=(("we", we),), hint=hint)
