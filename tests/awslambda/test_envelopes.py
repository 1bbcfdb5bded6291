"""The Lambda handler: its responses never exceed Lambda's limit, and it gets paths as the client sent them."""

import json
import os
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from mangum import Mangum

from api.factory import create_app
from api.responses.limits import Limit
from narcore.binarycache import BinaryCache
from narcore.settings import Settings
from narcore.stores import MemoryStore
from narserve.awslambda.application import load_application
from narserve.awslambda.buffered import CARRIES, make_handler
from narserve.dev.apigateway import ENVELOPE_LIMIT, HttpAnswer, HttpRequest, answer_of, event_of
from tests.builders import Tree, binary_cache, store_path
from tests.e2e.client import digest

# Each body is difficult in another way: escaped as \u0001 in JSON, two bytes in UTF-8, a quote, invalid UTF-8, and random bytes.
FILLINGS = {
    "control": b"\x01",
    "two bytes": "é".encode(),
    "quotes": b'"\\',
    "broken": b"\xff",
    "noise": random.Random(1).randbytes(1 << 16),
}
FILES = {
    f"{name}.{extension}": (filling * (CARRIES // len(filling) + 65))[: CARRIES + 64]
    for name, filling in FILLINGS.items()
    for extension in ("txt", "bin")
}
LARGE = "large"


@pytest.fixture(scope="module")
def handler() -> Iterator[Mangum]:
    names: Tree = {b"caf\xc3\xa9": b"1", b"\xff\xfe": b"2", b"%41": b"3", b"a+b c": b"4", b"%2F": b"5"}
    cuts: Tree = {f"{size} {name}": data[:size] for name, data in FILES.items() for size in (CARRIES, CARRIES + 1)}
    cache = BinaryCache([MemoryStore(binary_cache({LARGE: FILES, "names": names, "cuts": cuts}, compression="none"))])
    try:
        yield make_handler(create_app(replace(Settings(), max_response=CARRIES, cache_dir=None), cache))
    finally:
        cache.close()


def ask(handler: Mangum, method: str, target: str, headers: dict[str, str] | None = None) -> HttpAnswer:
    request = HttpRequest(method, target, [("Host", "example.org"), *(headers or {}).items()])
    context: Any = None
    return answer_of(request, json.dumps(handler(event_of(request), context)).encode())


def url(name: str, path: str | bytes = "") -> str:
    return f"{quote(str(store_path(name)))}/{quote(path)}"


@settings(max_examples=60)
@given(name=st.sampled_from(sorted(FILES)), start=st.integers(0, 64), length=st.integers(CARRIES - 3, CARRIES + 3))
@example(name="control.txt", start=0, length=CARRIES)
def test_a_range_of_any_size_is_correct_or_refused(handler: Mangum, name: str, start: int, length: int) -> None:
    stop = min(start + length, CARRIES + 64)
    got = ask(handler, "GET", url(LARGE, name), {"Range": f"bytes={start}-{start + length - 1}"})
    if stop - start <= CARRIES:
        assert (got.status, digest(got.body)) == (206, digest(FILES[name][start:stop]))
        assert dict(got.headers)["content-range"] == f"bytes {start}-{stop - 1}/{CARRIES + 64}"
    else:
        assert got.status == 413


@pytest.mark.parametrize("name", sorted(FILES))
def test_the_limit_is_exact(handler: Mangum, name: str) -> None:
    got = ask(handler, "GET", url("cuts", f"{CARRIES} {name}"))
    assert (got.status, digest(got.body)) == (200, digest(FILES[name][:CARRIES]))
    assert ask(handler, "GET", url("cuts", f"{CARRIES + 1} {name}")).status == 413


@given(ranges=st.lists(st.integers(1, CARRIES), min_size=2, max_size=2))
@settings(max_examples=20)
@example(ranges=[CARRIES // 2, CARRIES // 2 - 300])
@example(ranges=[CARRIES // 2, CARRIES // 2])
def test_two_ranges_are_sent_or_refused(handler: Mangum, ranges: list[int]) -> None:
    one, two = ranges
    got = ask(handler, "GET", url(LARGE, "noise.bin"), {"Range": f"bytes=0-{one - 1},-{two}"})
    if got.status == 206:
        assert one + two < len(got.body) <= CARRIES
    else:
        assert got.status == 413
        assert one + two > CARRIES - 1000  # the boundaries and headers between the parts need the rest


def test_an_envelope_with_the_longest_headers_fits(handler: Mangum) -> None:
    """The space that the largest body leaves is more than the headers that API Gateway allows (10,240 bytes)."""
    request = HttpRequest("GET", url("cuts", f"{CARRIES} noise.bin"), [("Host", "example.org")])
    context: Any = None
    envelope = len(json.dumps(handler(event_of(request), context)))
    assert envelope + 10 * 10_240 < ENVELOPE_LIMIT


@pytest.mark.parametrize(
    ("target", "body"),
    [("caf%C3%A9", b"1"), ("%FF%FE", b"2"), ("%2541", b"3"), ("a+b%20c", b"4"), ("a%2Bb%20c", b"4"), ("%252F", b"5")],
)
def test_names_pass_the_gateway_unchanged(handler: Mangum, target: str, body: bytes) -> None:
    for prefix in ("", "/prod"):
        got = ask(handler, "GET", f"{prefix}{url('names')}{target}?download&x=a%2Bb")
        assert (got.status, got.body) == (200, body)


def test_links_contain_the_stage_if_the_url_does(handler: Mangum) -> None:
    path = url("names").rstrip("/")
    assert dict(ask(handler, "GET", f"/prod{path}").headers)["location"] == f"/prod{path}/"
    assert dict(ask(handler, "GET", path).headers)["location"] == f"{path}/"
    for target in ("/prod", "/prod/"):
        assert b'href="/prod/-/static/' in ask(handler, "GET", target).body


def test_the_limit_can_be_lowered_but_not_raised(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[int | None] = []

    def limit(size: int | None) -> Limit:
        seen.append(size)
        return Limit(size)

    monkeypatch.setattr("api.factory.Limit", limit)
    monkeypatch.setitem(os.environ, "NAR_CACHE_URL", str(tmp_path))
    monkeypatch.setitem(os.environ, "NAR_CACHE_DIR", "off")
    for given_size in ("1M", "10M", ""):
        monkeypatch.setitem(os.environ, "NAR_MAX_RESPONSE", given_size)
        load_application(CARRIES)
    assert seen == [1 << 20, CARRIES, CARRIES]
