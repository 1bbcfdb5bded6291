import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import HashMismatch, SizeMismatch
from narcore.formats.nixhash import NixHash
from narcore.streams.integrity import verified

chunk_lists = st.lists(st.binary(max_size=20), max_size=8)


def sha256(data: bytes) -> NixHash:
    return NixHash("sha256", hashlib.sha256(data).digest())


def received(chunks: list[bytes], nar_hash: NixHash, nar_size: int, error: type[Exception]) -> bytes:
    """Return the bytes that a reader received before ``error`` was raised."""
    got: list[bytes] = []
    with pytest.raises(error):
        got.extend(verified(chunks, nar_hash=nar_hash, nar_size=nar_size))
    return b"".join(got)


@given(chunk_lists)
def test_a_matching_nar_is_passed_on(chunks: list[bytes]) -> None:
    nar = b"".join(chunks)
    assert b"".join(verified(chunks, nar_hash=sha256(nar), nar_size=len(nar))) == nar


@given(chunk_lists.filter(lambda chunks: len(b"".join(chunks)) > 0))
def test_a_nar_with_another_hash_is_never_passed_on_completely(chunks: list[bytes]) -> None:
    nar = b"".join(chunks)
    got = received(chunks, sha256(nar + b"x"), len(nar), HashMismatch)
    assert nar.startswith(got)
    assert len(got) < len(nar)


@given(chunk_lists, st.integers(1, 30))
def test_a_nar_that_is_too_short_is_refused(chunks: list[bytes], missing: int) -> None:
    nar = b"".join(chunks)
    received(chunks, sha256(nar), len(nar) + missing, SizeMismatch)


@given(chunk_lists, st.integers(1, 30))
def test_no_byte_beyond_the_size_is_passed_on(chunks: list[bytes], more: int) -> None:
    nar = b"".join(chunks)
    size = max(len(nar) - more, 0)
    if size == len(nar):
        return
    got = received(chunks, sha256(nar[:size]), size, SizeMismatch)
    assert len(got) <= size


def test_errors_name_both_hashes_and_both_sizes() -> None:
    good, bad = sha256(b"good"), sha256(b"bad!")
    with pytest.raises(HashMismatch, match=f"{bad.to_nix32()}.*{good.to_nix32()}"):
        list(verified([b"bad!"], nar_hash=good, nar_size=4))
    with pytest.raises(SizeMismatch, match=r"has 4 bytes.*is 5"):
        list(verified([b"good"], nar_hash=good, nar_size=5))


class RecordingHasher:
    def __init__(self) -> None:
        self.seen = b""
        self.closed = False

    def update(self, data: bytes) -> None:
        self.seen += data

    def digest(self) -> bytes:
        return hashlib.sha256(self.seen).digest()

    def close(self) -> None:
        self.closed = True


def test_a_custom_hasher_is_used_and_closed() -> None:
    hasher = RecordingHasher()
    chunks = verified([b"ab", b"", b"cd"], nar_hash=sha256(b"abcd"), nar_size=4, hasher=hasher)
    assert b"".join(chunks) == b"abcd"
    assert hasher.seen == b"abcd"
    assert hasher.closed


def test_other_hash_algorithms_are_accepted() -> None:
    nar_hash = NixHash("sha512", hashlib.sha512(b"abcd").digest())
    assert b"".join(verified([b"abcd"], nar_hash=nar_hash, nar_size=4)) == b"abcd"
