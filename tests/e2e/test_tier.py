"""Functions with an empty disk read a file of a large NAR from the shared tier, on the real runtimes of Lambda and Vercel."""

from collections.abc import Iterator

import pytest

from tests.e2e.tierproof import Proof, prepared, report


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
