"""BLAKE3, the same for bytes, text and files of any size."""

from __future__ import annotations

from pathlib import Path

import pytest

from rules import digest

# The vector of zero bytes from BLAKE3's own test_vectors.json.
EMPTY = "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_the_digest_is_blake3() -> None:
    assert digest.of_bytes(b"") == EMPTY


def test_text_is_hashed_as_utf_8() -> None:
    assert digest.of_text("模型 🙂") == digest.of_bytes("模型 🙂".encode())


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_file_has_the_digest_of_its_bytes(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256 + 1)
    path = tmp_path / "file"
    path.write_bytes(data[:size])
    assert digest.of_file(path) == digest.of_bytes(data[:size])


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        digest.of_file(tmp_path / "file")
