"""Signatures of results: who may write to the shared cache need not be who is believed.

A signature is ed25519 over one statement: the key of an action and the digest of its receipt. The private key comes
from the environment (ENGINES_SIGNING_KEY, 64 hexadecimal digits); the public ones that a reader believes are named in
models.toml. Neither is part of a key, a record or a log.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import TYPE_CHECKING

from rules.action import Receipt
from rules.errors import Misconfigured, Problem

if TYPE_CHECKING:  # nacl is loaded only where something is signed or checked
    from nacl.signing import SigningKey

__all__ = ["believed", "public_key", "sign", "signers"]


def public_key(seed: str) -> str:
    """The public key, 64 hexadecimal digits, of a private key. Raises Misconfigured, without the key's text."""
    return _signing_key(seed).verify_key.encode().hex()


def sign(seed: str, key: str, receipt: Receipt) -> str:
    """The text of the signature file of the result `receipt` of the action with this key."""
    signing = _signing_key(seed)
    signature = signing.sign(_statement(key, receipt)).signature
    return json.dumps({signing.verify_key.encode().hex(): signature.hex()}) + "\n"


def signers(text: str, key: str, receipt: Receipt) -> tuple[str, ...]:
    """The public keys whose signatures in `text` are of this result; a forged or unreadable one is left out."""
    from nacl.exceptions import BadSignatureError
    from nacl.signing import VerifyKey

    found = []
    for public, signature in _parse(text).items():
        try:
            VerifyKey(bytes.fromhex(public)).verify(_statement(key, receipt), bytes.fromhex(signature))
        except (BadSignatureError, ValueError, TypeError):
            continue
        found.append(public)
    return tuple(found)


def believed(text: str | None, key: str, receipt: Receipt, trusted: Collection[str]) -> bool:
    """Whether the result may be used: somebody in `trusted` signed it, or nobody is asked for."""
    return not trusted or bool(text and set(signers(text, key, receipt)) & set(trusted))


def _statement(key: str, receipt: Receipt) -> bytes:
    return f"engines result 1\nkey {key}\nreceipt {receipt.digest()}\n".encode()


def _parse(text: str) -> dict[str, str]:
    try:
        loaded = json.loads(text)
    except (ValueError, RecursionError):  # from a remote anything may come
        return {}
    return loaded if isinstance(loaded, dict) else {}


def _signing_key(seed: str) -> SigningKey:
    from nacl.signing import SigningKey

    try:
        return SigningKey(bytes.fromhex(seed.strip()))
    except (ValueError, TypeError):
        hint = "64 hexadecimal digits: openssl rand -hex 32"
        raise Misconfigured(Problem(what="ENGINES_SIGNING_KEY is not an ed25519 private key", hint=hint)) from None
