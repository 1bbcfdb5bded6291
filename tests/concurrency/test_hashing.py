"""SHA-256 in a thread of its own."""

import hashlib
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.concurrency.hashing import BackgroundSha256
from narcore.formats.nixhash import NixHash
from narcore.streams.integrity import verified


class TestBackgroundSha256:
    @given(st.lists(st.binary(max_size=50), max_size=30))
    def test_the_digest_is_that_of_hashlib(self, chunks: list[bytes]) -> None:
        hasher = BackgroundSha256()
        for chunk in chunks:
            hasher.update(chunk)
        assert hasher.digest() == hashlib.sha256(b"".join(chunks)).digest()

    @pytest.mark.parametrize("taken", [0, 1, 3])
    def test_no_thread_is_left_when_a_stream_is_abandoned(self, taken: int) -> None:
        before = threading.active_count()
        zero = NixHash("sha256", bytes(32))
        stream = verified([b"x" * 10] * 100, nar_hash=zero, nar_size=1000, hasher=BackgroundSha256())
        for _ in range(taken):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert threading.active_count() == before
