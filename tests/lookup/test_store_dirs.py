"""Two stores with different store dirs, whose paths link to each other. Both were made by a real Nix."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask
from werkzeug.test import TestResponse

from api.factory import create_app
from narcore.binarycache import BinaryCache
from narcore.lookup import substituter
from narcore.lookup.substituter import Substituter
from narcore.settings import Settings
from narcore.stores.local import LocalBinaryCacheStore
from tests.lookup.test_substituters import DOWN, FakeStore, took
from tests.realnix import RealNix

ALT = "/opt/nix/store"
DOMAIN = "nar.example"


@dataclass(frozen=True)
class Closure:
    """``tool`` in /nix/store links to ``data`` in the other store dir, which links to ``base`` in /nix/store."""

    usual: Path
    alt: Path
    base: str
    data: str
    tool: str


@pytest.fixture(scope="module")
def closure(tmp_path_factory: pytest.TempPathFactory) -> Closure:
    nix = RealNix.start(tmp_path_factory.mktemp("dirs"))
    alt_store = f"local?root={nix.root}/alt&store={ALT}"

    def add(name: str, store: str, links: dict[str, str]) -> str:
        tree = nix.root / name
        (tree / "share").mkdir(parents=True)
        (tree / "share" / "name").write_text(name)
        for link, target in links.items():
            (tree / link).symlink_to(target)
        return nix.run("nix", "store", "add-path", "--store", store, "--name", name, tree).stdout.strip()

    base = add("base", nix.store, {})
    data = add("data", alt_store, {"base": base, "file": f"{base}/share/name", "climb": f"../../../..{base}/share"})
    links = {"data": data, "file": f"{data}/share/name", "far": f"{data}/base/share/name", "base": base, "own": "share"}
    links |= {"nobody": f"/gnu/store/{base.rpartition('/')[2]}/x", "out": "/opt/nix", "deep": f"../../..{data}/share"}
    tool = add("tool", nix.store, links)
    nix.copy_all()
    alt = nix.root / "alt-cache"
    nix.run("nix", "copy", "--all", "--from", alt_store, "--to", f"file://{alt}?store={ALT}&write-nar-listing=1")
    return Closure(nix.cache, alt, base, data, tool)


@pytest.fixture
def app(closure: Closure) -> Iterator[Flask]:
    cache = BinaryCache([LocalBinaryCacheStore(str(each)) for each in (closure.usual, closure.alt)])
    yield create_app(Settings(domain=DOMAIN), cache)
    cache.close()


def get(app: Flask, path: str, host: str = "localhost", **options: str) -> TestResponse:
    return app.test_client().get(path, headers={"Host": host, **options})


def location(app: Flask, path: str, host: str = "localhost") -> str:
    response = get(app, path, host)
    assert response.status_code == 302, (path, response.status)
    return response.headers["Location"]


def test_each_store_dir_has_its_urls(app: Flask, closure: Closure) -> None:
    for path, name in ((closure.base, b"base"), (closure.data, b"data"), (closure.tool, b"tool")):
        for prefix in ("", "/unpack"):
            assert get(app, f"{prefix}{path}/share/name").data == name
            assert get(app, f"{prefix}{path.partition('-')[0]}/share/name").data == name
            assert location(app, f"{prefix}{path}/share") == f"{prefix}{path}/share/"
            assert location(app, f"{prefix}{path}x/share/name") == f"{prefix}{path}/share/name"
    # A path in one store dir is not in the other.
    assert get(app, closure.data.replace(ALT, "/nix/store")).status_code == 404
    assert get(app, closure.base.replace("/nix/store", ALT)).status_code == 404
    for unknown in ("/gnu/store", "/nix", "/opt/nix", "/opt/nix/store/x"):
        assert get(app, f"{unknown}/{closure.base.rpartition('/')[2]}/share/name").status_code == 404
    assert get(app, f"{ALT}/nonsense").status_code == 400


def test_links_between_store_dirs_are_redirects(app: Flask, closure: Closure) -> None:
    for prefix in ("", "/unpack"):
        tool, data, base = (prefix + path for path in (closure.tool, closure.data, closure.base))
        assert location(app, f"{tool}/data") == data
        assert location(app, f"{tool}/file?x=1") == f"{data}/share/name?x=1"
        assert location(app, f"{tool}/data/share/name") == f"{data}/share/name"
        assert location(app, f"{tool}/deep/name") == f"{data}/share/name"
        assert location(app, f"{tool}/far") == f"{data}/base/share/name"  # the next link is in the other NAR
        assert location(app, f"{data}/base/share/name") == f"{base}/share/name"
        assert location(app, f"{data}/file") == f"{base}/share/name"
        assert location(app, f"{data}/climb/name") == f"{base}/share/name"
        assert location(app, f"{tool}/base/share") == f"{base}/share"
        assert location(app, f"{tool}/own") == f"{tool}/share/"


def test_links_out_of_all_store_dirs_are_not_found(app: Flask, closure: Closure) -> None:
    nobody = get(app, f"{closure.tool}/nobody")
    assert nobody.status_code == 404
    assert "/gnu/store" in nobody.text
    assert "immutable" not in nobody.headers["Cache-Control"], "a store may be added"
    out = get(app, f"{closure.tool}/out")
    assert out.status_code == 404
    assert "out -> /opt/nix" in out.text


def test_paths_of_each_store_dir_have_hosts(app: Flask, closure: Closure) -> None:
    hosts = [f"{path.rpartition('/')[2][:32]}.{DOMAIN}" for path in (closure.base, closure.data, closure.tool)]
    base, data, tool = hosts
    assert [get(app, "/share/name", host).data for host in hosts] == [b"base", b"data", b"tool"]
    assert location(app, "/file", tool) == f"//{data}/share/name"
    assert location(app, "/data", tool) == f"//{data}/"
    assert location(app, "/base/share", data) == f"//{base}/share"
    assert get(app, "/nobody", tool).status_code == 404


def test_landing_page_lists_stores_with_their_store_dirs(app: Flask, closure: Closure) -> None:
    get(app, closure.base)
    page = get(app, "/", Accept="text/html").text
    assert page.index(closure.usual.as_uri()) < page.index(closure.alt.as_uri())
    assert f"{closure.alt.as_uri()}</code> for <code>{ALT}</code>" in page
    assert f"{closure.usual.as_uri()}</code> for <code>/nix/store</code>" in page
    robots = get(app, "/robots.txt").text
    assert f"Disallow: {ALT}/" in robots
    assert "Disallow: /nix/store/" in robots
    for path in (closure.base, closure.data):
        typed = path.rpartition("/")[2]
        assert location(app, f"/?path={typed}") == path
        assert location(app, f"/?path={typed[:32]}/share/name") == f"{path.partition('-')[0]}/share/name"
    listing = get(app, f"{closure.tool}/", Accept="text/html").text
    for link in ("data", "nobody"):
        assert f'href="./{link}"' in listing


def test_landing_page_does_not_wait_for_stores(closure: Closure) -> None:
    hung = FakeStore("hung")
    gate = hung.gates["nix-cache-info"] = threading.Event()
    cache = BinaryCache([hung, LocalBinaryCacheStore(str(closure.alt))])
    app = create_app(Settings(), cache)
    assert took(lambda: get(app, "/")) < 1
    assert "memory://hung</code> <span" in get(app, "/").text
    gate.set()
    cache.close()


def test_unknown_store_dir_is_not_404_while_a_store_is_down(closure: Closure, monkeypatch: pytest.MonkeyPatch) -> None:
    """404 requires an answer of every store: a store that is down may have any store dir."""
    monkeypatch.setattr(substituter, "CACHE_INFO_WAIT_SECONDS", 0.2)
    down = FakeStore("down")
    down.failure = DOWN
    alone = create_app(Settings(), BinaryCache([down]))
    assert get(alone, closure.data).status_code == 502
    both = BinaryCache([Substituter(down), Substituter(LocalBinaryCacheStore(str(closure.usual)))])
    app = create_app(Settings(domain=DOMAIN), both)
    assert get(app, f"{closure.base}/share/name").data == b"base"
    assert get(app, closure.data).status_code == 502
    assert location(app, f"{closure.tool}/data") == closure.data
    assert get(app, "/share/name", f"{closure.base.rpartition('/')[2][:32]}.{DOMAIN}").data == b"base"
    both.close()
