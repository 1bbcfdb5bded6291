"""The check of content addresses alone; ``tests/lookup/test_content_addresses.py`` compares it with Nix."""

import hashlib
import tracemalloc
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from narcore.errors import HashMismatch, NarError
from narcore.formats.contentaddress import ContentAddress, Method
from narcore.formats.nixhash import DIGEST_SIZES, NixHash
from narcore.streams import contentcheck
from narcore.streams.contentcheck import addressed
from tests.builders import Tree, exe, link, nar

OWN = "7rjj86a15146cq1d3qy068lml7n7ykzm"
MIB = 1 << 20
sizes = st.integers(1, 60)


def address_of(method: Method, hashed: bytes, algorithm: str = "sha256") -> ContentAddress:
    return ContentAddress(method, NixHash(algorithm, hashlib.new(algorithm, hashed).digest()))


def cut(archive: bytes, size: int) -> list[bytes]:
    return [archive[start : start + size] for start in range(0, len(archive), size)]


def received(chunks: list[bytes], address: ContentAddress, error: type[Exception], own: str = "") -> bytes:
    """Return the bytes that a reader received before ``error`` was raised."""
    got: list[bytes] = []
    with pytest.raises(error):
        got.extend(addressed(chunks, address, self_reference=own))
    return b"".join(got)


@given(st.binary(max_size=100), sizes, st.sampled_from(sorted(DIGEST_SIZES)))
def test_a_single_file_is_checked(contents: bytes, size: int, algorithm: str) -> None:
    archive = nar(contents)
    chunks = [b"", *cut(archive, size), b""]
    assert b"".join(addressed(chunks, address_of("flat", contents, algorithm))) == archive
    assert b"".join(addressed(chunks, address_of("text", contents))) == archive
    got = received(chunks, address_of("flat", contents + b"x", algorithm), HashMismatch)
    assert archive.startswith(got)
    assert len(got) < len(archive)


@given(st.binary(max_size=100), sizes, st.sampled_from(sorted(DIGEST_SIZES)))
def test_a_nar_with_any_hash_algorithm_is_checked(contents: bytes, size: int, algorithm: str) -> None:
    archive = nar({"x": contents})
    chunks = cut(archive, size)
    assert b"".join(addressed(chunks, address_of("nar", archive, algorithm))) == archive
    assert len(received(chunks, address_of("nar", archive + b"x", algorithm), HashMismatch)) < len(archive)


@pytest.mark.parametrize(
    "tree", [exe(b"x"), link("x"), {}, {"x": b"x"}], ids=["executable", "link", "empty", "directory"]
)
def test_other_kinds_of_nodes_are_refused_as_single_files(tree: Tree) -> None:
    assert received(cut(nar(tree), 8), address_of("flat", b"x"), HashMismatch) != nar(tree)
    assert received([nar(tree)], address_of("text", b"x"), HashMismatch) == b""


@pytest.mark.parametrize("archive", [b"", b"rubbish" * 20, nar(b"x")[:-1], nar(b"x") + b"x"])
def test_an_invalid_nar_is_refused_as_a_single_file(archive: bytes) -> None:
    assert received([archive], address_of("flat", b"x"), NarError) == b""


def modulo(archive: bytes, own: bytes) -> bytes:
    """Return the bytes that are hashed for a NAR that refers to itself, computed in the simplest way."""
    positions, zeroed = [], archive
    while (start := zeroed.find(own)) >= 0:
        positions.append(start)
        zeroed = zeroed[:start] + bytes(len(own)) + zeroed[start + len(own) :]
    return zeroed + b"".join(b"|%d" % start for start in positions)


pieces = st.lists(st.sampled_from([OWN.encode(), OWN[:31].encode(), OWN[1:].encode(), b"x", bytes(32)]), max_size=8)


@given(pieces.map(b"".join), sizes, st.sampled_from([OWN, "0" * 32, OWN[:16] * 2]))
def test_self_references_are_found_in_any_chunking(archive: bytes, size: int, own: str) -> None:
    archive = archive.replace(OWN.encode(), own.encode()) + own.encode() * 3
    address = address_of("nar", modulo(archive, own.encode()))
    assert b"".join(addressed(cut(archive, size), address, self_reference=own)) == archive
    received(cut(archive, size), address_of("nar", archive), HashMismatch, own)


def test_zeros_and_self_references_are_distinguished() -> None:
    own = OWN.encode()
    address = address_of("nar", modulo(own + bytes(32), own))
    for archive in (bytes(32) + own, own + own, bytes(64)):
        received([archive], address, HashMismatch, OWN)


def test_the_number_of_self_references_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contentcheck, "SELF_REFERENCES_MAX", 3)
    archive = OWN.encode() * 3
    address = address_of("nar", modulo(archive, OWN.encode()))
    assert b"".join(addressed([archive], address, self_reference=OWN)) == archive
    received([archive + OWN.encode()], address, NarError, OWN)


def test_the_source_is_closed_after_an_error() -> None:
    class Source(Iterator[bytes]):
        closed = False

        def __next__(self) -> bytes:
            return b"rubbish" * 20

        def close(self) -> None:
            self.closed = True

    source = Source()
    received(source, address_of("flat", b""), NarError)  # type: ignore[arg-type]  # any iterable is accepted
    assert source.closed


@pytest.mark.parametrize("method", ["flat", "nar"])
def test_memory_does_not_grow_with_the_nar(method: Method) -> None:
    """Uses a file of 32 MiB with nothing but self references whose first byte is wrong."""
    contents = (b"-" + OWN[1:].encode()) * MIB
    archive = nar(contents)
    address = address_of(method, contents if method == "flat" else modulo(archive, OWN.encode()))
    chunks = (archive[start : start + MIB // 4] for start in range(0, len(archive), MIB // 4))
    tracemalloc.start()
    try:
        for _chunk in addressed(chunks, address, self_reference=OWN):
            pass
        assert tracemalloc.get_traced_memory()[1] < 3 * MIB
    finally:
        tracemalloc.stop()
