"""``NAR-Verified``: what was checked of what an answer is made of, as a client sees it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from api.factory import create_app
from narcore.settings import Settings
from tests.api.wire import Received, Wire, serving
from tests.builders import binary_cache, link, store_path
from tests.lookup.stores import CONTENTS, KEY, URL, Stores, stores


@pytest.fixture(scope="module")
def server() -> Iterator[Stores]:
    with stores() as server:
        yield server


@contextmanager
def site(url: str, **environ: str) -> Iterator[Wire]:
    """The app as the environment describes it."""
    settings = Settings.from_environ({"NAR_CACHE_URL": url, "NAR_CACHE_DIR": "off"} | environ)
    with serving(create_app(settings)) as wire:
        yield wire


def checks(received: Received) -> str:
    assert received.status in (200, 206, 302, 304)
    return received.headers.get("NAR-Verified", "")


KEYS = {"NAR_TRUSTED_PUBLIC_KEYS": str(KEY.public_key)}


@pytest.mark.parametrize("verify", ["stream", "strict"])
@pytest.mark.parametrize(
    ("fault", "query", "keys", "expected"),
    [
        ("has", "", KEYS, "signature"),
        ("has", "?trusted=true", KEYS, "signature"),
        ("has", "", {}, ""),
        ("unsigned", "", {}, ""),
        ("unsigned", "?trusted=true", KEYS, ""),
    ],
)
def test_what_was_checked(
    server: Stores, tmp_path: Path, fault: str, query: str, keys: dict[str, str], expected: str, verify: str
) -> None:
    url = server.open(fault).url + query
    whole = ", ".join(filter(None, [expected, "content"]))
    with site(url, **keys, NAR_CACHE_DIR=str(tmp_path / "nars"), NAR_VERIFY=verify) as wire:
        first = wire.get(URL)
        assert first.body == CONTENTS
        # A fill may be complete by the time the header is written; then it says so.
        assert checks(first) in ([whole] if verify == "strict" else [expected, whole])
        for again in (
            wire.get(URL),
            wire.get(URL, method="HEAD"),
            wire.get(URL, Range="bytes=5-9"),
            wire.get(URL, If_None_Match=first.headers["ETag"]),
            wire.get(f"{URL.removesuffix('/hello')}/?list"),
            wire.get(URL.removesuffix("/hello")),
            wire.get(f"{URL}?format=json"),
        ):
            assert checks(again) == whole
    assert "NAR-Verified" in first.headers["Access-Control-Expose-Headers"]


def test_without_a_disk_cache(server: Stores) -> None:
    """A listing that is the store's word, or a part of a NAR, is no content that was checked as a whole."""
    with site(server.open("has").url, **KEYS) as wire:
        for url in (URL, f"{URL.removesuffix('/hello')}/?list", URL):
            assert checks(wire.get(url)) == "signature"


def test_a_listing_out_of_the_nar_itself(tmp_path: Path) -> None:
    files = binary_cache({"x": {"a": b"a", "l": link("a")}}, listings=False, secret_key=KEY)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with site(tmp_path.as_uri(), **KEYS) as wire:
        assert checks(wire.get(f"{store_path('x')}/?list")) == "signature, content"
        assert checks(wire.get(f"{store_path('x')}/l")) == "signature, content"
        assert checks(wire.get(f"{store_path('x')}/a")) == "signature"


def test_a_listing_that_lies_is_replaced_without_a_disk_cache_too(tmp_path: Path) -> None:
    files = binary_cache({"x": {"a": b"a", "b": b"b"}}, secret_key=KEY)
    (name,) = (name for name in files if name.endswith(".ls"))
    files[name] = files[name].replace(b'"b"', b'"c"')
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(content)
    with site(tmp_path.as_uri(), **KEYS) as wire:
        assert wire.get(f"{store_path('x')}/a").status == 502
        assert wire.get(f"{store_path('x')}/b").body == b"b"
        assert wire.get(f"{store_path('x')}/c").status == 404
        assert checks(wire.get(f"{store_path('x')}/?list")) == "signature, content"


def test_an_unsigned_path_is_not_served(server: Stores) -> None:
    with site(server.open("unsigned").url, **KEYS) as wire:
        refused = wire.get(URL, Accept="application/json")
        assert refused.status == 502
        assert "signed by a trusted key" in refused.text
        assert "NAR-Verified" not in refused.headers
        assert refused.headers["Cache-Control"] == "no-store"


def test_a_trusted_store_is_that_one_alone(server: Stores) -> None:
    """Its unsigned path is served; the other one's is not, also if it is asked first."""
    with ExitStack() as stack:
        trusted, other = server.open("404").url + "?trusted=true", server.open("unsigned").url
        for urls in ((trusted, other), (other, trusted)):
            assert stack.enter_context(site(" ".join(urls), **KEYS)).get(URL).status == 502
        mixed = f"{server.open('unsigned').url} {server.open('unsigned', 'xz').url}?trusted=true"
        assert stack.enter_context(site(mixed, **KEYS)).get(URL).body == CONTENTS
