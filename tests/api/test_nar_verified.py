"""``NAR-Verified``: the header that tells a client what was verified about a response."""

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
    """Serve the app with the settings in ``environ``."""
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
def test_the_header_names_the_checks_of_the_narinfo_and_of_the_content(
    server: Stores, tmp_path: Path, fault: str, query: str, keys: dict[str, str], expected: str, verify: str
) -> None:
    url = server.open(fault).url + query
    whole = ", ".join(filter(None, [expected, "content"]))
    with site(url, **keys, NAR_CACHE_DIR=str(tmp_path / "nars"), NAR_VERIFY=verify) as wire:
        first = wire.get(URL)
        assert first.body == CONTENTS
        assert checks(first) == whole  # the NAR may still be arriving; the connection is cut if it is wrong
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


def test_without_a_disk_cache_the_end_of_a_nar_is_verified_and_its_listing_is_not(server: Stores) -> None:
    """The stream of the NAR is read to its end before the last bytes are sent; a listing comes from the store."""
    with site(server.open("has").url, **KEYS) as wire:
        for url, expected in ((URL, "signature, content"), (f"{URL.removesuffix('/hello')}/?list", "signature")):
            assert checks(wire.get(url)) == expected
            assert checks(wire.get(url, method="HEAD")) == "signature"


def test_a_listing_read_from_the_nar_is_verified(tmp_path: Path) -> None:
    files = binary_cache({"x": {"a": b"a", "l": link("a")}}, listings=False, secret_key=KEY)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    with site(tmp_path.as_uri(), **KEYS) as wire:
        assert checks(wire.get(f"{store_path('x')}/?list")) == "signature, content"
        assert checks(wire.get(f"{store_path('x')}/l")) == "signature, content"
        assert checks(wire.get(f"{store_path('x')}/a")) == "signature, content"
        assert checks(wire.get(f"{store_path('x')}/a", method="HEAD")) == "signature"


def test_a_wrong_listing_is_replaced_without_a_disk_cache_too(tmp_path: Path) -> None:
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
        rejected = wire.get(URL, Accept="application/json")
        assert rejected.status == 502
        assert "signed by a trusted key" in rejected.text
        assert "NAR-Verified" not in rejected.headers
        assert rejected.headers["Cache-Control"] == "no-store"


def test_trusted_applies_to_one_store_only(server: Stores) -> None:
    """An unsigned path is served from the trusted store, but not from another store, even if that store is asked first."""
    with ExitStack() as stack:
        trusted, other = server.open("404").url + "?trusted=true", server.open("unsigned").url
        for urls in ((trusted, other), (other, trusted)):
            assert stack.enter_context(site(" ".join(urls), **KEYS)).get(URL).status == 502
        mixed = f"{server.open('unsigned').url} {server.open('unsigned', 'xz').url}?trusted=true"
        assert stack.enter_context(site(mixed, **KEYS)).get(URL).body == CONTENTS
