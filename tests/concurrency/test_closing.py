"""Every stage closes its source, however it ends, and passes on the source's errors unchanged."""

import hashlib
from collections.abc import Callable, Iterator

import pytest

from narcore.concurrency.closing import close
from narcore.errors import NarcoreError, StoreUnavailable
from narcore.formats.nixhash import NixHash
from narcore.streams.compression import decompress
from narcore.streams.integrity import verified
from narcore.streams.slicing import skip_and_limit
from tests.streams.codecs import PACK, SAMPLE, Source

HASH = NixHash("sha256", hashlib.sha256(SAMPLE).digest())


def _decompress(name: str) -> Callable[[Source], Iterator[bytes]]:
    return lambda source: decompress(name, source)


STAGES: dict[str, tuple[Callable[[Source], Iterator[bytes]], bytes]] = {
    **{name: (_decompress(name), PACK[name](SAMPLE)) for name in sorted(PACK)},
    "verified": (lambda source: verified(source, nar_hash=HASH, nar_size=len(SAMPLE)), SAMPLE),
    "skip_and_limit": (lambda source: skip_and_limit(source, 0, len(SAMPLE)), SAMPLE),
}

stages = pytest.mark.parametrize(("stage", "data"), STAGES.values(), ids=STAGES.keys())


@stages
def test_the_source_is_closed_at_the_end(stage: Callable[[Source], Iterator[bytes]], data: bytes) -> None:
    source = Source(data)
    assert b"".join(stage(source)) == SAMPLE
    assert source.closed


@pytest.mark.parametrize(("stage", "data"), [row for name, row in STAGES.items() if name != "none"])
def test_the_source_is_closed_after_invalid_input(stage: Callable[[Source], Iterator[bytes]], data: bytes) -> None:
    source = Source(data[:-1])
    with pytest.raises(NarcoreError):
        list(stage(source))
    assert source.closed


@stages
def test_errors_of_the_source_are_passed_on(stage: Callable[[Source], Iterator[bytes]], data: bytes) -> None:
    error = StoreUnavailable("the connection was lost")
    source = Source(data[:-1], error=error)
    with pytest.raises(StoreUnavailable) as caught:
        list(stage(source))
    assert caught.value is error
    assert source.closed


@stages
def test_the_source_is_closed_by_the_reader(stage: Callable[[Source], Iterator[bytes]], data: bytes) -> None:
    source = Source(data[:100], data[100:])
    chunks = stage(source)
    next(chunks)
    close(chunks)
    assert source.closed
    assert list(chunks) == []


@stages
def test_the_source_is_closed_before_the_first_chunk(stage: Callable[[Source], Iterator[bytes]], data: bytes) -> None:
    source = Source(data)
    close(stage(source))
    assert source.closed
    assert source.read == 0


def test_a_chain_of_stages_closes_its_source() -> None:
    source = Source(PACK["zstd"](SAMPLE))
    chain = skip_and_limit(verified(decompress("zstd", source), nar_hash=HASH, nar_size=len(SAMPLE)), 5, 10)
    close(chain)
    assert source.closed


def test_close_accepts_objects_without_a_close_method() -> None:
    close([b"a list"])
