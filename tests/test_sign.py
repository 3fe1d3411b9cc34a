"""Signatures: what is believed, and what is not."""

from __future__ import annotations

import json

import pytest

from rules.action import Entry, Receipt
from rules.errors import Misconfigured
from rules.sign import believed, public_key, sign, signers

ALICE, MALLORY = "11" * 32, "22" * 32
KEY = "ab" * 32
ENGINE = Receipt((Entry("rank0.engine", "cd" * 32, 7),))
SWAPPED = Receipt((Entry("rank0.engine", "ef" * 32, 7),))


def test_a_result_signed_by_a_trusted_key_is_believed() -> None:
    assert believed(sign(ALICE, KEY, ENGINE), KEY, ENGINE, {public_key(ALICE)})


def test_a_result_signed_by_somebody_else_is_not() -> None:
    assert not believed(sign(MALLORY, KEY, ENGINE), KEY, ENGINE, {public_key(ALICE)})


def test_an_unsigned_result_is_believed_only_where_no_key_is_asked_for() -> None:
    assert not believed(None, KEY, ENGINE, {public_key(ALICE)})
    assert believed(None, KEY, ENGINE, ())


def test_a_signature_is_of_one_key_and_one_receipt() -> None:
    text = sign(ALICE, KEY, ENGINE)
    assert not believed(text, KEY, SWAPPED, {public_key(ALICE)})
    assert not believed(text, "00" * 32, ENGINE, {public_key(ALICE)})


UNREADABLE = ("", "[]", "{", '{"zz": "zz"}', '{"11": 3}', json.dumps({"11" * 32: "00" * 64}), "[" * 100_000)


@pytest.mark.parametrize("text", UNREADABLE, ids=range(len(UNREADABLE)))
def test_an_unreadable_signature_signs_nothing(text: str) -> None:
    assert signers(text, KEY, ENGINE) == ()


def test_a_bad_private_key_is_refused_without_being_shown() -> None:
    with pytest.raises(Misconfigured) as error:
        public_key("hunter2-hunter2")
    assert "hunter2" not in str(error.value)
    assert error.value.__cause__ is None
