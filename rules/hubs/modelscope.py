"""ModelScope, or a server with its API at MODELSCOPE_ENDPOINT.

    GET /api/v1/models/ORG/NAME/repo/files?Revision=R&Recursive=true   {"Code", "Data": {"Files": [...], ...}}
    GET /api/v1/models/ORG/NAME/repo?Revision=R&FilePath=P             the file

Of each file it tells `Sha256` and the `Revision` that last changed it. An unknown revision is answered with 200 and no
files. The API is that of its own client: https://github.com/modelscope/modelscope, modelscope/hub/api.py.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import urllib3
from urllib3.exceptions import HTTPError

from rules.errors import Problem
from rules.hubs import Heard, Hub, HubError, Listed, Listing
from rules.remotes.wire import scrub

__all__ = ["ModelScope", "open_hub"]

_BUSY = (408, 425, 429, 500, 502, 503, 504)
_TOKEN = "MODELSCOPE_API_TOKEN"  # noqa: S105 - its name


def open_hub(heard: Heard) -> Hub:  # noqa: ARG001 - urllib3 asks again by itself
    """The hub at MODELSCOPE_ENDPOINT."""
    return ModelScope(os.environ.get("MODELSCOPE_ENDPOINT", "https://modelscope.cn"))


class ModelScope:
    """`retries` is how often a busy hub is asked again, with growing pauses."""

    def __init__(self, endpoint: str, retries: int = 6) -> None:
        self._endpoint = endpoint.rstrip("/")
        backoff = urllib3.Retry(total=retries, backoff_factor=0.3, status_forcelist=_BUSY, redirect=5)
        self._pool = urllib3.PoolManager(retries=backoff, timeout=urllib3.Timeout(connect=10, read=60))

    def list(self, where: str, revision: str) -> Listing:
        """The files of ORG/NAME at a branch, tag or commit."""
        body = self._get(where, f"repo/files?Revision={quote(revision, safe='')}&Recursive=true")
        try:
            data = json.loads(body)["Data"]
            rows = None if data["Files"] is None else [row for row in data["Files"] if row["Type"] == "blob"]
            files = tuple(
                Listed(path=row["Path"], size=int(row["Size"]), sha256=(row.get("Sha256") or "").lower())
                for row in rows or ()
            )
        except (ValueError, TypeError, KeyError) as error:
            raise HubError(self._problem(where, 200, f"an answer that cannot be read: {error!r}")) from None
        if rows is None:
            what = f"modelscope:{where} has no revision {revision!r}"
            raise HubError(Problem(what=what, hint="name a branch, tag or commit"))
        return Listing(commit=_commit(data, rows, revision), files=files)

    def read(self, where: str, commit: str, path: str) -> bytes:
        """A small file."""
        return self._get(where, f"repo?Revision={quote(commit, safe='')}&FilePath={quote(path, safe='')}")

    def sha256(self, where: str, commit: str, file: Listed, heard: Heard) -> str:  # noqa: ARG002
        """Only of old uploads the hub does not tell it."""
        content = self.read(where, commit, file.path)
        if len(content) != file.size:
            hint = "does a proxy or a login page answer in the hub's place? see MODELSCOPE_ENDPOINT and HTTPS_PROXY"
            what = f"modelscope:{where}: {file.path} came as another file than is listed"
            raise HubError(Problem(what=what, hint=hint))
        return hashlib.sha256(content).hexdigest()

    def _get(self, where: str, what: str) -> bytes:
        token = os.environ.get(_TOKEN, "")
        who = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        try:
            response = self._pool.request("GET", f"{self._endpoint}/api/v1/models/{where}/{what}", headers=who)
        except HTTPError as error:
            raise HubError(self._problem(where, 0, str(getattr(error, "reason", None) or error)), silent=True) from None
        if response.status != 200:
            raise HubError(self._problem(where, response.status, response.reason or ""))
        return response.data

    def _problem(self, where: str, status: int, said: str) -> Problem:
        whats = {401: "does not know us", 403: "is not for us", 404: "is not there, or not for us"}
        hints = {
            401: f"set {_TOKEN} to a valid token",
            403: f"ask for access on the model's page, then set {_TOKEN}",
            404: f"check the name; of a private one, set {_TOKEN}",
        }
        we = f"sent {_TOKEN}" if os.environ.get(_TOKEN) else f"have no {_TOKEN}"
        facts = (("hub", scrub(self._endpoint)), ("said", scrub(f"{status or ''} {said}")), ("we", we))
        what = f"modelscope:{where} {whats.get(status, 'could not be asked')}"
        return Problem(what=what, facts=facts, hint=hints.get(status, "see MODELSCOPE_ENDPOINT and HTTPS_PROXY"))


def _commit(data: Mapping[str, Any], rows: list[Mapping[str, Any]], revision: str) -> str:
    """The newest commit. Its whole name may be left out of `LatestCommitter`; then it is that of a file it changed."""
    latest = data.get("LatestCommitter") or {}
    short = latest.get("ShortId") or ""
    named = (str(row.get("Revision") or "") for row in rows)
    return latest.get("Id") or next((name for name in named if short and name.startswith(short)), revision)
