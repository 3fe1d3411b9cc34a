"""A folder of an S3 bucket as a place of models. It has no commits and tells no SHA-256: locking it reads it once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import obstore
from obstore.exceptions import BaseError
from obstore.store import ObjectStore

from rules.errors import Problem
from rules.hubs import Heard, Hub, HubError, Listed, Listing
from rules.remotes import Patience
from rules.remotes.objects import bucket, why

__all__ = ["Bucket", "open_hub"]


def open_hub(heard: Heard) -> Hub:  # noqa: ARG001 - buckets have a patience of their own
    """Any bucket: who we are comes from the environment and the usual profiles."""
    return Bucket()


class Bucket:
    """`where` is BUCKET/PREFIX."""

    def list(self, where: str, revision: str) -> Listing:  # noqa: ARG002
        """The objects below the prefix."""
        with _guard(where):
            rows = obstore.list(_store(where)).collect()
        found = [row for row in rows if not str(row["path"]).endswith("/")]
        if not found:
            hint = "check bucket and prefix; s3:ListBucket is needed"
            raise HubError(Problem(what=f"s3://{where} holds nothing", hint=hint))
        files = [Listed(path=str(row["path"]), size=int(row["size"]), tag=str(row["e_tag"] or "")) for row in found]
        return Listing(commit="", files=tuple(sorted(files, key=lambda file: file.path)))

    def read(self, where: str, commit: str, path: str) -> bytes:  # noqa: ARG002
        """A small object."""
        with _guard(where):
            return bytes(obstore.get(_store(where), path).bytes())

    def sha256(self, where: str, commit: str, file: Listed, heard: Heard) -> str:  # noqa: ARG002
        """Reads the object, which may be large."""
        found, done = hashlib.sha256(), 0
        with _guard(where):
            for chunk in obstore.get(_store(where), file.path).stream(min_chunk_size=8 << 20):
                found.update(chunk)
                done += len(chunk)
                heard(f"{file.path}: {done / 1e6:,.1f} MB read")
        return found.hexdigest()


def _store(where: str) -> ObjectStore:
    name, _, prefix = where.partition("/")
    return bucket(name, prefix, Patience())


@contextmanager
def _guard(where: str) -> Iterator[None]:
    """Turns obstore's errors into HubError."""
    try:
        yield
    except (BaseError, FileNotFoundError) as error:
        hint = "see AWS_ACCESS_KEY_ID and the like, AWS_REGION, AWS_ENDPOINT_URL; s3:GetObject and s3:ListBucket"
        raise HubError(Problem(what=f"s3://{where} cannot be read", facts=(("why", why(error)),), hint=hint)) from None
