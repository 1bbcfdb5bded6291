"""Functions with an empty disk read a file of a large NAR from the shared tier, on the real runtimes of Lambda and Vercel."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from narcore.formats.narinfo import NarInfo
from narcore.stores import open_store, read_file
from narcore.tier.check import check_path
from narcore.tier.reader import TierReader
from narcore.tier.writer import TierWriter
from tests.e2e import s3
from tests.e2e.s3 import BUCKET
from tests.e2e.tierproof import Proof, prepared, report
from tests.tier.tiers import INFO, KEYS, NAR, NAR_FILE, NARINFO_FILE, TIER_KEY, chunks


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proof]:
    with prepared(tmp_path_factory.mktemp("tier"), 20_000_000) as made:
        yield made


@pytest.mark.parametrize("kind", ["lambda", "stream", "vercel"])
def test_an_empty_instance_needs_three_requests_and_the_next_file_one(proof: Proof, kind: str) -> None:
    url = proof.http_tier if kind == "vercel" else proof.s3_tier  # Vercel has no package for s3://
    first, following, second = report(proof, kind, url)
    assert (first.requests, following.requests, second.requests) == (3, 1, 3)
    assert max(first.bytes, second.bytes) < 3_000_000
    assert {each.verified for each in (first, following, second)} == {"signature, content"}


def test_many_writers_make_one_valid_object_in_a_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with s3.running(tmp_path / "log") as server:
        for name, value in server.settings.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{BUCKET}/tier?endpoint={server.url}"
        barrier = threading.Barrier(16)

        def add(_number: int) -> bool:
            writer = TierWriter.open(url, TIER_KEY, ())
            barrier.wait(30)
            with closing(writer):
                return writer.add(INFO, chunks)

        with ThreadPoolExecutor(16) as pool:
            added = list(pool.map(add, range(16)))
        assert any(added)
        assert server.unfinished() == []
        assert len(server.objects()) == 4
        assert server.log.read_text().count(f"POST /{BUCKET}/tier/{NAR_FILE}?uploads") == 1
        store = open_store(url)
        narinfo = NarInfo.parse(read_file(store, NARINFO_FILE, 10_000))
        check_path(store, narinfo, KEYS, lambda _count: None)
        found = TierReader(store, KEYS).read(INFO, 5, 2_000_000)
        assert found is not None
        assert b"".join(found) == NAR[5:2_000_000]
        store.close()
